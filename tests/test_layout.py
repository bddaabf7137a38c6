"""The floor plan: which folder may import which, and what a file may be."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "speechbrain_ext"
# Each imports from those before it only.
FLOORS = (
    *("utils", "features", "lobes", "losses", "schedules", "adaptation"),
    *("scoring", "data", "pruning", "pretrained", "profiling", "inference"),
    *("evaluation", "training", "export", "chains", "app", "cli", "__main__"),
)
FILES = sorted(PACKAGE.rglob("*.py"))
# No index holds the package: by its bare name pip would install a stranger's.
BARE_NAME = re.compile(
    r"install\b.*(?<![\w./-])speechbrain_ext(?![\w./-])"
    r"|^speechbrain_ext *([\[=<>~!@]|$)",  # a line of requirements
    re.M,
)


def area_of(module):
    """speechbrain_ext.data.audio → data; the package itself → nothing."""
    return module.split(".")[1] if "." in module else None


def imports_of(path):
    """Modules of the package that a file imports, wherever in it: (line, name)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module]
            if node.module == "speechbrain_ext":
                names = [f"speechbrain_ext.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "speechbrain_ext" and "__version__" not in name:
                yield node.lineno, name


def test_arrows_point_one_way():
    wrong = []
    for path in FILES:
        own = area_of(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
        if own == "__init__":
            continue
        for line, name in imports_of(path):
            other = area_of(name)
            if other != own and FLOORS.index(other) > FLOORS.index(own):
                wrong.append(f"{path.relative_to(PACKAGE)}:{line} imports {name}")
    assert wrong == []


def test_recipes_import_the_package_and_not_each_other():
    recipes = PACKAGE.parent / "recipes"
    folders = {p.name for p in recipes.iterdir() if p.is_dir()} - {"demo_corpus"}
    scripts = {p.stem for p in recipes.glob("*/*/*.py")}
    for path in recipes.glob("*/*/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom):
                names = [node.module]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                assert name.split(".")[0] not in folders | scripts, path


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_says_what_it_is_and_is_short_enough_to_read(path):
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "no docstring"
    assert text.count("\n") <= 500


def test_nothing_installs_by_the_bare_name():
    for line in ("pip install 'speechbrain_ext[app]'", "\nspeechbrain_ext[app]\n"):
        assert BARE_NAME.search(line)
    root, found = PACKAGE.parent, []
    folders = ("speechbrain_ext", "recipes", "docs", "hparams_templates", "benchmarks")
    paths = [path for name in folders for path in (root / name).rglob("*.*")]
    kinds = (".py", ".md", ".txt", ".yaml")
    paths = [path for path in paths if path.suffix in kinds and path.is_file()]
    for path in [root / "README.md", root / "Makefile", *paths]:
        text = path.read_text(encoding="utf-8")
        found += [f"{path}: {match[0]}" for match in BARE_NAME.finditer(text)]
    assert found == []
