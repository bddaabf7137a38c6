"""What the page shows of a comparison, as HTML: decision, gauge, spectrograms, errors.

Pictures lie inside the text as base64: nothing of a voice is left on the disk. File
names come from strangers and are escaped.
"""

import base64
import html

from speechbrain_ext.app.plots import draw_gauge, draw_spectrogram

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
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; }
.pictures figure { flex: 1 1 20rem; margin: 0; min-width: 0; }
.pictures figcaption { font-weight: 600; overflow-wrap: anywhere; }
.picture { width: 100%; border-radius: 0.4rem; display: block; }
.gauge { max-width: 48rem; margin: 0 auto 1rem; }
"""


def result_html(comparison, clips):
    """The whole answer to two clips, as HTML.

    ``comparison``: of :func:`~speechbrain_ext.inference.decisions.comparison_report`;
    ``clips``: title and waveform [T] at 16 kHz of each, as the model heard it.
    """
    same, kind = comparison["same_speaker"], comparison["score_kind"]
    words = "Same speaker" if same else "Different speakers"
    sign = "at or above" if same else "below"
    sentences = [
        f"{NAMES[kind]} {comparison['score']:.3f}, {sign} the threshold "
        f"{comparison['threshold']:.3f}.",
        _threshold_sentence(comparison),
        _probability_sentence(comparison["probability"]),
        _others_sentence(comparison["scores"], kind),
    ]
    gauge = draw_gauge(
        comparison["score"], comparison["threshold"], NAMES[kind], LIMITS[kind]
    )
    verdict = _verdict("same" if same else "different", words, sentences)
    line = f"{NAMES[kind]} {comparison['score']:.3f} on a line with the threshold"
    figures = "".join(
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f"{_picture(draw_spectrogram(wav), f'Spectrogram of {title}')}</figure>"
        for title, wav in clips
    )
    return (
        f'{verdict}<div class="gauge">{_picture(gauge, line)}</div>'
        f'<div class="pictures">{figures}</div>'
    )


def problem_html(message):
    """One line about what is wrong with a clip, in the place of the answer."""
    return _verdict("problem", "Not compared", [message], role="alert")


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
