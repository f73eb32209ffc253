"""Law 9: the body of `fit`, pasted into a script, gives the same bits and the same history."""

import ast
import copy
import inspect
import textwrap

import pytest
import torch
from torch import nn

import velodrome
from velodrome import Trainer
from velodrome.loop import fit as fit_module
from velodrome.loop.fit import fit

MAX_LINES = 30
TIMES = ("seconds", "samples_per_s")


def body_of_fit():
    """Return fit's statements as a script; the names of its arguments are the script's variables."""
    function = ast.parse(textwrap.dedent(inspect.getsource(fit))).body[0]
    assert isinstance(function, ast.FunctionDef)
    statements = [
        node for node in function.body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    ]
    last = statements[-1]
    assert isinstance(last, ast.Return)
    assert last.value is not None
    target = ast.Name("result", ast.Store())
    script = ast.Module([*statements[:-1], ast.Assign([target], last.value)], [])
    return ast.unparse(ast.fix_missing_locations(script)), statements


def make_data(num, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, 6, generator=generator), torch.randint(0, 3, (num,), generator=generator)


def make_trainer(model):
    return Trainer(
        model, "adam", lr=0.01, loss="cross_entropy", metrics=["accuracy"], seed=5, device="cpu", progress=False
    )


def without_times(history):
    return [{key: value for key, value in row.items() if key not in TIMES} for row in history]


@pytest.mark.parametrize("budget", [{"epochs": 3}, {"steps": 8}, {"epochs": 2, "steps": 100}])
@pytest.mark.parametrize("has_val", [True, False])
def test_body_of_fit_as_a_script_gives_the_same_bits_and_history(budget, has_val):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))
    scripted = copy.deepcopy(model)
    data, val = make_data(23, 1), make_data(9, 2) if has_val else None

    expected = make_trainer(model).fit(
        velodrome.DataLoader(data, 4, shuffle=True), val, eval_batch_size=4 if has_val else None, **budget
    )
    script, _ = body_of_fit()
    space = {
        "trainer": make_trainer(scripted),
        "train": velodrome.DataLoader(data, 4, shuffle=True),
        "val": velodrome.DataLoader(val, 4) if has_val else None,
        **dict.fromkeys(("epochs", "steps", "seconds")),
        **budget,
    }
    exec(script, space)

    for (name, one), other in zip(model.state_dict().items(), scripted.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert without_times(space["result"].history) == without_times(expected.history)
    assert space["result"].stop_reason is expected.stop_reason


def test_negative_control_a_script_without_its_step_changes_nothing_and_is_refused():
    script, _ = body_of_fit()
    model = nn.Linear(6, 3)
    before = model.weight.detach().clone()
    space = {"trainer": make_trainer(model), "train": velodrome.DataLoader(make_data(8, 1), 4), "val": None}
    space |= {"epochs": 1, "steps": None, "seconds": None}
    step = "trainer.step(outcome.loss, items=outcome.items)"
    assert step in script
    with pytest.raises(velodrome.errors.ArgumentError, match=r"trainer\.step\(loss\) was never called"):
        exec(script.replace(step, "pass"), space)
    assert torch.equal(model.weight, before)


def test_fit_stays_on_one_screen():
    _, statements = body_of_fit()
    lines = (statements[-1].end_lineno or 0) - statements[0].lineno + 1
    assert lines <= MAX_LINES


def test_fit_uses_only_public_names_of_the_trainer():
    script, _ = body_of_fit()
    attributes = {node.attr for node in ast.walk(ast.parse(script)) if isinstance(node, ast.Attribute)}
    assert not any(name.startswith("_") for name in attributes)
    loaded = {node.id for node in ast.walk(ast.parse(script)) if isinstance(node, ast.Name)}
    arguments = {"trainer", "train", "val", "epochs", "steps", "seconds"}
    assert loaded <= arguments | {"epoch", "batch", "outcome", "result"}


class Recorded:
    """Forwards everything to a trainer and writes down, in order, what the loop asked for."""

    def __init__(self, trainer, events):
        self._trainer, self._events = trainer, events

    def epochs(self, *args, **kwargs):
        for epoch in self._trainer.epochs(*args, **kwargs):
            self._events.append("for every epoch")
            yield RecordedEpoch(epoch, self._events)

    def __getattr__(self, name):
        self._events.append(name)
        return getattr(self._trainer, name)


class RecordedEpoch:
    def __init__(self, epoch, events):
        self._epoch, self._events = epoch, events

    def train(self, data):
        for batch in self._epoch.train(data):
            self._events.append("for every batch of the training data")
            yield batch

    def evaluate(self, data):
        for batch in self._epoch.evaluate(data):
            self._events.append("for every batch of the validation data")
            yield batch


def steps_in_docstring():
    """Return the words of the pseudocode in the order in which it has them, a line with two calls as two."""
    pseudocode = (fit_module.__doc__ or "").split("```")[1]
    words = []
    for line in pseudocode.splitlines()[1:]:
        text = line.strip()
        if text.startswith("for every"):
            words.append(text.rstrip(":"))
        elif text:
            words.extend(call.strip() for call in text.split("  ")[0].split(","))
    return words


def test_pseudocode_in_the_docstring_has_the_order_of_the_events():
    events = []
    trainer = make_trainer(nn.Linear(6, 3))
    one_batch = velodrome.DataLoader(make_data(4, 1), 4)
    fit(Recorded(trainer, events), one_batch, velodrome.DataLoader(make_data(4, 2), 4), epochs=1)
    # The evaluation's `trainer.measure(trainer.forward(batch))` looks `measure` up before it calls `forward`.
    assert [*events[:-3], *sorted(events[-3:-1])] == steps_in_docstring()
    assert events[-1] == "result"
