"""A page in the browser to try a model on clips, uploaded or recorded.

Two clips are compared; voices are enrolled, and clips identified among them. Waveforms
show where speech was found.

Needs the extra ``app`` (Gradio). The page loads nothing from other hosts, and neither
the server nor the browser reports to anyone. Clips are deleted after half
an hour and at the end, and no history of comparisons is kept: a voice is personal data.
Only enrolled voices stay, in the file that is named or as long as the server runs.
"""

import html
import os
from pathlib import Path

import numpy as np

from speechbrain_ext.app.page import (
    CSS,
    enrolled_html,
    identified_html,
    no_speech_html,
    problem_html,
    result_html,
)
from speechbrain_ext.app.store import LONGEST_NAME, Store
from speechbrain_ext.data.audio import SAMPLE_RATE, read_header
from speechbrain_ext.inference.decisions import comparison_report
from speechbrain_ext.inference.voices.identification import identification_report
from speechbrain_ext.utils.errors import InputError, NoSpeechError, how_to_install

LARGEST_UPLOAD = "50mb"
MOST_SECONDS = 600.0  # one recording of an hour would hold up everyone else
CLIPS = ("Clip 1, the known speaker", "Clip 2, to be tested")
VOICE, UNKNOWN = "Clip of the voice", "Clip to identify"
STORE = "The file of voices"
CHANNELS = ["mean", "left", "right", "best"]
DELETE_EVERY, DELETE_OLDER = 300, 1800  # seconds

INTRODUCTION = """\
# Same speaker?

Upload or record two clips of speech, some seconds each, and the model says whether one
person speaks in both. A decision about a person should not rest on it alone: recordings
can be imitated or synthesised, and every threshold has its errors.
"""


DETECTS = """\
A second model says of each clip whether the voice is real, or made or changed by a
machine. That is no proof either.
"""


def launch(
    verifier,
    name,
    host=None,
    port=None,
    wait=True,
    voices=None,
    detector=None,
    spoof_accept_rate=None,
    **decision,
):
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
    voices : str, Path or None
        File of enrolled voices, begun where there is none; None keeps them in memory.
    detector : SpoofingDetector or None
        Also says whether the voices of two clips are real.
    spoof_accept_rate : float or None
        As for :meth:`~speechbrain_ext.inference.verifier.SpeakerVerifier.compare`.
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
    detection = {}
    if detector is not None:
        detection = {"detector": detector, "spoof_accept_rate": spoof_accept_rate}
    page = _make_page(verifier, name, voices, detection, **decision)
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


def _make_page(verifier, name, voices=None, detection=None, **decision):
    """The page, not yet served; ``detection`` are keywords of ``compare``, the other
    arguments as for :func:`launch`."""
    detection = detection or {}
    gradio, store = import_gradio(), Store(verifier, voices)

    def recorder(label, element):
        return gradio.Audio(
            sources=["upload", "microphone"],
            type="filepath",
            label=label,
            elem_id=element,
            min_width=280,
            buttons=[],  # one of them would send the clip to the hub
        )

    def chooser(element, label="Channel of the clip"):
        return gradio.Dropdown(
            label=label,
            choices=CHANNELS,
            value=CHANNELS[0],
            elem_id=element,
        )

    def compare(enrol, test, channel):
        options = {**detection, "channel": channel, **decision}
        return answer(verifier, enrol, test, **options)

    def enrol_voice(words, clip, channel):
        shown = answer_enrol(verifier, store, words, clip, channel=channel, **decision)
        return shown, *listed()

    def identify(clip, channel):
        return answer_identify(verifier, store, clip, channel=channel, **decision)

    def forget(words):
        return answer_remove(store, words), *listed()

    def listed():
        try:
            known = store.read().describe()
        except InputError:  # whoever enrols, removes or identifies is told
            known = []
        rows = [[v["voice"], v["recordings"], round(v["seconds"], 1)] for v in known]
        names = [row[0] for row in rows]
        return rows, gradio.Dropdown(choices=names, value=None)

    with gradio.Blocks(
        title="Same speaker?",
        analytics_enabled=False,
        delete_cache=(DELETE_EVERY, DELETE_OLDER),
    ) as page:
        gradio.Markdown(INTRODUCTION + f"\n{DETECTS}" * bool(detection))
        with gradio.Tab("Compare", elem_id="tab_compare"):
            with gradio.Row():
                clips = [recorder(*clip) for clip in zip(CLIPS, ("enrol", "test"))]
            channel = chooser("channel", "Channel of both clips")
            button = gradio.Button("Compare", variant="primary", elem_id="compare")
            result = gradio.HTML(elem_id="result")
            button.click(compare, [*clips, channel], result, **_served("compare"))
        with gradio.Tab("Enrol", elem_id="tab_enrol") as enrol_tab:
            gradio.Markdown(_about_voices(voices))
            with gradio.Row():
                with gradio.Column():
                    words = gradio.Textbox(
                        label="Name", max_length=LONGEST_NAME, elem_id="name"
                    )
                    clip = recorder(VOICE, "voice")
                    channel = chooser("voice_channel")
                    button = gradio.Button(
                        "Enrol", variant="primary", elem_id="enrol_voice"
                    )
                with gradio.Column():
                    table = gradio.Dataframe(
                        headers=["Voice", "Recordings", "Seconds of speech"],
                        datatype=["str", "number", "number"],
                        interactive=False,
                        buttons=[],
                        label="Enrolled voices",
                        elem_id="voices",
                    )
                    gone = gradio.Dropdown(
                        label="Remove a voice", choices=[], elem_id="removed"
                    )
                    remove = gradio.Button("Remove", elem_id="remove")
            enrolled = gradio.HTML(elem_id="enrolled")
            shown = [enrolled, table, gone]
            button.click(enrol_voice, [words, clip, channel], shown, **_served("enrol"))
            remove.click(forget, gone, shown, **_served("remove"))
            enrol_tab.select(listed, None, [table, gone], **_served("voices"))
        with gradio.Tab("Identify", elem_id="tab_identify"):
            clip = recorder(UNKNOWN, "unknown")
            channel = chooser("unknown_channel")
            button = gradio.Button("Identify", variant="primary", elem_id="identify")
            identified = gradio.HTML(elem_id="identified")
            button.click(identify, [clip, channel], identified, **_served("identify"))
        models = f"Model: {name}"
        if detection:
            models += f"; for real voices: {detection['detector'].source}"
        gradio.Markdown(models, elem_id="model")
        page.load(listed, None, [table, gone], **_served("voices_at_start"))
    return page


