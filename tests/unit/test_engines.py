"""Which engine a trainer gets, and what is refused."""

import pytest
import torch
from torch import nn

from velodrome import Trainer
from velodrome.engines import choose_engine
from velodrome.errors import ArgumentError
from velodrome.testing.replayer import Replayer
from velodrome.testing.tiny import tiny_classification, tiny_mlp

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PLAIN = {"compile": False, "device": CPU, "splits": False, "has_step_fn": False, "num_optimizers": 1}


def make(**arguments):
    return Trainer(tiny_mlp(), "adam", loss="cross_entropy", device="cpu", progress=False, **arguments)


def test_auto_on_a_cpu_is_eager_and_explain_says_why():
    lines = make().explain().splitlines()
    assert lines[0].startswith("engine: eager: whole steps are recorded as CUDA graphs, and this trainer runs on cpu")


def test_auto_with_compile_is_compiled():
    choice = choose_engine("auto", **{**PLAIN, "compile": "default"})
    assert (choice.name, choice.compile, choice.why) == ("compiled", "default", "compile='default' was given")


def test_compiled_is_compile_true_and_takes_its_mode_from_compile():
    assert choose_engine("compiled", **PLAIN).compile is True
    assert choose_engine("compiled", **{**PLAIN, "compile": "max-autotune"}).compile == "max-autotune"


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"splits": True}, 'on_oom="split" runs batches in parts'),
        ({"has_step_fn": True}, "what step_fn decides in Python, a recording would decide once"),
        ({"num_optimizers": 2}, "2 optimizers take turns"),
    ],
)
def test_auto_on_cuda_is_eager_where_steps_cannot_be_recorded(changed, why):
    choice = choose_engine("auto", **{**PLAIN, "device": CUDA, **changed})
    assert choice.name == "eager"
    assert choice.why.startswith(why)
    assert choice.line in (f"engine: eager: {choice.why}",)


def test_captured_without_cuda_is_refused_with_the_next_command():
    with pytest.raises(
        ArgumentError, match=r'records CUDA graphs, and this trainer runs on cpu. Use engine="eager".* velodrome doctor'
    ):
        make(engine="captured")


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ArgumentError, match="engine='capture' is unknown. .*captured"):
        make(engine="capture")


def test_something_else_is_no_engine():
    with pytest.raises(ArgumentError, match="engine=3 is no engine. Give one of auto, eager, compiled, captured"):
        make(engine=3)


def test_eager_and_compile_contradict_each_other():
    with pytest.raises(ArgumentError, match="contradict each other. Leave engine out"):
        make(engine="eager", compile=True)


@pytest.mark.parametrize(
    ("changed", "rule"), [({"compile": True}, "leave one of them out"), ({"on_oom": "split"}, "Leave one of them out")]
)
def test_recorded_steps_with_a_compiled_model_or_split_batches_are_refused(changed, rule):
    with pytest.raises(ArgumentError, match=rule):
        make(engine=Replayer(), **changed)


def test_captured_with_compile_is_refused_on_cuda_too():
    with pytest.raises(ArgumentError, match='engine="captured" and compile= were both given'):
        choose_engine("captured", **{**PLAIN, "device": CUDA, "compile": True})


def test_compiling_without_a_compiler_is_refused_before_the_first_batch(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ArgumentError, match="needs a C\\+\\+ compiler, and none was found"):
        make(engine="compiled")


def test_a_trainer_that_only_evaluates_needs_no_engine():
    trainer = Trainer(tiny_mlp(), None, loss="cross_entropy", device="cpu", progress=False, engine=Replayer())
    assert trainer.evaluate(tiny_classification(num_samples=8), batch_size=4)["loss"] > 0


def test_captured_is_explained():
    recorder = Replayer()
    text = make(engine=recorder).explain()
    assert text.startswith("engine: captured: Replayer records steps")
    assert "from step 4 on, in fit: replay the lines of a step that follow, recorded as one" in text


def test_the_recipe_key(tmp_path):
    from velodrome.recipes.schema import TrainTable

    assert TrainTable(epochs=1, engine="eager").engine == "eager"


def test_a_model_in_parts_trains_with_every_engine_named_here():
    torch.manual_seed(0)
    x, y = tiny_classification(num_samples=32)
    results = []
    for engine in ("auto", "eager", Replayer()):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(x.shape[1], 4), nn.ReLU(), nn.Linear(4, 3))
        trainer = Trainer(
            model, "sgd", lr=0.1, loss="cross_entropy", device="cpu", progress=False, engine=engine, seed=0
        )
        results.append(trainer.fit((x, y), batch_size=8, epochs=2).metrics["train/loss"])
    assert results[0] == results[1] == pytest.approx(results[2], rel=1e-5)


def test_what_is_explained_after_a_fall_back_is_what_ran():
    trainer = make(engine=Replayer(), accumulate=2)
    trainer.fit(tiny_classification(num_samples=32), batch_size=8, epochs=1)
    assert trainer.explain().startswith("engine: eager instead of captured: ")
    kept = make(engine=Replayer())
    kept.fit(tiny_classification(num_samples=32), batch_size=8, epochs=1)
    assert kept.explain().startswith("engine: captured: ")
