"""The model card: README.md of a shared model, with the hub's front matter.

``templates/model_card.md`` is a Jinja template for ``huggingface_hub.ModelCard``; each
block in it is a section. A template of the user's (``hparams_templates/model_card.md``)
has words of their own and a ``$name`` for each section.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import metadata_load

from speechbrain_ext.export import detection
from speechbrain_ext.inference.thresholds import RULE_OF_30, Thresholds
from speechbrain_ext.pruning.plots import sparsity_table
from speechbrain_ext.scoring.report import LEGEND, as_markdown
from speechbrain_ext.utils.errors import (
    WHEEL,
    InputError,
    describe_os_error,
    repository,
)

TEMPLATES = Path(__file__).parent / "templates"
TEMPLATE = TEMPLATES / "model_card.md"
SECTIONS = (
    *("title", "summary", "installation", "usage", "speechbrain", "results"),
    *("thresholds", "sizes", "training", "files", "licence"),
)
LIBRARY = "speechbrain"
TAGS = ["speechbrain", "speaker-verification", "speaker-recognition", "embeddings"]
DETECTOR = "SpoofingDetector"
DETECTOR_TAGS = ["speechbrain", "anti-spoofing", "deepfake-detection", "asvspoof"]
REQUIRED = ("license", "library_name", "tags")
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
LANGUAGE = re.compile(r"[a-z]{2,3}|multilingual")
RATES = (0.05, 0.01, 0.001)  # false accepts whose thresholds the card shows
KINDS = {"cosine": "cosine", "as_norm": "AS-norm", "llr": "log-likelihood ratio"}
SECTION_OF_THRESHOLDS = re.compile(r"^## Thresholds\n.*?(?=^## |\Z)", re.M | re.S)
FILES = {
    "README.md": "this card",
    "hyperparams.yaml": "the modules, for SpeechBrain",
    "custom_interface.py": "the class, for SpeechBrain's foreign_class",
    "encoder_config.json": "the encoder's configuration, for transformers",
    "speaker_encoder.safetensors": "weights of encoder and head",
    "training.json": "stage, epoch, validation error rate",
    "classifier.safetensors": "one vector per class of the training: voices of people",
    "cohort.npz": "one mean embedding per training speaker, for AS-norm",
    "calibration.json": "from scores and qualities to log-likelihood ratios",
    "thresholds.json": "operating points for every kind of score",
    "structure.png": "units that pruning left",
}


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
    encoder : str
        Its family, by :func:`encoder_title`.
    sample_rate : int
        Hz.
    used_by : str
        The class of ``speechbrain_ext.inference`` that loads it.
    costs : dict or None
        Of a detector's figures, as results.json has them.
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
    encoder: str = "w2v-BERT"
    sample_rate: int = 16000
    used_by: str = "SpeakerVerifier"
    costs: dict | None = None

    @property
    def detects(self):
        """Whether it is a spoofing detector."""
        return self.used_by == DETECTOR


def encoder_title(encoder):
    """The family of an encoder, in words: its ``title``, else its class's name."""
    name = type(encoder).__name__.removesuffix("Encoder")
    return getattr(encoder, "title", None) or name


