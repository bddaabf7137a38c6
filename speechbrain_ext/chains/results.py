"""The figures of every verification of a chain, beside the published ones.

``results.md`` and ``results.json`` in the chain's folder, written anew after each stage
that leaves figures: verify.py's, and evaluate.py's of spoofing detectors.
"""

from pathlib import Path

from speechbrain_ext.chains.plan import table
from speechbrain_ext.scoring.report import markdown_table
from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.files import read_json, write_atomically, write_json

# VoxCeleb1's cleaned lists, by their numbers of trials.
KNOWN_LISTS = {37611: "Vox1-O", 579818: "Vox1-E", 550894: "Vox1-H"}
TITLES = (
    *("stage", "list", "score", "EER %", "published", "minDCF", "Cllr", "parameters"),
)
_RESULTS = {"pretrained_folder?": (str, None), "lists": [{"systems": [dict]}]}


def rows_of(chain, done):
    """A row for each list and score of the stages that are done.

    Arguments
    ---------
    chain : Chain
    done : collection of str
        Names of stages.

    Returns
    -------
    list of dict
        ``stage``, ``list``, ``score``, ``title``, ``trials``, ``eer_percent``,
        ``min_dcf`` (of spoofing, by the challenge's costs), ``cllr``,
        ``published_eer_percent`` and ``parameters``, None where there is none.
    """
    rows = []
    for stage in chain.stages:
        path = stage.folder / "results.json"
        if stage.name in done and stage.hparams and path.is_file():
            about = read_json(path, _RESULTS, what="results of a verification")
            parameters = _parameters(about.get("pretrained_folder"))
            for result in about["lists"]:
                for system in result["systems"]:
                    row = _row(stage, result, system)
                    rows.append({**row, "parameters": parameters})
    return rows


def write_results(chain, rows):
    """Write both files → the table as lines."""
    cells = list(map(_cells, rows))
    write_json(chain.folder / "results.json", {"chain": chain.name, "rows": rows})
    with write_atomically(chain.folder / "results.md") as file:
        file.write(
            f"{markdown_table(TITLES, cells)}\n\n"
            "minDCF: at a prior of 0.01; of spoofing, the challenge's. Cllr in bits. "
            "Published\nfigures are EER %, of others' runs.\n"
        )
    return table([TITLES, *cells], right=set(range(3, len(TITLES))))


def _row(stage, result, system):
    name = Path(result["list"]).stem
    if result.get("enrolment"):
        name = f"{name}, {result['enrolment']}"
    # of spoofs they are of all attacks together
    figures = system.get("pooled", system)
    min_dcf = figures["min_dcf"]
    known = KNOWN_LISTS.get(result.get("trials"), name)
    published = stage.published.get(system["system"], {})
    return {
        "stage": stage.name,
        "list": name,
        "score": system["system"],
        "title": system["title"],
        "trials": result.get("trials"),
        "eer_percent": figures["eer_percent"],
        "min_dcf": min_dcf["0.01"] if isinstance(min_dcf, dict) else min_dcf,
        "cllr": figures["cllr"],
        "published_eer_percent": published.get(known, published.get(name)),
    }


def _parameters(folder):
    """Of the verified model, as its folder says; None where it does not."""
    try:
        about = read_json(Path(folder or "") / "training.json", {})
    except InputError:
        return None
    return about.get("total_parameters")


def _cells(row):
    def shown(key, form):
        return "–" if row[key] is None else format(row[key], form)

    return (
        *(row["stage"], row["list"], row["title"], shown("eer_percent", ".2f")),
        *(shown("published_eer_percent", ".2f"), shown("min_dcf", ".3f")),
        *(shown("cllr", ".3f"), shown("parameters", ",d")),
    )
