"""Command lines and YAML files: what they mean, and one line for what is wrong."""

import sys
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from pydantic import NonNegativeInt
from speechbrain.core import RunOptions

from speechbrain_ext.utils.config import (
    load_run,
    load_yaml,
    parse_overrides,
    split_words,
)
from speechbrain_ext.utils.errors import InputError

FILE = """\
folder: results/one # a comment
save: !ref <folder>/save
rate: 0.001
count: 4
flag: False
numbers: [2.0, 3.0]
words: [a, b]
nothing: null
section: {depth: 2, inner: {name: x, low: 1.5}}
linear: !new:torch.nn.Linear
    in_features: !ref <count>
    out_features: 2
"""


def read(
    *,
    save,
    rate,
    numbers,
    linear,
    words=None,
    section=None,
    nothing=None,
    flag=True,
    count=0,
    **options,
):
    """What a script is: its parameters are the keys that it reads."""


def read_more(*, save, size=3, precision="bf16", mode="fast", pair=(1.0, 2.0), **rest):
    """Its defaults need not be in the file."""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(FILE)
    return path


def values(file, *words):
    """The hparams after overriding."""
    return load_run([str(file), *words], read)[3]


def complaint(file, *words, function=read):
    with pytest.raises(InputError) as caught:
        load_run([str(file), *words], function)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- what an override means ----------------------------------------------------------


def test_without_overrides_the_file_counts(file):
    path, run_opts, overrides, hparams = load_run([str(file)], read)
    assert path == str(file)
    assert overrides == {}
    assert hparams["save"] == "results/one/save"
    assert hparams["section"]["inner"] == {"name": "x", "low": 1.5}
    assert run_opts.device == "cpu"


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_bars_are_for_terminals(file, monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert load_run([str(file)], read)[1].noprogressbar is not terminal


@pytest.mark.parametrize(
    "text",
    [
        "a=b",
        "/data/my run",
        "/data/run #2",
        "a: b",
        "host:8080",
        "2026-11-21",
        "1e3",
        "12",
        "2026_11_21",
        "null",
        "yes",
        "-",
        "*star",
        "@at",
        "50%",
        "ä/λ",
        "back\\slash",
        "a, b",
        "x{y}",
    ],
)
def test_a_text_stays_as_it_was_typed(file, text):
    assert values(file, f"--folder={text}")["save"] == f"{text}/save"
    assert values(file, "--folder", text)["save"] == f"{text}/save"


def test_quotes_are_yaml(file):
    assert values(file, "--folder='[a] b'")["save"] == "[a] b/save"
    assert values(file, '--folder="x"')["save"] == "x/save"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E-5", 1e-5),
        ("1.0e-5", 1e-5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-2", -2),
        ("+3.5", 3.5),
        ("1e30", 1e30),
        ("7", 7),
    ],
)
def test_numbers_are_numbers(file, text, value):
    found = values(file, f"--rate={text}")["rate"]
    assert found == value
    assert type(found) in (int, float)
    found = values(file, f"--numbers=[{text}, 1]")["numbers"]
    assert [float(x) for x in found] == [value, 1.0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("null", None),
        ("~", None),
        ("None", None),
        ("True", True),
        ("false", False),
        ("12", 12),
        ("1e-5", 1e-5),
        ("word", "word"),
        ("2026-11-21", "2026-11-21"),
        ("1_000", "1_000"),
        ("10:30", "10:30"),
        ("[a, b c]", ["a", "b c"]),
        ("{a: 1}", {"a": 1}),
        ("[]", []),
        ("'12'", "12"),
        ("0012", "0012"),
        ("[0012, 12, 1.05, {a: 007}]", ["0012", 12, 1.05, {"a": "007"}]),
        ("{a: 0012, b: [08, 0]}", {"a": "0012", "b": ["08", 0]}),
        ("!ref <count>", 4),
        ("!new:torch.nn.Identity", torch.nn.Identity),
    ],
)
def test_where_the_file_says_nothing_the_text_decides(file, text, value):
    found = values(file, f"--nothing={text}")["nothing"]
    if isinstance(value, type):
        assert isinstance(found, value)
    else:
        assert found == value
        assert type(found) is type(value) or not isinstance(value, (bool, int, str))


