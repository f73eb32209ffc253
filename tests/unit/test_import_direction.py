"""Imports point one way: every import in src/velodrome, lazy ones included, against docs/architecture.md."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "velodrome"

# The picture of docs/architecture.md. A part may import itself, the errors, and the parts named here.
PARTS = {"loop", "step", "data", "checkpoint", "distributed", "metrics", "record", "callbacks"}
LEAVES = {"seeding", "devices", "report", "monitor", "cores", "free_memory", "control_groups", "linux"}
# The trainer and the files that it is made of.
FRONT_DOOR = {
    "trainer",
    "run",
    "data_in_use",
    "api",
    "averages",
    "optimization",
    "out_of_memory",
    "engines",
    "resume",
    "explain",
    "nonfinite",
    "stopping",
    "transforms",
    "recorded_runs",
}
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    **{leaf: set() for leaf in LEAVES},
    "report": {"monitor"},  # what a metric is, and what is better, is said once
    "control_groups": {"linux"},
    "cores": {"control_groups", "linux"},
    "free_memory": {"control_groups", "linux"},
    **{part: {"report"} for part in PARTS},
    "data": {
        "report",
        "seeding",
        "cores",
        "free_memory",
    },  # what a seed may be is said once, and how many cores and bytes there are
    "distributed": {"report", "cores", "linux"},  # which processes are alive is asked in one way
    "checkpoint": {"report", "monitor"},  # as is what a better value is
    "callbacks": {"report", "monitor"},
    "step": {"report", "monitor"},
    "record": {"report", "linux"},
    **dict.fromkeys(FRONT_DOOR, FRONT_DOOR | PARTS | LEAVES),
    "recipes": FRONT_DOOR | PARTS | LEAVES,
    "advise": {"recipes"} | FRONT_DOOR | PARTS | LEAVES,
    "cli": {"recipes", "advise"} | FRONT_DOOR | PARTS | LEAVES,
    "__main__": {"cli"},
    # Outside the tower: nothing imports the fakes; they may use everything that a user may.
    "testing": FRONT_DOOR | PARTS | LEAVES,
    # `velodrome/__init__.py` names the public surface, so it reaches all but the command line and the fakes.
    "__init__": {"recipes", "advise"} | FRONT_DOOR | PARTS | LEAVES,
}
# A callback is handed the trainer, so it may say so in its annotations; it never imports the module at run time.
ARROWS_FOR_TYPES: dict[str, set[str]] = {"callbacks": {"trainer"}}


@dataclass(frozen=True)
class Import:
    """One velodrome module that a file imports."""

    line: int
    name: str
    for_types: bool  # stands below `if TYPE_CHECKING:`


def imports_of(path: Path, module: str) -> list[Import]:
    """Return every velodrome module that a file imports, at any depth of nesting.

    Imports for types count too: an arrow that only the type checker sees is knowledge all the same.
    Strings handed to `import_module` count where they are literal.
    """
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    for_types = {id(node) for block in blocks for statement in block.body for node in ast.walk(statement)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = from_import(node, package)
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            names = [str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant)]
        else:
            continue
        ours = [name for name in names if name.split(".")[0] == "velodrome"]
        found += [Import(node.lineno, name, id(node) in for_types) for name in ours]
    return found


def from_import(node: ast.ImportFrom, package: str) -> list[str]:
    base = node.module or ""
    if node.level:
        parents = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*parents, base]).rstrip(".")
    # `from velodrome import data` names a part only in its list of names.
    return [f"{base}.{alias.name}" for alias in node.names] if base == "velodrome" else [base]


def part_of(module: str) -> str:
    """Return the folder or file below `velodrome` that a dotted name belongs to."""
    names = module.split(".")
    return names[1] if len(names) > 1 else "__init__"


def wrong_arrows(source: Path) -> list[str]:
    """Return one line for each import that points the wrong way."""
    wrong = []
    for path in sorted(source.rglob("*.py")):
        relative = path.relative_to(source.parent).with_suffix("")
        module = ".".join(relative.parts[:-1] if path.name == "__init__.py" else relative.parts)
        part = part_of(module)
        assert part in ARROWS, f"{path.name} is in {part!r}, which docs/architecture.md and ARROWS do not know"
        for found in imports_of(path, module):
            target = part_of(found.name)
            if target not in ARROWS:
                target = "__init__"  # `from velodrome import fit`: a name, not a part
            if target in {part, "errors"} or target in ARROWS[part]:
                continue
            if target == "__init__" and (part in {"cli", "testing", "recipes"} or found.name.endswith("__version__")):
                continue
            if found.for_types and target in ARROWS_FOR_TYPES.get(part, set()):
                continue
            wrong.append(f"{relative}:{found.line} imports {found.name}: {part} may not know {target}")
    return wrong


def test_every_import_points_along_the_arrows() -> None:
    assert wrong_arrows(SOURCE) == []


@pytest.mark.parametrize(
    ("file", "code", "complaint"),
    [
        ("loop/fit.py", "from velodrome.trainer import Trainer", "loop may not know trainer"),
        ("data/loader.py", "def f():\n    from velodrome.step import losses", "data may not know step"),
        ("step/eager.py", "from ..data.loader import DataLoader", "step may not know data"),
        ("report/plots.py", "import velodrome.loop.fit", "report may not know loop"),
        ("errors.py", "from velodrome import loop", "errors may not know loop"),
        (
            "trainer.py",
            "from importlib import import_module\nimport_module('velodrome.cli.main')",
            "not know cli",
        ),
        (
            "loop/fit.py",
            "TYPE_CHECKING = 0\nif TYPE_CHECKING:\n    import velodrome.recipes",
            "not know recipes",
        ),
        ("callbacks/ema.py", "from velodrome.trainer import Trainer", "callbacks may not know trainer"),
        ("trainer.py", "from velodrome.testing.tiny import tiny_mlp", "trainer may not know testing"),
    ],
)
def test_a_planted_wrong_import_is_found(tmp_path: Path, file: str, code: str, complaint: str) -> None:
    planted = tmp_path / "velodrome" / file
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_text(code, encoding="utf-8")

    found = wrong_arrows(tmp_path / "velodrome")

    assert len(found) == 1
    assert complaint in found[0]


def test_allowed_imports_pass(tmp_path: Path) -> None:
    planted = tmp_path / "velodrome" / "loop" / "fit.py"
    planted.parent.mkdir(parents=True)
    planted.write_text(
        "from velodrome.errors import DataError\nfrom .epochs import Epoch\nimport velodrome.report\n",
        encoding="utf-8",
    )

    assert wrong_arrows(tmp_path / "velodrome") == []


def test_the_picture_in_the_documentation_names_every_part() -> None:
    picture = (SOURCE.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    folders = {path.name for path in SOURCE.iterdir() if path.is_dir() and list(path.glob("*.py"))} - {"testing"}

    assert sorted(name for name in folders if name not in picture) == []
