"""JSON compared with a schema: one line that names file, key, value, expectation."""

import hashlib
import json

import pytest

from speechbrain_ext.utils.errors import InputError
from speechbrain_ext.utils.files import read_json, sha256, write_json


def positive(value):
    """a number above 0

    The message takes the first line alone.
    """
    return value > 0


SCHEMA = {
    "format": "a format",
    "version": 1,
    "names": [str],
    "rate": positive,
    "epoch": (int, None),
    "inner": {"mean": float, "wide?": bool},
    "stage?": str,
}
GOOD = {
    "format": "a format",
    "version": 1,
    "names": ["a", "b"],
    "rate": 0.5,
    "epoch": None,
    "inner": {"mean": 2},
}


def written(tmp_path, values):
    path = tmp_path / "values.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def refusal(path, **options):
    with pytest.raises(InputError) as refused:
        read_json(path, SCHEMA, **options)
    message = str(refused.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_what_fits_is_returned(tmp_path):
    path = tmp_path / "values.json"
    write_json(path, GOOD)
    assert read_json(path, SCHEMA) == read_json(path, SCHEMA, others=False) == GOOD
    full = {**GOOD, "epoch": 3, "stage": "x", "inner": {"mean": 0.5, "wide": True}}
    assert read_json(written(tmp_path, full), SCHEMA, others=False) == full


@pytest.mark.parametrize(
    ("values", "culprit", "seen", "expected"),
    [
        ({"format": "b"}, "format", "'b'", "'a format'"),
        ({"version": True}, "version", "True", "1"),
        ({"names": "ab"}, "names", "'ab'", "a list"),
        ({"names": ["a", 3]}, "names[1]", "3", "text"),
        ({"rate": 0}, "rate", "0", "a number above 0"),
        ({"rate": "fast"}, "rate", "'fast'", "a number above 0"),
        ({"epoch": False}, "epoch", "False", "a whole number or null"),
        ({"epoch": 1.0}, "epoch", "1.0", "a whole number or null"),
        ({"inner": [1]}, "inner", "[1]", "names and values"),
        ({"inner": {"mean": True}}, "inner.mean", "True", "a number"),
        ({"inner": {"mean": 1, "wide": 1}}, "inner.wide", "1", "true or false"),
        ({"stage": None}, "stage", "None", "text"),
    ],
)
def test_a_value_that_does_not_fit(tmp_path, values, culprit, seen, expected):
    message = refusal(written(tmp_path, {**GOOD, **values}))
    assert f"{culprit} is {seen}, expected {expected}" in message


def test_a_long_value_is_shortened(tmp_path):
    message = refusal(written(tmp_path, {**GOOD, "names": list(range(10_000))}))
    assert "names[0] is 0" in message
    message = refusal(written(tmp_path, {**GOOD, "version": "x" * 10_000}))
    assert len(message) < 300 + len(str(tmp_path))


@pytest.mark.parametrize("key", [key for key in SCHEMA if not key.endswith("?")])
def test_a_missing_key(tmp_path, key):
    values = {name: value for name, value in GOOD.items() if name != key}
    message = refusal(written(tmp_path, values), what="a calibration")
    assert f"no {key}, expected a calibration" in message


def test_a_missing_key_inside_another(tmp_path):
    assert "no inner.mean" in refusal(written(tmp_path, {**GOOD, "inner": {}}))


@pytest.mark.parametrize(
    ("values", "culprit"),
    [({"epohc": 3}, "epohc"), ({"inner": {"mean": 1.0, "max": 2}}, "inner.max")],
)
def test_other_keys_are_refused_on_demand(tmp_path, values, culprit):
    path = written(tmp_path, {**GOOD, **values})
    assert read_json(path, SCHEMA) == {**GOOD, **values}
    assert f"{culprit}, expected nothing but" in refusal(path, others=False)


@pytest.mark.parametrize(
    ("content", "culprit"),
    [
        (b"", "Expecting value"),
        (b'{"format": "a for', "Unterminated string"),
        (b"<!DOCTYPE html>", "Expecting value"),
        (b'{"rate": "\xff"}', "utf-8"),
        (b'{"rate": NaN}', "NaN"),
        (b'{"rate": -Infinity}', "-Infinity"),
        (b'{"rate": 1e999}', "1e999"),
        (b'{"rate": 1, "epoch": 2, "rate": 3}', "'rate' stands twice"),
        (b"[" * 100_000, "recursion"),
        (b"[1, 2]", "[1, 2], expected names and values"),
        (b"null", "None, expected names and values"),
    ],
)
def test_no_json(tmp_path, content, culprit):
    path = tmp_path / "values.json"
    path.write_bytes(content)
    assert culprit in refusal(path)


def test_a_file_that_is_not_there(tmp_path):
    assert "No such file" in refusal(tmp_path / "gone.json")
    assert "expected a marker" in refusal(tmp_path / "gone.json", what="a marker")
    assert "directory" in refusal(tmp_path)


@pytest.mark.parametrize("size", [0, 3, (1 << 22) + 1])
def test_sha256(tmp_path, size):
    path = tmp_path / "bytes"
    path.write_bytes(b"x" * size)
    assert sha256(path) == hashlib.sha256(b"x" * size).hexdigest()
