"""The model card: what the hub reads of it, what people read, what is refused."""

import numpy as np
import pytest
from huggingface_hub.repocard import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from speechbrain_ext.export.card import (
    CardFacts,
    check_card,
    check_licence,
    make_card,
)
from speechbrain_ext.inference.thresholds import Thresholds
from speechbrain_ext.utils.errors import InputError

SIZES = {"encoder": 3_000_000, "head": 1_500_000, "macs": 2.5e9, "embedding": 192}
STORED = {"weight_type": "float32", "bytes": 18_000_000, "cosine": None}


def system(name, title, eer, calibrated=False):
    row = {
        "system": name,
        "title": title,
        "as_norm": name != "cosine",
        "qmf": calibrated,
        "calibrated": calibrated,
        "eer_percent": eer,
        "min_dcf": {"0.01": 0.123456, "0.05": 0.05},
        "cllr": 0.25,
        "min_cllr": 0.2,
        "intervals_95": {
            "eer": [0.01, 0.03],
            "min_dcf_0.01": [0.1, 0.2],
            "min_dcf_0.05": [0.04, 0.06],
            "cllr": [0.2, 0.3],
        },
    }
    if calibrated:
        row["actual_dcf"] = {"0.01": 0.4, "0.05": 0.3}
    return row


def lists():
    systems = [system("cosine", "cosine", 2.0), system("as_norm", "AS-norm", 1.98766)]
    return [
        {"list": "/secret/vox1_o.txt", "trials": 37611, "systems": systems},
        {
            "list": "/secret/cn.lst",
            "trials": 12,
            "systems": systems[:1],
            "enrolment": "average",
        },
    ]


def facts(**changes):
    values = {
        "name": "me/voice",
        "sizes": {**SIZES, **STORED},
        "licence": "apache-2.0",
        "lists": lists(),
        "scores": ["cosine", "as_norm"],
    }
    return CardFacts(**{**values, **changes})


def test_what_the_hub_reads():
    card = ModelCard(make_card(facts(languages=["en", "zh"])))
    data = card.data.to_dict()
    assert data["license"] == "apache-2.0"
    assert data["library_name"] == "speechbrain"
    assert data["language"] == ["en", "zh"]
    assert "speaker-verification" in data["tags"]
    assert "pruned" not in data["tags"]
    name, found = model_index_to_eval_results(data["model-index"])
    assert name == "voice"
    figures = {
        (row.dataset_name, row.metric_type, row.metric_name): row.metric_value
        for row in found
    }
    assert len(figures) == len(found) == 3 * 4
    assert figures["vox1_o.txt", "eer", "EER %, AS-norm"] == 1.9877
    assert figures["vox1_o.txt", "min_dcf", "minDCF(0.01), cosine"] == 0.1235
    assert figures["cn.lst (average)", "cllr", "Cllr, cosine"] == 0.25
    assert {row.dataset_type for row in found} == {"vox1-o-txt", "cn-lst-average"}


def test_what_people_read():
    text = make_card(facts(training_data="VoxCeleb2", training={"stage": "stage3"}))
    assert "# voice\n" in text
    assert 'SpeakerVerifier.from_hparams("me/voice")' in text
    assert "| vox1_o.txt (37,611) | AS-norm | yes | no | 1.99 (1.00–3.00) |" in text
    assert "| cn.lst (12, enrolment: average) | cosine |" in text
    assert "| 4,500,000 | 3,000,000 | 1,500,000 | 2.5 G | 18.0 MB, float32 |" in text
    assert "- data: VoxCeleb2\n- stage: stage3\n" in text
    assert "/secret" not in text
    assert "$" not in text
    for heading in ("Use", "Results", "Thresholds", "Intended use and limits"):
        assert f"\n## {heading}\n" in text
    assert "None are in this folder." in text
    assert text.endswith("## Licence\n\napache-2.0\n")


def test_the_code_in_a_card_is_python():
    text = make_card(facts())
    code = text.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")


def test_without_anything():
    text = make_card(CardFacts("voice", SIZES))
    assert "Not verified on any trial list." in text
    assert "Nothing is known of it." in text
    assert "None was given: ask who made the model" in text
    assert "model-index" not in text
    assert "license" not in text.split("---")[1]


