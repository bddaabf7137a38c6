"""Sections of a model card: what is known of a model → Markdown.

Each function takes :class:`~speechbrain_ext.inference.card.CardFacts`; ``SECTIONS``
are their names, as a template writes them.
"""

from speechbrain_ext.errors import InputError
from speechbrain_ext.inference.thresholds import RULE_OF_30
from speechbrain_ext.pruning.plots import sparsity_table
from speechbrain_ext.scoring.report_tables import LEGEND, as_markdown

SECTIONS = (
    *("title", "summary", "usage", "results", "thresholds", "sizes", "training"),
    *("files", "licence"),
)
RATES = (0.05, 0.01, 0.001)  # false accepts whose thresholds the card shows
KINDS = {"cosine": "cosine", "as_norm": "AS-norm", "llr": "log-likelihood ratio"}
FILES = {
    "README.md": "this card",
    "hyperparams.yaml": "the modules, for SpeechBrain",
    "encoder_config.json": "configuration from which the encoder is rebuilt",
    "speaker_encoder.safetensors": "weights of encoder and head",
    "training.json": "stage, epoch, validation error rate",
    "classifier.safetensors": "one vector per class of the training: voices of people",
    "cohort.npz": "one mean embedding per training speaker, for AS-norm",
    "calibration.json": "from scores and qualities to log-likelihood ratios",
    "thresholds.json": "operating points for every kind of score",
    "structure.png": "units that pruning left",
}


def title(facts):
    """The model's name without its owner."""
    return facts.name.rpartition("/")[2]


def summary(facts):
    """What it is, in a sentence or two."""
    kind = "A pruned w2v-BERT" if facts.structure else "A w2v-BERT"
    total = facts.sizes["encoder"] + facts.sizes["head"]
    return (
        f"{kind} speaker encoder for SpeechBrain: a recording becomes an embedding of "
        f"{facts.sizes['embedding']} values; the cosine of two tells whether they are "
        f"of one speaker. {_millions(total)} parameters, 16 kHz."
    )


def usage(facts):
    """The code that verifies two recordings."""
    lines = [
        "from speechbrain_ext.inference import SpeakerVerifier",
        "",
        f'verifier = SpeakerVerifier.from_hparams("{facts.name}")',
        'print(verifier.compare("enrol.wav", "test.wav"))  # every score; a decision',
        'score, same_speaker = verifier.verify_files("enrol.wav", "test.wav")',
        'embeddings = verifier.encode_files(["enrol.wav", "test.wav"])',
    ]
    return "\n".join(lines)


def results(facts):
    """The figures of every list and system."""
    if not facts.lists:
        return "Not verified on any trial list."
    text = f"{as_markdown(facts.lists)}\n\n{LEGEND}"
    if any(len(result["systems"]) > len(facts.scores) for result in facts.lists):
        given = " and ".join(KINDS[kind] for kind in facts.scores)
        text += (
            f"\n\nThis folder gives the {given} only: what the other rows need was not "
            "shared."
        )
    return text


def thresholds(facts):
    """Where each kind of score says "same speaker", and from which trials."""
    if not facts.thresholds:
        return (
            "None are in this folder. Decisions without a `threshold` of your own are "
            "arbitrary: measure one on trials like those that are to be decided."
        )
    head = ["score", "at equal error", "rate there"]
    head += [f"{100 * rate:g} % false accepts" for rate in RATES]
    lines = [_row(head), _row(["---"] * len(head))]
    for kind in KINDS:
        if (found := facts.thresholds.get(kind)) is None:
            continue
        cells = [KINDS[kind], f"{found.eer_threshold:.3f}", f"{100 * found.eer:.2f} %"]
        lines.append(_row(cells + [_at_rate(found, rate) for rate in RATES]))
    return (
        f"Measured on {facts.threshold_source}. They depend on the channel: telephone, "
        "far microphones and noise need their own.\n\n"
        + "\n".join(lines)
        + "\n\nIn brackets the share of target trials missed there. –: of so few "
        f"trials less than {RULE_OF_30} false accepts are to be expected, which is no "
        "measurement."
    )


