"""What the page shows, as HTML: decisions, gauges, clips with their speech, errors.

Pictures lie inside the text as base64: nothing of a voice is left on the disk. File
names come from strangers and are escaped.
"""

import base64
import html

from speechbrain_ext.app.plots import draw_clip, draw_gauge

NAMES = {
    "cosine": "Cosine",
    "as_norm": "AS-norm score",
    "llr": "Log-likelihood ratio (natural)",
}
# Where the line of a score usually ends; it is widened where a score lies outside.
LIMITS = {"cosine": (-0.4, 1.0), "as_norm": (-10.0, 25.0), "llr": (-10.0, 10.0)}

CSS = """
.verdict { border-left: 0.5rem solid; padding: 0.6rem 1rem; margin-bottom: 0.8rem;
  border-radius: 0.4rem; background: var(--background-fill-secondary); }
.verdict h2 { margin: 0; font-size: 1.5rem; }
.verdict p { margin: 0.3rem 0 0; }
.verdict.same { border-color: #1f77b4; }
.verdict.different { border-color: #ff7f0e; }
.verdict.problem { border-color: #d62728; }
.verdict.none { border-color: #7f7f7f; }
.candidates { border-collapse: collapse; margin: 0.4rem 0 1rem; }
.candidates th, .candidates td { padding: 0.25rem 0.8rem !important; text-align: left;
  overflow-wrap: anywhere; }
.candidates td + td, .candidates th + th { text-align: right; white-space: nowrap; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; }
.pictures figure { flex: 1 1 20rem; margin: 0; min-width: 0; max-width: 38rem;
  display: flex; flex-direction: column; justify-content: flex-end; }
.pictures figcaption { font-weight: 600; overflow-wrap: anywhere; }
.picture { width: 100%; border-radius: 0.4rem; display: block; }
.gauge { max-width: 48rem; margin: 0 auto 1rem; }
"""


def result_html(comparison, clips):
    """The whole answer to two clips, as HTML.

    ``comparison``: of :func:`~speechbrain_ext.inference.decisions.comparison_report`;
    ``clips``: of each its title, its waveform [T] at 16 kHz, as the model heard it, and
    the segments [S, 2] of speech in it, or None.
    """
    if comparison["same_speaker"] is None:
        return no_speech_html(comparison["warnings"], clips)
    same, kind = comparison["same_speaker"], comparison["score_kind"]
    words = "Same speaker" if same else "Different speakers"
    sign = "at or above" if same else "below"
    sentences = [
        f"{NAMES[kind]} {comparison['score']:.3f}, {sign} the threshold "
        f"{comparison['threshold']:.3f}.",
        _threshold_sentence(comparison),
        _probability_sentence(comparison["probability"]),
        _others_sentence(comparison["scores"], kind),
        *comparison["warnings"],
    ]
    verdict = _verdict("same" if same else "different", words, sentences)
    sides = "different speakers", "same speaker"
    verdict += _gauge(comparison, "of the two clips", sides)
    if "detection" in comparison:
        verdict += _detection_html(comparison["detection"], clips)
    return verdict + clips_html(clips)


def _detection_html(detection, clips):
    """Whether the voice of each clip is real, of a ``detection`` of the report."""
    parts = []
    for (title, *_), side in zip(clips, ("enrol", "test")):
        (found,) = detection[side]
        name = title.partition(",")[0]
        if found["bonafide"] is None:
            parts.append(_verdict("none", f"{name}: no speech found", []))
            continue
        real = found["bonafide"]
        sentences = [
            f"{NAMES['llr']} of a real voice {found['llr']:.3f}, "
            f"{'at or above' if real else 'below'} the threshold "
            f"{detection['threshold']:.3f}.",
            _spoofs_sentence(detection),
            f"Probability of a real voice: {100 * found['probability']:.1f} %, where "
            "half of clips are real.",
        ]
        words = f"{name}: {'real voice' if real else 'not a real voice'}"
        parts.append(_verdict("same" if real else "different", words, sentences))
        gauge = {**detection, "score_kind": "llr", "score": found["llr"]}
        parts.append(_gauge(gauge, f"of {name}", ("made by a machine", "real voice")))
    return "".join(parts)


def no_speech_html(warnings, clips):
    """The answer where nobody speaks in a clip: no decision."""
    words = [*warnings, "Nothing is decided without speech."]
    return _verdict("none", "No speech found", words) + clips_html(clips)


def enrolled_html(name, seconds, clips):
    """The answer to clips that were enrolled."""
    sentence = f"{seconds:.1f} s of speech were added to the voice."
    return _verdict("same", f"Enrolled: {name}", [sentence]) + clips_html(clips)


