"""Error rate against size: what results.json says stands in table and picture."""

import json

import pytest
from tiny_pretrained import save_tiny

from speechbrain_ext.evaluation.sizes import error_by_size, write_error_by_size
from speechbrain_ext.utils.errors import InputError


def write_results(folder, model, systems, name="vox1_o"):
    folder.mkdir()
    lists = [{"list": f"/data/{name}.txt", "systems": systems}]
    content = {"pretrained_folder": str(model), "lists": lists}
    (folder / "results.json").write_text(json.dumps(content))
    return folder


def system(name, percent, interval=None):
    intervals = {"intervals_95": {"eer": interval}} if interval else {}
    return {"system": name, "eer_percent": percent, **intervals}


@pytest.fixture
def model(tmp_path):
    return save_tiny(tmp_path / "final")


def test_intervals_are_in_percent_as_the_rate_is(tmp_path, model):
    folders = [
        write_results(tmp_path / name, model, [system("cosine", rate, interval)])
        for name, rate, interval in (("a", 4.0, [0.03, 0.05]), ("b", 5.0, [0.04, 0.07]))
    ]
    found = error_by_size(folders)
    rates = [row["eer"]["vox1_o"] for row in found["models"]]
    assert [rate["percent"] for rate in rates] == [4.0, 5.0]
    assert rates[0]["interval_95"] == pytest.approx([3.0, 5.0])
    table = write_error_by_size(tmp_path, found)
    assert "4.00 (3.00–5.00)" in table
    assert (tmp_path / "sizes.png").read_bytes().startswith(b"\x89PNG")


def test_the_last_system_that_all_have(tmp_path, model):
    first = [system("cosine", 4.0), system("as_norm", 3.0), system("llr", 2.0)]
    folders = [
        write_results(tmp_path / "a", model, first),
        write_results(tmp_path / "b", model, first[:2]),
    ]
    assert error_by_size(folders)["system"] == "as_norm"
    assert error_by_size(folders, "cosine")["system"] == "cosine"
    with pytest.raises(InputError, match="system 'llr', expected one of cosine, as_n"):
        error_by_size(folders, "llr")


def test_models_of_other_lists_are_not_compared(tmp_path, model):
    folders = [
        write_results(tmp_path / name, model, [system("cosine", 4.0)], name)
        for name in ("a", "b")
    ]
    with pytest.raises(InputError, match="2 have no list in common, expected one"):
        error_by_size(folders)


def test_models_are_timed_where_it_is_asked_for(tmp_path, model):
    folders = [
        write_results(tmp_path / name, model, [system("cosine", 4.0)]) for name in "ab"
    ]
    found = error_by_size(folders, seconds=0.5)
    assert all(row["seconds"] > 0 for row in found["models"])
    table = write_error_by_size(tmp_path, found)
    assert "| G MACs of 1 s | ms for 0.5 s | EER % on vox1_o |" in table
    assert "in turns" in (tmp_path / "sizes.md").read_text()