def sizes(facts):
    """Parameters, multiply-adds, bytes."""
    size = facts.sizes
    total = size["encoder"] + size["head"]
    lines = [
        _row(["parameters", "encoder", "head", "multiply-adds for 1 s", "weights"]),
        _row(["---"] * 5),
        _row(
            [
                *(f"{total:,}", f"{size['encoder']:,}", f"{size['head']:,}"),
                *(f"{size['macs'] / 1e9:.3g} G", _bytes(size)),
            ]
        ),
    ]
    if size.get("cosine") is not None:
        lines += [
            "",
            f"The weights are stored as {size['weight_type']} and computed with in "
            "float32. Embeddings of eight synthetic signals of 3 s by these and by the "
            f"original weights: 1 - cosine is {1 - size['cosine']:.1g} at most.",
        ]
    return "\n".join(lines)


def training(facts):
    """Data, stage, epoch, validation, pruning."""
    known, lines = facts.training, []
    if facts.training_data:
        lines.append(f"- data: {facts.training_data}")
    for key, words in (
        ("stage", "stage: {}"),
        ("n_speakers", "speakers: {:,}"),
        ("epoch", "epoch: {}"),
        (
            "validation_eer_percent",
            "EER on trials of speakers held out for validation: {:.2f} %",
        ),
    ):
        if known.get(key):
            lines.append(f"- {words.format(known[key])}")
    if origin := known.get("converted_from"):
        lines.append(f"- converted from a published checkpoint, {origin.get('file')}")
    if not lines:
        lines.append("Nothing is known of it.")
    if facts.structure:
        lines += ["", *_pruning(facts.structure)]
    return "\n".join(lines)


def files(facts):
    """What each file is."""
    lines = [_row(["file", "what"]), _row(["---"] * 2)]
    lines += [_row([f"`{name}`", FILES[name]]) for name in FILES if name in facts.files]
    if facts.cohort_size:
        lines += [
            "",
            f"`cohort.npz` holds a mean embedding of each of {facts.cohort_size:,} "
            "training speakers: biometric data of these people, without which AS-norm "
            "and the log-likelihood ratios cannot be computed.",
        ]
    if "classifier.safetensors" in facts.files:
        lines += ["", "`training.json` names the training speakers in row order."]
    return "\n".join(lines)


def licence(facts):
    """The licence, and that of the checkpoint it comes from."""
    origin = facts.training.get("converted_from") or {}
    lines = [
        facts.licence or "None was given: ask who made the model before you use it."
    ]
    if origin.get("licence"):
        lines.append(f"The checkpoint it was converted from: {origin['licence']}.")
    return "\n\n".join(lines)


def _pruning(structure):
    _, left, kinds = sparsity_table(structure)
    full = dict.fromkeys(kinds, 0)
    for group in structure["groups"]:
        full[group["kind"]] += group["full"]
    lines = [
        "Pruned structurally: whole units were removed.",
        "",
        _row(["units", "left", "of", "removed"]),
        _row(["---"] * 4),
    ]
    for column, kind in enumerate(kinds):
        kept = int(left[:, column].sum())
        share = 100 * (1 - kept / full[kind]) if full[kind] else 0
        lines.append(_row([kind, f"{kept:,}", f"{full[kind]:,}", f"{share:.1f} %"]))
    return [*lines, "", "![Units left in each layer](structure.png)"]


def _at_rate(found, rate):
    if rate * found.n_nontarget < RULE_OF_30:
        return "–"
    try:
        point = found.at_false_accept_rate(rate)
    except InputError:  # too many of the non-targets share the highest score
        return "–"
    return f"{point.threshold:.3f} ({100 * point.miss_rate:.1f} %)"


def _bytes(size):
    if "bytes" not in size:
        return "–"
    return f"{size['bytes'] / 1e6:,.1f} MB, {size['weight_type']}"


def _millions(count):
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count:,}"


def _row(cells):
    return "| " + " | ".join(cells) + " |"