def test_lists_and_nulls(file):
    assert values(file, "--words=[/a b/c, d]")["words"] == ["/a b/c", "d"]
    assert values(file, "--words=/only/one")["words"] == "/only/one"
    assert values(file, "--words=null")["words"] is None
    typed = ["0012", "12", "1e5", "2026-11-21", "true", "1_0"]  # as the file's are
    assert values(file, f"--words=[{', '.join(typed)}]")["words"] == typed
    assert values(file, "--count=08")["count"] == 8
    assert values(file, "--section=null")["section"] is None
    assert values(file, "--flag=True")["flag"] is True


def test_nested_keys_change_one_value(file):
    words = ["--section.inner.low=1e-3", "--section.depth", "5"]
    section = values(file, *words)["section"]
    assert section == {"depth": 5, "inner": {"name": "x", "low": 1e-3}}
    section = values(file, "--section={depth: 7}")["section"]
    assert section == {"depth": 7, "inner": {"name": "x", "low": 1.5}}
    assert values(file, "--linear.out_features=3")["linear"].out_features == 3
    found = values(file, "--section={depth: 7}", "--section.inner.name=1")["section"]
    assert found == {"depth": 7, "inner": {"name": "1", "low": 1.5}}


def test_the_last_of_two_counts(file):
    assert values(file, "--rate=1", "--rate=2")["rate"] == 2


def test_run_options_go_to_speechbrain(file):
    words = ["--noprogressbar", "--max_grad_norm=2.5", "--ckpt_interval_steps", "7"]
    _, run_opts, overrides, _ = load_run([str(file), *words, "--rate=1"], read)
    assert (run_opts.noprogressbar, run_opts.max_grad_norm) == (True, 2.5)
    assert run_opts.ckpt_interval_steps == 7
    assert {"noprogressbar", "max_grad_norm"} <= run_opts.overridden_args
    assert overrides == {"rate": 1}


def test_speechbrain_saves_the_file_with_the_overrides(file, tmp_path):
    import speechbrain as sb

    words = ["--folder=a=b #1", "--rate=1e-5", "--section.inner.low=2"]
    words.append("--nothing={a: {b: 1e-5}}")
    path, _, overrides, _ = load_run([str(file), *words], read)
    sb.create_experiment_directory(str(tmp_path / "out"), path, overrides)
    found = load_yaml(tmp_path / "out/hyperparams.yaml")
    assert found["folder"] == "a=b #1"
    assert found["rate"] == 1e-5
    assert found["section"]["inner"] == {"name": "x", "low": 2}
    assert found["nothing"] == {"a": {"b": 1e-5}}


def test_words_are_split():
    words = ["--a=b=c", "--d", "e f", "--noprogressbar", "--g=", "--device", "cpu"]
    options, overrides = split_words(words)
    assert options == ["--noprogressbar", "--device=cpu"]
    assert overrides == {"a": "b=c", "d": "e f", "g": ""}
    assert parse_overrides("f", {"a": "x"}, {"a": "b=c"}) == {"a": "b=c"}


# ---- devices and precision -----------------------------------------------------------


