"""Asks a served page over HTTP.

Gradio's own client would do, but asks hosts of its own: it looks up its harness at the
hub, and reports to it whatever ``analytics_enabled`` says (gradio_client 2.7).
"""

import json
from contextlib import ExitStack

import requests

PATIENCE = 60  # seconds


def configuration(url):
    """What the page tells a client about itself."""
    return requests.get(f"{url}config", timeout=PATIENCE).json()


def compare(url, *paths):
    """The page's answer, HTML, to two clips, both channels' mean."""
    with ExitStack() as opened:
        files = [("files", opened.enter_context(open(path, "rb"))) for path in paths]
        sent = requests.post(f"{url}gradio_api/upload", files=files, timeout=PATIENCE)
    kind = {"_type": "gradio.FileData"}
    clips = [{"path": path, "meta": kind} for path in sent.json()]
    call = f"{url}gradio_api/call/compare"
    begun = requests.post(
        call, json={"data": [*clips, "mean"]}, timeout=PATIENCE
    ).json()
    answer = requests.get(f"{call}/{begun['event_id']}", timeout=PATIENCE)
    answer.encoding = "utf-8"
    (page,) = json.loads(answer.text.split("event: complete\ndata: ")[1])
    return page