def test_thresholds_at_rates_that_were_measured():
    """1,000 non-targets: 5 % are 50 false accepts, 1 % are 10, too few."""
    nontargets, targets = np.arange(1000) / 1000, np.linspace(0.9, 1.9, 200)
    scores = np.concatenate([nontargets, targets])
    labels = np.repeat([0, 1], [1000, 200])
    found = Thresholds.from_scores(scores, labels)
    text = make_card(
        facts(thresholds={"cosine": found}, threshold_source="1,200 trials of ours")
    )
    assert "Measured on 1,200 trials of ours. They depend on the channel" in text
    at = found.at_false_accept_rate(0.05)
    expected = f"{at.threshold:.3f} ({100 * at.miss_rate:.1f} %) | – | – |"
    eer = f"| cosine | {found.eer_threshold:.3f} | {100 * found.eer:.2f} % |"
    assert f"{eer} {expected}" in text


def test_rows_that_the_folder_does_not_give_are_marked():
    assert "what the other rows need was not shared" not in make_card(facts())
    text = make_card(facts(scores=["cosine"]))
    assert "This folder gives the cosine only: what the other" in text


def test_the_cohort_is_said_to_be_there():
    text = make_card(facts(cohort_size=5994, files=["README.md", "cohort.npz"]))
    assert "a mean embedding of each of 5,994 training speakers: biometric" in text
    assert "| `cohort.npz` |" in text
    assert "`calibration.json`" not in text
    assert "biometric data of these people" not in make_card(facts())


def test_pruning_in_figures():
    groups = [
        {"layer": layer, "kind": kind, "kept": kept, "full": full}
        for layer in (0, 1)
        for kind, kept, full in (("heads", 1, 4), ("conv", 10, 10))
    ]
    structure = {"parameters": 7, "groups": groups}
    text = make_card(facts(structure=structure))
    assert "| heads | 2 | 8 | 75.0 % |" in text
    assert "| conv | 20 | 20 | 0.0 % |" in text
    assert "(structure.png)" in text
    assert "A pruned w2v-BERT" in text
    assert "structure.png" not in make_card(facts())


@pytest.mark.parametrize("licence", ["Apache-2.0", "mit licence", "", "-x"])
def test_licences_as_the_hub_abbreviates_them(licence):
    check_licence("cc-by-nc-sa-4.0")
    check_licence(None)
    with pytest.raises(InputError, match=f"licence '{licence}', expected the hub's"):
        check_licence(licence)


# ---- before it is shared -------------------------------------------------------------


@pytest.fixture
def card(tmp_path):
    """A card as the export writes it."""
    path = tmp_path / "README.md"
    path.write_text(make_card(facts()))
    return path


def test_a_card_as_written_may_be_shared(card):
    assert check_card(card, "me/voice")["license"] == "apache-2.0"
    assert check_card(card)["library_name"] == "speechbrain"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("license: apache-2.0\n", "", r"no license in the front matter \(export --li"),
        ("license: apache-2.0\n", "license: ''\n", "no license in the front matter"),
        ("library_name: speechbrain\n", "", "no library_name in the front matter$"),
        (": speechbrain\n", ": other\n", "library_name 'other', expected 'speechb"),
        ("## Intended use and limits", "## Use it", "no section '## Intended use"),
        ("\n## Licence\n", "\n", "no section '## Licence'"),
        ('"me/voice"', '"me/other"', 'its code does not load "me/voice": export with'),
        ("---\n", "", "no license in the front matter"),
        ("license: a", "license: [a", r"its front matter cannot be read \("),
    ],
)
def test_a_card_that_lacks_something(card, old, new, message):
    card.write_text(card.read_text().replace(old, new))
    with pytest.raises(InputError, match=rf"README\.md: {message}") as caught:
        check_card(card, "me/voice")
    assert "\n" not in str(caught.value)


def test_no_card(tmp_path):
    with pytest.raises(InputError, match=r"README\.md: No such file"):
        check_card(tmp_path / "README.md")
