"""Every line of the loop that may wait for the device says why: `# SYNC: ...`.

As far as reading the source can tell: methods that give a tensor's values to Python, and numbers or truth made of a reduction.
A message that is raised is left out: the run is over.
"""

import ast
from pathlib import Path

import pytest

import velodrome

SOURCE = Path(velodrome.__file__).parent
FILES = [
    *(
        file
        for folder in ("loop", "step", "metrics", "data", "run")
        for file in sorted((SOURCE / folder).rglob("*.py"))
    ),
    SOURCE / "trainer.py",
]
READS = {"item", "tolist", "cpu", "numpy", "nonzero"}
REDUCTIONS = {"all", "any", "argmax", "count_nonzero", "isfinite", "isnan", "max", "mean", "min", "norm", "prod", "sum"}
TRUTHS = {"torch.equal", "torch.allclose", "torch.is_nonzero"}


def waits(source):
    """Return the numbers of the lines that may wait."""
    found = set()

    def visit(node):
        if isinstance(node, ast.Raise):
            return
        if isinstance(node, ast.Call) and is_read(node):
            found.add(node.func.end_lineno)
        if isinstance(node, (ast.If, ast.While, ast.IfExp)) and is_reduction(node.test):
            found.add(node.test.lineno)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(source))
    return sorted(found)


def moves(source):
    """Return the numbers of the lines that copy something to a device and wait until it has been taken."""

    def waits_for_copy(call):
        arguments = [ast.unparse(each) for each in call.args] + [
            f"{each.arg}={ast.unparse(each.value)}" for each in call.keywords
        ]
        is_move = (
            isinstance(call.func, ast.Attribute)
            and call.func.attr == "to"
            and any("device" in each for each in arguments)
        )
        return is_move and "non_blocking=True" not in arguments

    return sorted(
        node.func.end_lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and waits_for_copy(node)
    )


def is_read(call):
    if isinstance(call.func, ast.Attribute) and call.func.attr in READS:
        return True
    if ast.unparse(call.func) in TRUTHS:
        return True
    is_number = isinstance(call.func, ast.Name) and call.func.id in ("bool", "float", "int")
    return is_number and any(is_reduction(argument) for argument in call.args)


def is_reduction(node):
    while isinstance(node, (ast.Subscript, ast.UnaryOp)):
        node = node.value if isinstance(node, ast.Subscript) else node.operand
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    return node.func.attr in REDUCTIONS and ast.unparse(node.func.value) != "math"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(SOURCE).as_posix())
def test_every_wait_says_why(file):
    source = file.read_text(encoding="utf-8")
    lines = source.splitlines()
    unmarked = [
        f"{number}: {lines[number - 1].strip()}" for number in waits(source) if "# SYNC: " not in lines[number - 1]
    ]
    assert not unmarked


@pytest.mark.parametrize("file", sorted((SOURCE / "data" / "transforms").glob("*.py")), ids=lambda file: file.name)
def test_every_copy_of_a_transform_says_why_it_may_wait(file):
    """Transforms run in every batch, on the device; what they send there comes from memory that is not pinned."""
    source = file.read_text(encoding="utf-8")
    lines = source.splitlines()
    assert [lines[number - 1] for number in moves(source) if "# SYNC: " not in lines[number - 1]] == []


@pytest.mark.parametrize("line", ["x.to(device)", "x.to(device=d)", "x.to(y.device, non_blocking=False)"])
def test_negative_control_a_copy_that_waits_is_found(line):
    assert moves(f"z = 0\n{line}") == [2]


def test_copies_that_do_not_wait_and_conversions_are_left_alone():
    assert moves("x.to(device, non_blocking=True)\nx.to(torch.int64)") == []


@pytest.mark.parametrize(
    "line",
    [
        "x.item()", "x.sum().tolist()", "y = x.cpu()", "x.numpy()", "x.nonzero()[0]", "bool(x.any())", "float(x.mean())",
        "int(x.argmax(1)[0])", "if torch.isfinite(x): pass", "if not x.all(): pass", "torch.equal(x, y)",
    ],
)  # fmt: skip
def test_negative_control_each_kind_of_wait_is_found(line):
    assert waits(f"z = 0\n{line}") == [2]


@pytest.mark.parametrize(
    "line",
    ["raise ValueError(x.item())", "int(text)", "if x.ndim: pass", "torch.stack(x).sum()", "if math.isfinite(x): pass"],
)
def test_what_does_not_wait_is_left_alone(line):
    assert waits(line) == []