def test_without_a_gpu_the_cpu_is_taken_in_fp32(file, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with open(file, "a") as more:
        more.write("precision: bf16\n")
    _, run_opts, _, hparams = load_run([str(file)], read)
    assert (run_opts.device, run_opts.distributed_backend) == ("cpu", "gloo")
    assert hparams["precision"] == "fp32"
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for has_bf16 in (True, False):
        monkeypatch.setattr(
            torch.cpu, "_is_avx512_bf16_supported", lambda has=has_bf16: has
        )
        for words in (["--eval_precision", "fp16"], ["--auto_mix_prec"]):
            assert "fp16 needs a GPU" in complaint(file, *words)
        words = ["--precision=bf16"]
        if has_bf16:
            assert values(file, *words)["precision"] == "bf16"
        else:
            assert "precision: bf16 needs a GPU" in complaint(file, *words)
    for name in ("cuda", "cuda:0", "cuda:7"):
        assert "0 GPU(s)" in complaint(file, f"--device={name}")


def test_8_bits_are_for_what_takes_them(file):
    kinds = Literal["fp32", "int8"]

    def evaluate(*, save, eval_precision: kinds = "fp32"):
        """A script that takes them; ``read_more`` does not."""

    word = "--eval_precision=int8"
    file.write_text("save: x\n")
    run_opts, hparams = load_run([str(file), word], evaluate)[1::2]
    assert hparams["eval_precision"] == run_opts.eval_precision == "int8"
    assert "no precision to train with" in complaint(file, word, function=read_more)
    file.write_text("save: x\neval_precision: int8\n")
    hparams = load_run([str(file), "--device=cpu"], evaluate)[3]
    assert hparams["eval_precision"] == "int8"
    assert "eval_precision: 'int8'" in complaint(file, function=read_more)


def test_with_gpus_the_file_and_the_command_line_count(file, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated: True)
    with open(file, "a") as more:
        more.write("eval_precision: bf16\n")
    _, run_opts, _, hparams = load_run([str(file)], read)
    assert (run_opts.device, run_opts.distributed_backend) == (None, "nccl")
    assert hparams["eval_precision"] == "bf16"
    assert values(file, "--eval_precision=fp32")["eval_precision"] == "fp32"
    assert "this machine has 2 GPU(s)" in complaint(file, "--device=cuda:2")
    assert load_run([str(file), "--device=cpu"], read)[1].distributed_backend == "gloo"
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert "process 2 of this machine has no GPU" in complaint(file)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert load_run([str(file), "--device=cuda"], read)[1].device is None
    for name in ("cuda:0", "cuda:1"):  # all processes would read it
        assert "the GPU of its own number" in complaint(file, f"--device={name}")


def test_a_gpu_without_bf16_is_refused_it(file, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated: emulated)
    expected = "precision: bf16, but this GPU has no such products, expected --precisi"
    assert expected in complaint(file, "--precision=bf16")
    assert values(file, "--precision=fp16")["precision"] == "fp16"
    with open(file, "a") as more:
        more.write("precision: bf16\n")
    assert expected in complaint(file)


@pytest.mark.parametrize("key", ["compile", "jit"])
def test_whole_modules_are_not_compiled(file, key):
    expected = f"{key}: not supported, expected False"
    assert expected in complaint(file, f"--{key}")
    with open(file, "a") as more:
        more.write(f"{key}: True\n")
    assert expected in complaint(file)


def test_one_interval_of_checkpoints_counts(file):
    with open(file, "a") as more:
        more.write("ckpt_interval_minutes: 30\n")
    assert values(file)["ckpt_interval_minutes"] == 30
    steps = "--ckpt_interval_steps=5"
    assert values(file, steps)["ckpt_interval_minutes"] == 0
    assert "expected one" in complaint(file, steps, "--ckpt_interval_minutes=3")


# ---- what is wrong -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--ratte=1"], "--ratte: no such key in * did you mean 'rate'?"),
        (["--inner.low=1"], "did you mean 'section.inner.low'?"),
        (["--depth=1"], "did you mean 'section.depth'?"),
        (["--linear.out=3"], "--linear.out: no such key"),
        (
            ["--linear=!new:torch.nn.ReLU {inplace: True}", "--linear.out_features=3"],
            "--linear.out_features: no such key",
        ),
        (["--section.width=1"], "--section.width: no such key"),
        (["--rate.x=1"], "--rate.x: no such key"),
        (["--section=null", "--section.depth=1"], "--section.depth: no such key"),
        (["--folder"], "--folder on the command line has no value"),
        (["rate=1"], "'rate=1' on the command line, expected --key=value"),
        (["--"], "no value"),
        (["--numbers={a:1}"], "--numbers={a:1}: expected 'a: 1', a space after"),
        (["--numbers=[1, 2"], "--numbers=[1, 2: not valid YAML"),
        (["--words=[a: b: c]"], "not valid YAML"),
        (["--numbers=3"], "--numbers=3: expected a list of numbers"),
        (["--numbers=[a, b]"], "expected a list of numbers"),
        (["--count=4.5"], "--count=4.5: expected a whole number"),
        (["--count=many"], "expected a whole number"),
        (["--count=True"], "expected a whole number"),
        (["--count="], "expected a whole number"),
        (["--rate=fast"], "--rate=fast: expected a number"),
        (["--flag=1"], "--flag=1: expected True or False"),
        (["--flag=yes"], "expected True or False"),
        (["--folder="], "expected a text"),
        (["--folder=[a]"], "expected a text"),
        (["--section=3"], "expected {key: value} or null"),
        (["--max_grad_norm=big"], "argument --max_grad_norm: invalid float value"),
        (["--precision=fp64"], "argument --precision: invalid choice: 'fp64'"),
        (["--noprogressbar=1"], "--noprogressbar: ignored explicit argument '1'"),
        (["--device=gpu"], "--device: device 'gpu', expected cpu, cuda or cuda:0"),
        (["--param_file=y.yaml"], "--param_file: no such key"),
        (["--linear.in_features=-3"], "negative dimension"),
        (["--nothing=!new:torch.nn.Nope"], "names something not installed"),
    ],
)
def test_a_wrong_command_line_is_one_line(file, words, expected):
    found = complaint(file, *words)
    for part in expected.split(" * "):
        assert part in found