def make_card(facts, template=None):
    """Write the card's text.

    Arguments
    ---------
    facts : CardFacts
    template : str, Path or None
        Another template, with ``$front_matter`` and a ``$name`` for each section; None
        takes the package's own.

    Returns
    -------
    str

    Raises
    ------
    InputError
        A template that cannot be read, lacks the front matter or names a section that
        is none; a licence or language that the hub would not take.
    """
    data, values = _front_matter(facts), _values(facts)
    own = TEMPLATES / "detector_card.md" if facts.detects else TEMPLATE
    if template is None:
        card = ModelCard.from_template(data, template_path=own, **values)
        return f"{str(card).strip()}\n"
    page = jinja2.Template(own.read_text(encoding="utf-8"))
    context = page.new_context(values)
    sections = {name: "".join(page.blocks[name](context)) for name in SECTIONS}
    path = Path(template)
    try:
        text = path.read_text(encoding="utf-8")
        if not text.startswith("---\n$front_matter\n---\n"):
            raise InputError(
                f"{path}: begins with {text[:40]!r}, expected '---', '$front_matter', "
                "'---'"
            )
        return Template(text).substitute(sections, front_matter=data.to_yaml().strip())
    except OSError as error:
        raise InputError(f"{describe_os_error(error)}, expected a template") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error})") from error
    except KeyError as error:
        raise InputError(
            f"{path}: ${error.args[0]}, expected one of {', '.join(sections)} (a "
            "dollar sign is written $$)"
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: {error} (a dollar sign is written $$)") from error


def with_thresholds(text, thresholds, source):
    """A card with the section on thresholds written anew, where it has one.

    Arguments
    ---------
    text : str
        README.md.
    thresholds : dict of str to Thresholds
    source : str
        From which trials they are, in words.

    Returns
    -------
    str
    """
    facts = CardFacts("", {}, thresholds=thresholds, threshold_source=source)
    page = jinja2.Template(TEMPLATE.read_text(encoding="utf-8"))
    context = page.new_context({"facts": facts, **_OF_THRESHOLDS})
    section = "".join(page.blocks["thresholds"](context))
    return SECTION_OF_THRESHOLDS.sub(lambda _: f"## Thresholds\n\n{section}\n\n", text)


def _values(facts):
    """What the template shows, besides the facts themselves."""
    return {
        "facts": facts,
        "repository": repository(),
        "wheel": WHEEL,
        "total": facts.sizes["encoder"] + facts.sizes["head"],
        **_results(facts),
        **_OF_THRESHOLDS,
        "training": list(_training(facts)),
        "origin": facts.training.get("converted_from") or {},
        "units": _units(facts.structure) if facts.structure else [],
        "files": FILES,
    }


def _results(facts):
    """Table and legend of the figures, and which scores the folder gives."""
    if not facts.lists:
        return {"table": "", "legend": "", "unshared": []}
    if facts.detects:
        table, legend = (
            detection.table_of(facts.lists),
            detection.legend_of(facts.costs),
        )
        return {"table": table, "legend": legend, "unshared": []}
    rows = max(len(result["systems"]) for result in facts.lists)
    return {
        "table": as_markdown(facts.lists),
        "legend": LEGEND,
        # scores that the folder gives, where there are figures of others
        "unshared": [KINDS[k] for k in facts.scores]
        if rows > len(facts.scores)
        else [],
    }


def _training(facts):
    """Data, stage, epoch, validation: a line for each that is known."""
    if facts.training_data:
        yield f"data: {facts.training_data}"
    for key, words in (
        ("stage", "stage: {}"),
        ("n_speakers", "speakers: {:,}"),
        ("epoch", "epoch: {}"),
        (
            "validation_eer_percent",
            "EER on trials of speakers held out for validation: {:.2f} %",
        ),
        ("validation_min_dcf", "minDCF there: {:.4f}"),
    ):
        if facts.training.get(key):
            yield words.format(facts.training[key])
    if origin := facts.training.get("converted_from"):
        yield f"converted from a published checkpoint, {origin.get('file')}"
        if figures := origin.get("published_figures"):
            yield f"figures published with networks of this size: {figures}"


def _units(structure):
    """For each kind of unit: kind, how many are left, of how many."""
    _, left, kinds = sparsity_table(structure)
    full = dict.fromkeys(kinds, 0)
    for group in structure["groups"]:
        full[group["kind"]] += group["full"]
    return [
        (kind, int(left[:, column].sum()), full[kind])
        for column, kind in enumerate(kinds)
    ]


def _at_rate(curve, rate):
    if rate * curve.n_nontarget < RULE_OF_30:
        return "–"
    try:
        point = curve.at_false_accept_rate(rate)
    except InputError:  # too many of the non-targets share the highest score
        return "–"
    return f"{point.threshold:.3f} ({100 * point.miss_rate:.1f} %)"


_OF_THRESHOLDS = {
    "rates": RATES,
    "kinds": KINDS,
    "at_rate": _at_rate,
    "rule_of_30": RULE_OF_30,
}


def _front_matter(facts):
    """What the hub reads: licence, library, tags, figures."""
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
            "eval_results": list(
                detection.figures_of(facts.lists)
                if facts.detects
                else _figures(facts.lists)
            ),
        }
    return ModelCardData(
        language=list(facts.languages) or None,
        license=facts.licence,
        library_name=LIBRARY,
        tags=(DETECTOR_TAGS if facts.detects else TAGS)
        + ["pruned"] * (facts.structure is not None),
        **figures,
    )


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
