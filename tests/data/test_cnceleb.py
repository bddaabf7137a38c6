"""CN-Celeb's folders, lists and names."""

import pytest

from speechbrain_ext.data.corpora.cnceleb import (
    find_evaluation,
    find_training,
    session_of,
)
from speechbrain_ext.utils.errors import InputError

LISTS = ("trials.lst", "enroll.map", "enroll.lst")


@pytest.fixture
def corpora(tmp_path):
    first, second = tmp_path / "CN-Celeb_flac", tmp_path / "CN-Celeb2_flac"
    paths = ["dev/dev.lst", *(f"eval/lists/{name}" for name in LISTS)]
    for path in (*(first / path for path in paths), second / "spk.lst"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return first, second


def test_what_is_where(corpora):
    first, second = corpora
    found = find_training(first, str(second))
    assert found.folders == [first / "data", second / "data"]
    assert found.lists == [first / "dev/dev.lst", second / "spk.lst"]
    assert find_training(first) == ([first / "data"], [first / "dev/dev.lst"])
    evaluation = find_evaluation(first)
    lists = first / "eval/lists"
    assert evaluation.folders == [first / "eval", first / "data"]
    assert evaluation.trials == lists / "trials.lst"
    maps = {"average": lists / "enroll.map", "concatenate": lists / "enroll.lst"}
    assert evaluation.enrol_maps == maps
    assert evaluation.enrol_map == lists / "enroll.map"
    only = find_evaluation(first, "concatenate")
    assert only.enrol_maps == {"concatenate": lists / "enroll.lst"}
    assert only.enrol_map == lists / "enroll.map"


def test_a_folder_of_the_home_folder(corpora, monkeypatch):
    monkeypatch.setenv("HOME", str(corpora[0].parent))
    found = find_training("~/CN-Celeb_flac", "~/CN-Celeb2_flac")
    assert found.folders == [folder / "data" for folder in corpora]


@pytest.mark.parametrize("path", ["dev/dev.lst", *(f"eval/lists/{n}" for n in LISTS)])
def test_a_missing_list_is_named(corpora, path):
    (corpora[0] / path).unlink()
    message = f"cnceleb1_folder: .*/{path}: no such list, expected it as in CN-Celeb_f"
    with pytest.raises(InputError, match=message):
        (find_training if "dev" in path else find_evaluation)(corpora[0])


def test_exchanged_and_missing_folders(corpora):
    first, second = corpora
    with pytest.raises(InputError, match=r"CN-Celeb2_flac/dev/dev.lst: no such list"):
        find_training(second, first)
    with pytest.raises(InputError, match=r"spk.lst: no such list, .* CN-Celeb2"):
        find_training(first, first)
    with pytest.raises(InputError, match="cnceleb2_folder: /nowhere: no such folder"):
        find_training(first, "/nowhere")
    with pytest.raises(InputError, match="cnceleb1_folder: None, expected a folder"):
        find_evaluation(None)


@pytest.mark.parametrize("enrolment", ["mean", [], ["average", "max"]])
def test_unknown_protocols(corpora, enrolment):
    with pytest.raises(InputError, match=r"enrolment: .*some of average, con"):
        find_evaluation(corpora[0], enrolment)


def test_names_by_hand():
    assert session_of("id00010/interview-01-001") == "id00010/interview-01"
    assert session_of("id1/live_broadcast-12-7") == "id1/live_broadcast-12"


@pytest.mark.parametrize(
    "name",
    [
        "id00010/interview-01",
        "id00010/interview-01-001-2",
        "id00010/interview-one-001",
        "id00010/interview-01-",
        "id00010/-01-001",
        "id00010/00001",
        "id00010/a/interview-01-001",
        "interview-01-001",
    ],
)
def test_malformed_names(name):
    with pytest.raises(InputError, match=f"'{name}': malformed name, expected SPEAKER"):
        session_of(name)