def identified_html(report, clips):
    """Whose voice it is, of a report of ``identification_report``."""
    if not report["candidates"]:
        return no_speech_html(report["warnings"], clips)
    kind, voice = report["score_kind"], report["voice"]
    sign = "below" if voice is None else "at or above"
    among = f"{report['n_voices']} voice{'s' * (report['n_voices'] > 1)}"
    sentences = [
        f"Best of {among}: {report['candidates'][0]['voice']}. {NAMES[kind]} "
        f"{report['score']:.3f}, {sign} the threshold {report['threshold']:.3f}.",
        f"Threshold: {report['threshold_from']}.",
    ]
    if report["unknown_probability"] is not None:
        percent = 100 * report["unknown_probability"]
        sentences.append(
            f"Probability of somebody unknown: {percent:.1f} %, where half of clips "
            "are of enrolled speakers."
        )
    sentences += report["warnings"]
    verdict = (
        _verdict("different", "Unknown", sentences)
        if voice is None
        else _verdict("same", voice, sentences)
    )
    sides = "unknown", "this voice"
    return (
        verdict
        + _gauge(report, "of the best voice", sides)
        + _candidates(report["candidates"])
        + clips_html(clips)
    )


def _candidates(candidates):
    """A table of the best voices: scores that the model has, a column each."""
    kinds = [kind for kind in NAMES if candidates[0][kind] is not None]
    head = "".join(f"<th>{html.escape(NAMES[kind])}</th>" for kind in kinds)
    probable = candidates[0]["probability"] is not None
    head += "<th>Probability</th>" * probable
    rows = "".join(
        f"<tr><td>{html.escape(candidate['voice'])}</td>"
        + "".join(f"<td>{candidate[kind]:.3f}</td>" for kind in kinds)
        + (f"<td>{100 * candidate['probability']:.1f} %</td>" if probable else "")
        + "</tr>"
        for candidate in candidates
    )
    return f'<table class="candidates"><tr><th>Voice</th>{head}</tr>{rows}</table>'


def _gauge(report, of_what, sides):
    kind, score = report["score_kind"], report["score"]
    words = f"{NAMES[kind]} {of_what}: {score:.3f}"
    picture = draw_gauge(score, report["threshold"], words, LIMITS[kind], sides)
    return f'<div class="gauge">{_picture(picture, f"{words}, on a line")}</div>'


def clips_html(clips):
    """Waveforms and spectrograms of clips, as for :func:`result_html`."""
    figures = "".join(
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f"{_picture(draw_clip(*clip), f'Sound of {title}')}</figure>"
        for title, *clip in clips
    )
    return f'<div class="pictures">{figures}</div>'


def problem_html(message, title="Not compared"):
    """One line about what is wrong, in the place of the answer."""
    return _verdict("problem", title, [message], role="alert")


def _verdict(style, title, sentences, role="status"):
    lines = "".join(f"<p>{html.escape(line)}</p>" for line in sentences if line)
    return (
        f'<div class="verdict {style}" role="{role}"><h2>{html.escape(title)}</h2>'
        f"{lines}</div>"
    )


def _picture(png, words):
    data = base64.b64encode(png).decode()
    return (
        f'<img class="picture" alt="{html.escape(words)}" '
        f'src="data:image/png;base64,{data}">'
    )


def _threshold_sentence(comparison):
    sentence = f"Threshold: {comparison['threshold_from']}."
    if comparison["false_accept_rate"] is None:
        return sentence
    return (
        f"{sentence} There, {100 * comparison['false_accept_rate']:.3g} % of pairs of "
        f"different speakers were accepted, and {100 * comparison['miss_rate']:.3g} % "
        "of pairs of one speaker rejected."
    )


def _spoofs_sentence(detection):
    sentence = f"Threshold: {detection['threshold_from']}."
    if detection["false_accept_rate"] is None:
        return sentence
    return (
        f"{sentence} There, {100 * detection['false_accept_rate']:.3g} % of spoofs "
        f"were accepted, and {100 * detection['miss_rate']:.3g} % of real voices "
        "rejected."
    )


def _probability_sentence(probability):
    if probability is None:
        return "The model has no calibration, so there is no probability."
    return (
        f"Probability of one speaker: {100 * probability:.1f} %, where both answers "
        "were equally likely beforehand."
    )


def _others_sentence(scores, kind):
    others = [
        f"{NAMES[name]} {value:.3f}"
        for name, value in scores.items()
        if name != kind and value is not None
    ]
    return f"Also: {', '.join(others)}." if others else ""