@pytest.mark.parametrize("argv", [[], ["--rate=1"], ["-h"]])
def test_no_file(argv):
    with pytest.raises(InputError, match="no hyperparameter file"):
        load_run(argv, read)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            ("rate: 0.001", "rate: 0.001\nrat: 1"),
            "nothing reads the key 'rat'; did you",
        ),
        (("rate: 0.001", "rate: 0.001\nrate: 1"), 'line 4: found duplicate key "rate"'),
        (("rate: 0.001", "rate: !PLACEHOLDER"), "rate must be given: --rate="),
        (
            ("depth: 2", "depth: !PLACEHOLDER "),
            "section.depth must be given: --section.depth=",
        ),
        (("[2.0, 3.0]", "[2.0, 3.0"), "not valid YAML: line"),
        (("flag: False", "\tflag: False"), "not valid YAML: line 5"),
        (("<count>", "<coun>"), "!ref <coun>: no key 'coun'; did you mean 'count'?"),
        (("torch.nn.Linear", "torch.nn.Linea"), "no such class as torch.nn.Linea"),
        (("torch.nn.Linear", "no.such.Thing"), "not installed"),
        (("out_features: 2", "out: 2"), "linear: Linear takes no 'out'"),
        (("out_features: 2", "out_features: two"), "linear.out_features: 'two', exp"),
        (("out_features: 2", "out_features: null"), "linear.out_features: None, exp"),
        (("out_features: 2", "out_features: .inf"), "linear.out_features: inf, exp"),
        (("out_features: 2", "bias: 1"), "linear: Linear: missing a required argument"),
        (("[2.0, 3.0]", "null"), "numbers: None, expected a value"),
        (("[2.0, 3.0]", "[]"), "numbers: [], expected a value"),
        (("out_features: 2", "out_features: !ref <count> / 0"), "division by zero"),
    ],
)
def test_a_wrong_file_is_one_line(file, change, expected):
    assert change[0] in FILE
    file.write_text(FILE.replace(*change, 1))
    found = complaint(file)
    assert expected in found
    assert str(file) in found or "must be given" in found


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not a list of `key: value`"),
        (b"- a\n- b\n", "not a list of `key: value`"),
        (b"just words", "not a list of `key: value`"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"a: \x00", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_mapping(file, content, expected):
    file.write_bytes(content)
    assert expected in complaint(file)


def test_a_missing_file(tmp_path):
    assert "no such hyperparameter file" in complaint(tmp_path / "no.yaml")
    assert "no such hyperparameter file" in complaint(tmp_path)
    with pytest.raises(InputError, match=r"no\.yaml: No such file"):
        load_yaml(tmp_path / "no.yaml")


def test_placeholders_are_filled_by_overrides(file):
    file.write_text(FILE.replace("rate: 0.001", "rate: !PLACEHOLDER"))
    assert values(file, "--rate=0.5")["rate"] == 0.5
    assert "must be given" in complaint(file, "--rate=")


def test_keys_of_speechbrain_and_keys_for_their_effect_are_known(file):
    with open(file, "a") as more:
        more.write("max_grad_norm: 1.0\n__seed: !apply:math.sqrt [4]\n")
    assert values(file)["max_grad_norm"] == 1.0
    assert "max_grad_norm" in RunOptions().as_dict()


# ---- keys and parameters -------------------------------------------------------------


def test_a_missing_key_is_one_line(file):
    file.write_text(FILE.replace("rate: 0.001\n", ""))
    assert f"{file}: no key 'rate', expected a file for read: save, " in complaint(file)


def test_a_script_gets_what_file_and_command_line_say_and_no_more(file):
    file.write_text("save: x\nonly_referred: 1\nother: !ref <only_referred>\n")
    assert "nothing reads the key 'other'" in complaint(file, function=read_more)
    file.write_text("save: x\nmax_grad_norm: 2.0\n")
    hparams = load_run([str(file)], read_more)[3]
    assert hparams == {"save": "x", "max_grad_norm": 2.0, "precision": "fp32"}


def test_a_parameter_with_a_default_may_be_set_though_the_file_has_it_not(file):
    file.write_text("save: x\n")
    words = ["--size=7", "--mode=2026-11-21", "--pair=[3, 4]"]
    hparams = load_run([str(file), *words], read_more)[3]
    assert (hparams["size"], hparams["mode"]) == (7, "2026-11-21")
    assert hparams["pair"] == [3, 4]
    for word, expected in (
        ("--size=big", "a whole number"),
        ("--pair=[a]", "a list of numbers"),
        ("--sizes=3", "did you mean 'size'?"),
    ):
        assert expected in complaint(file, word, function=read_more)


def typed(
    *,
    save: str,
    rate: float,
    linear: torch.nn.Module,
    count: NonNegativeInt = 1,
    numbers: tuple[float, float] = (1.0, 2.0),
    words: list[str] = (),
    section: dict | None = None,
    nothing: Callable | None = None,
    flag: bool | Literal["both"] = True,
    **options,
):
    """Its annotations say what it takes."""


def test_annotations_that_are_kept(file):
    assert load_run([str(file)], typed)[3]["numbers"] == [2.0, 3.0]


def of_voices(*, save, others: list[str] | str | None = ()):
    """Its annotation says that these are texts, whatever they look like."""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[0012, 13]", ["0012", "13"]),
        ("[1e5, 2026-11-21]", ["1e5", "2026-11-21"]),
        ("0012", "0012"),
        ("13", "13"),
        ("null", None),
        ("[]", []),
    ],
)
def test_a_list_of_texts_by_its_annotation(file, text, value):
    file.write_text("save: x\n")
    found = load_run([str(file), f"--others={text}"], of_voices)[3]["others"]
    assert found == value
    file.write_text("save: x\nothers: [a, 12]\n")
    assert "others: 12, expected a text" in complaint(file, function=of_voices)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("rate: 0.001", "rate: fast"), "rate: 'fast', expected a number"),
        (("rate: 0.001", "rate: .nan"), "rate: nan, expected a finite number"),
        (("rate: 0.001", "rate: True"), "rate: True, expected a number"),
        (
            ("count: 4", "count: 4.5"),
            "linear.in_features: 4.5, expected a whole number",
        ),
        (("[2.0, 3.0]", "fast"), "numbers: 'fast', expected a list"),
        (("[2.0, 3.0]", "[2.0]"), "numbers: "),
        (("[2.0, 3.0]", "[2.0, fast]"), "numbers: 'fast', expected a number"),
        (("words: [a, b]", "words: a"), "words: 'a', expected a list"),
        (("section: {", "section: [{}] #"), "section: [{}], expected {key: value}"),
        (("nothing: null", "nothing: 3"), "nothing: 3, expected an object (!new: or"),
        (("flag: False", "flag: one"), "flag: 'one', expected True or False or 'both'"),
        (
            ("flag: False", "precision: fp8"),
            "precision: 'fp8', expected 'fp32', 'fp16'",
        ),
        (("flag: False", "max_grad_norm: big"), "max_grad_norm: 'big', expected a num"),
    ],
)
def test_annotations_that_are_not_kept(file, change, expected):
    assert change[0] in FILE
    file.write_text(FILE.replace(*change, 1))
    found = complaint(file, function=typed)
    assert found.startswith(f"{file}: ")
    assert expected in found


