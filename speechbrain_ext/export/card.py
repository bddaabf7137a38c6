"""Sections of a model card: what is known of a model → Markdown.

Each function takes :class:`~speechbrain_ext.export.card.CardFacts`; ``SECTIONS``
are their names, as a template writes them.

The model card: README.md of a shared model, with the hub's front matter.

A template (``templates/model_card.md``, or one of the user's) has the words that are
the same for every model, and a ``$name`` for each section that is written from what is
known of this one (:mod:`speechbrain_ext.export.card`).
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.repocard import metadata_load

from speechbrain_ext.export import card as card_sections
from speechbrain_ext.inference.thresholds import RULE_OF_30, Thresholds
from speechbrain_ext.pruning.plots import sparsity_table
from speechbrain_ext.scoring.report import LEGEND, as_markdown
from speechbrain_ext.utils.errors import InputError, describe_os_error

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


TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
LIBRARY = "speechbrain"
TAGS = ["speechbrain", "speaker-verification", "speaker-recognition", "embeddings"]
REQUIRED = ("license", "library_name", "tags")
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
LANGUAGE = re.compile(r"[a-z]{2,3}|multilingual")


@dataclass(frozen=True, eq=False)
class CardFacts:
    """What is known of a model.

    Attributes
    ----------
    name : str
        ``owner/name`` on the hub, or the folder's name.
    sizes : dict
        ``encoder``, ``head`` (parameters), ``macs`` (multiply-adds for 1 s),
        ``embedding`` (values); once written, ``weight_type``, ``bytes`` (of the
        weights), and ``cosine``: the lowest of the embeddings by stored and by original
        weights, or None where they are the same.
    files : list of str
        Names in the folder.
    training : dict
        training.json.
    licence : str or None
        As the hub abbreviates it: ``apache-2.0``.
    languages : list of str
        ISO 639: ``en``.
    training_data : str or None
        In words.
    lists : list of dict
        Of results.json; none where nothing was verified.
    scores : list of str
        Kinds that the folder can make: ``cosine``, ``as_norm``, ``llr``.
    thresholds : dict of str to Thresholds
    threshold_source : str
        From which trials they are, in words; why there are none is not for the card.
    cohort_size : int
        Training speakers whose means are in the folder.
    structure : dict or None
        Of :func:`speechbrain_ext.pruning.structure`, where the model was pruned.
    """

    name: str
    sizes: dict
    files: list = field(default_factory=list)
    training: dict = field(default_factory=dict)
    licence: str | None = None
    languages: list = field(default_factory=list)
    training_data: str | None = None
    lists: list = field(default_factory=list)
    scores: list = field(default_factory=lambda: ["cosine"])
    thresholds: dict[str, Thresholds] = field(default_factory=dict)
    threshold_source: str = ""
    cohort_size: int = 0
    structure: dict | None = None


def make_card(facts, template=None):
    """Write the card's text.

    Arguments
    ---------
    facts : CardFacts
    template : str, Path or None
        Another template; None takes the package's own.

    Returns
    -------
    str

    Raises
    ------
    InputError
        A template that cannot be read, lacks the front matter or names a section that
        is none; a licence or language that the hub would not take.
    """
    path = Path(template or TEMPLATE)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{describe_os_error(error)}, expected a template") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error})") from error
    if not text.startswith("---\n$front_matter\n---\n"):
        raise InputError(
            f"{path}: begins with {text[:40]!r}, expected '---', '$front_matter', '---'"
        )
    sections = {
        name: getattr(card_sections, name)(facts) for name in card_sections.SECTIONS
    }
    try:
        return Template(text).substitute(sections, front_matter=front_matter(facts))
    except KeyError as error:
        raise InputError(
            f"{path}: ${error.args[0]}, expected one of {', '.join(sections)} (a "
            "dollar sign is written $$)"
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: {error} (a dollar sign is written $$)") from error


def front_matter(facts):
    """What the hub reads: licence, library, tags, figures → YAML.

    Raises
    ------
    InputError
        A licence or language in another form than the hub's.
    """
    check_licence(facts.licence)
    for language in facts.languages:
        if not LANGUAGE.fullmatch(language):
            raise InputError(
                f"language {language!r}, expected ISO 639 as en, or multilingual"
            )
    figures = {}
    if facts.lists:
        figures = {
            "metrics": ["eer", "min_dcf", "cllr"],
            "model_name": facts.name.rpartition("/")[2],
            "eval_results": list(_figures(facts.lists)),
        }
    data = ModelCardData(
        language=list(facts.languages) or None,
        license=facts.licence,
        library_name=LIBRARY,
        tags=TAGS + ["pruned"] * (facts.structure is not None),
        **figures,
    )
    return data.to_yaml().strip()


def check_licence(licence):
    """InputError unless None or as the hub abbreviates licences."""
    if licence is not None and not LICENCE.fullmatch(licence):
        raise InputError(
            f"licence {licence!r}, expected the hub's abbreviation: apache-2.0, "
            "cc-by-4.0, cc-by-nc-sa-4.0, mit, other, …"
        )


def check_card(path, repo_id=None):
    """Whether a card tells what people must know before they use a model.

    Arguments
    ---------
    path : str or Path
        README.md.
    repo_id : str, optional
        Where it is to be shared: its code must load from there.

    Returns
    -------
    dict
        The front matter.

    Raises
    ------
    InputError
        No front matter; a required field that is missing or another library; no word
        on limits or licence; code that loads from somewhere else.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        values = metadata_load(path) or {}
    except OSError as error:
        raise InputError(f"{describe_os_error(error)}, expected a card") from error
    except Exception as error:  # whatever a YAML reader finds wrong
        reason = str(error).split("\n")[0]
        raise InputError(f"{path}: its front matter cannot be read ({reason})") from (
            error
        )
    for key in REQUIRED:
        if not values.get(key):
            option = " (export --licence …)" if key == "license" else ""
            raise InputError(f"{path}: no {key} in the front matter{option}")
    if values["library_name"] != LIBRARY:
        raise InputError(
            f"{path}: library_name {values['library_name']!r}, expected {LIBRARY!r}"
        )
    for heading in ("## Intended use and limits", "## Licence"):
        if f"\n{heading}\n" not in text:
            raise InputError(f"{path}: no section '{heading}'")
    if repo_id is not None and f'"{repo_id}"' not in text:
        raise InputError(
            f'{path}: its code does not load "{repo_id}": export with --name '
            f"{repo_id}, or mend it by hand"
        )
    return values


def _figures(lists):
    """Figures of every list and system, as the hub's model index has them."""
    for result in lists:
        name = Path(result["list"]).name
        if result.get("enrolment"):
            name += f" ({result['enrolment']})"
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        for row in result["systems"]:
            values = [("eer", "EER %", row["eer_percent"])]
            values += [
                ("min_dcf", f"minDCF({p})", cost) for p, cost in row["min_dcf"].items()
            ]
            values += [("cllr", "Cllr", row["cllr"])]
            for kind, what, value in values:
                yield EvalResult(
                    task_type="speaker-verification",
                    task_name="Speaker verification",
                    dataset_type=slug or "trials",
                    dataset_name=name,
                    metric_type=kind,
                    metric_name=f"{what}, {row['title']}",
                    metric_value=round(value, 4),
                )
