"""A page in the browser to try a model on two clips, uploaded or recorded.

Needs the extra ``app`` (Gradio). The page loads nothing from other hosts, and neither
the server nor the browser reports to anyone. Clips are deleted after half
an hour and at the end, and no history of comparisons is kept: a voice is personal data.
"""

import os
from pathlib import Path

from speechbrain_ext.app.page import CSS, problem_html, result_html
from speechbrain_ext.data.audio import read_header
from speechbrain_ext.inference.decisions import comparison_report
from speechbrain_ext.utils.errors import InputError, how_to_install

LARGEST_UPLOAD = "50mb"
MOST_SECONDS = 600.0  # one recording of an hour would hold up everyone else
CLIPS = ("Clip 1, the known speaker", "Clip 2, to be tested")
DELETE_EVERY, DELETE_OLDER = 300, 1800  # seconds

INTRODUCTION = """\
# Same speaker?

Upload or record two clips of speech, some seconds each, and the model says whether one
person speaks in both. A decision about a person should not rest on it alone: recordings
can be imitated or synthesised, and every threshold has its errors.
"""


def launch(verifier, name, host=None, port=None, wait=True, **decision):
    """Serve the page until Ctrl-C.

    Arguments
    ---------
    verifier : SpeakerVerifier
    name : str
        Of the model, for the page.
    host, port : str and int, or None
        Where to listen; None leaves it to Gradio, as a Space of the hub wants it.
    wait : bool
        False returns at once, while a thread serves.
    **decision
        ``threshold``, ``false_accept_rate``, ``score``, as for
        :func:`~speechbrain_ext.inference.decisions.comparison_report`.

    Returns
    -------
    gradio.Blocks
        With ``local_url``; ``close()`` ends it.

    Raises
    ------
    InputError
        Gradio is not installed; the port is taken.
    """
    gradio = import_gradio()
    page = _make_page(verifier, name, **decision)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=not wait,
            share=False,
            quiet=True,
            max_file_size=LARGEST_UPLOAD,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            theme=gradio.themes.Default(
                primary_hue="slate",  # orange and blue are the two answers
                font=["system-ui", "sans-serif"],
                font_mono=["ui-monospace"],
            ),
            css=CSS,
        )
    except OSError as error:
        raise InputError(f"port {port} on {host}: {error}") from error
    return page


def _make_page(verifier, name, **decision):
    """The page, not yet served; arguments as for :func:`launch`."""
    gradio = import_gradio()

    def compare(enrol, test):
        return answer(verifier, enrol, test, **decision)

    with gradio.Blocks(
        title="Same speaker?",
        analytics_enabled=False,
        delete_cache=(DELETE_EVERY, DELETE_OLDER),
    ) as page:
        gradio.Markdown(INTRODUCTION)
        with gradio.Row():
            clips = [
                gradio.Audio(
                    sources=["upload", "microphone"],
                    type="filepath",
                    label=label,
                    elem_id=element,
                    min_width=280,
                    buttons=[],  # one of them would send the clip to the hub
                )
                for label, element in zip(CLIPS, ("enrol", "test"))
            ]
        button = gradio.Button("Compare", variant="primary", elem_id="compare")
        result = gradio.HTML(elem_id="result")
        gradio.Markdown(f"Model: {name}", elem_id="model")
        button.click(compare, clips, result, api_name="compare", concurrency_limit=1)
    return page


def answer(verifier, enrol, test, **decision):
    """What the page shows for two files, as HTML; never raises for a bad clip.

    A file that was not given is None; ``decision`` is as for :func:`launch`.
    """
    paths = (enrol, test)
    missing = [title for title, path in zip(CLIPS, paths) if not path]
    if missing:
        return problem_html(f"{missing[0]}: missing, expected an upload or recording")
    try:
        clips = [_heard(verifier, *clip) for clip in zip(CLIPS, paths)]
        comparison = comparison_report(verifier, [enrol], [test], **decision)
        if comparison["same_speaker"] is None:  # the warnings say where no speech is
            return problem_html(_with_titles(" ".join(comparison["warnings"]), paths))
        return result_html(comparison, clips)
    except InputError as error:
        return problem_html(_with_titles(str(error), paths))


def _heard(verifier, title, path):
    """Title and waveform [T] of a clip, as the model hears it."""
    if not os.path.exists(path):
        raise InputError(
            f"{path}: deleted, expected it to be uploaded less than "
            f"{DELETE_OLDER // 60} minutes ago"
        )
    header = read_header(path)
    seconds = header.frames / header.sample_rate
    if seconds > MOST_SECONDS:
        raise InputError(
            f"{path}: {seconds:.0f} s, expected {MOST_SECONDS:.0f} s or less"
        )
    title = f"{title}: {Path(path).name}, {seconds:.1f} s"
    return title, verifier.load_audio(path).cpu().numpy()


def _with_titles(message, paths):
    """The visitor knows clips and file names, not where the server keeps them."""
    for title, path in zip(CLIPS, paths):
        message = message.replace(str(path), f"{title} ({Path(path).name})")
    return message


def import_gradio():
    """Gradio with its telemetry off; InputError where it is not installed."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise InputError(
            f"gradio: not installed, expected for the page: {how_to_install('app')}"
        ) from error
    return gradio