def _served(name):
    """One request of a kind at a time: each has the whole machine."""
    return {"api_name": name, "concurrency_limit": 1, "concurrency_id": "model"}


def _about_voices(path):
    where = (
        "in the server's memory until it ends"
        if path is None
        else "in a file on the server until somebody removes them"
    )
    return (
        f"A voice is kept as a few hundred numbers, with its name, {where}; whoever "
        "sees this page can find it. The clips themselves are deleted after half an "
        "hour. Enrol nobody who has not agreed."
    )


def answer(verifier, enrol, test, **decision):
    """What the page shows for two files, as HTML; never raises for a bad clip.

    A file that was not given is None; ``decision`` is as for :func:`launch`, with the
    detector where there is one.
    """

    def compare(clips):
        return result_html(
            comparison_report(verifier, [enrol], [test], **decision), clips
        )

    named = list(zip(CLIPS, (enrol, test)))
    return _answered(verifier, named, compare, "Not compared", decision)


def answer_enrol(verifier, store, name, clip, **decision):
    """Enrol a file under a name in a Store; what the page shows, as HTML."""

    def enrol(clips):
        detects, channel = decision.get("speech_detection"), _channel_of(decision)
        speaker = verifier.enrol(clip, speech_detection=detects, channel=channel)
        store.add(name, speaker)
        return enrolled_html(name.strip(), speaker.seconds, clips)

    page = _answered(verifier, [(VOICE, clip)], enrol, "Not enrolled", decision)
    return _without_path(page, store.path, STORE)


def answer_remove(store, name):
    """Remove a voice from a Store; what the page shows, as HTML."""
    try:
        store.remove(name or "")
    except InputError as error:
        page = problem_html(str(error), "Not removed")
        return _without_path(page, store.path, STORE)
    return ""


def answer_identify(verifier, store, clip, **decision):
    """Whose voice a file is, of those in a Store; what the page shows, as HTML."""

    def identify(clips):
        report = identification_report(verifier, [clip], store.read(), **decision)
        return identified_html(report, clips)

    page = _answered(verifier, [(UNKNOWN, clip)], identify, "Not identified", decision)
    return _without_path(page, store.path, STORE)


def _answered(verifier, named, ask, problem, decision):
    """``ask`` of the clips as the model hears them, or what is wrong with them."""
    missing = [title for title, path in named if not path]
    if missing:
        return problem_html(
            f"{missing[0]}: missing, expected an upload or recording", problem
        )
    clips = []
    try:
        detects = decision.get("speech_detection")
        if detects is None:
            detects = verifier.speech.speech_detection
        channel = _channel_of(decision)
        clips = [_heard(verifier, *clip, detects, channel) for clip in named]
        page = ask(clips)
    except NoSpeechError as error:
        page = no_speech_html([f"{error}."], clips)
    except InputError as error:
        page = problem_html(str(error), problem)
    for title, path in named:
        page = _without_path(page, path, f"{title} ({Path(path).name})")
    return page


def _without_path(page, path, words):
    """The visitor knows clips and file names, not where the server keeps them."""
    if path is None:
        return page
    return page.replace(html.escape(str(path)), html.escape(words))


def _channel_of(decision):
    return decision.get("channel") or CHANNELS[0]


def _heard(verifier, title, path, detects, channel):
    """Title, waveform [T] and speech [S, 2] of a clip, as the model hears it."""
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
    try:
        wav, segments = verifier.load_audio(path, channel=channel).cpu().numpy(), None
    except NoSpeechError:  # digital silence: an answer, and shown as one
        wav, segments = np.zeros(round(seconds * SAMPLE_RATE), np.float32), None
    title = f"{title}: {Path(path).name}, {seconds:.1f} s"
    if detects:
        segments = verifier.detector.segments(wav)
        spoken = sum(stop - start for start, stop in segments) / SAMPLE_RATE
        title += f", {spoken:.1f} s of speech"
    return title, wav, segments


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