def test_an_object_in_the_place_of_its_class_and_the_reverse(file):
    file.write_text(FILE.replace("!new:", "!name:"))
    assert "linear: " in complaint(file, function=typed)
    assert "--section.x: no such" in complaint(file, "--section.x=1", function=typed)
    file.write_text(FILE.replace("section: {", "# {"))
    assert "--section={x: …}" in complaint(file, "--section.x=1", function=typed)


OBJECTS = (
    FILE
    + """\
dropout: !name:torch.nn.Dropout
    p: 0.5
both: {dropout: !ref <dropout>, other: !name:torch.nn.ReLU {inplace: False}}
"""
)


def objects(*, both, dropout=None, save, rate, numbers, words, section, linear, **rest):
    """Reads all of OBJECTS."""


def test_a_parameter_of_an_object_may_be_set_though_the_file_has_it_not(file):
    file.write_text(OBJECTS.replace("flag: False\n", "").replace("nothing: null\n", ""))

    def load(*words):
        return load_run([str(file), *words], objects)[3]

    assert load("--linear.bias=False")["linear"].bias is None
    assert load("--bias=False")["linear"].bias is None  # the one object that takes it
    assert load("--p=0.25")["dropout"]().p == 0.25
    assert load("--out_features=5")["linear"].out_features == 5
    found = complaint(file, "--inplace=True", function=objects)
    assert "--both.other.inplace" in found
    assert "--dropout.inplace" in found
    assert "expected True or False" in complaint(file, "--bias=3", function=objects)


def test_null_suits_a_parameter_whose_default_is_none(file):
    file.write_text("save: x\nlinear: !new:torch.nn.Linear\n    in_features: 2\n")
    text = "    out_features: 3\n    device: cpu\n"
    file.write_text(file.read_text() + text)

    def function(*, save, linear):
        """Reads both."""

    for word in ("--linear.device=null", "--device=cpu"):
        assert load_run([str(file), word], function)[3]["linear"].out_features == 3


def test_a_tag_on_the_command_line_replaces_the_file_s(file):
    word = "--linear=!new:torch.nn.Embedding {num_embeddings: 2, embedding_dim: 3}"
    assert type(values(file, word)["linear"]) is torch.nn.Embedding
    word = "--linear=!new:torch.nn.Linear {in_features: !ref <count>, out_features: 3}"
    assert values(file, word)["linear"].weight.shape == (3, 4)
    word = "--linear=!new:torch.nn.Nope {in_features: 2}"
    assert "names something not installed" in complaint(file, word)
