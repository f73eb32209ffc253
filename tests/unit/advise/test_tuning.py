"""Tuning on small recipes of whose speed something is known."""

from __future__ import annotations

import errno
import itertools
import json
import os
import sys
from dataclasses import asdict, replace

import pytest
import torch

from velodrome.advise.tuning.aside import digest_of
from velodrome.advise.tuning.bench import Bench
from velodrome.advise.tuning.facts import BenchFacts, Round
from velodrome.advise.tuning.measure import Agreement, Rounds, agree, take_turns
from velodrome.advise.tuning.rehearsal import Rehearsal
from velodrome.advise.tuning.remote import RemoteBench, TrialError
from velodrome.advise.tuning.search import Search
from velodrome.advise.tuning.setup import Change, Setup
from velodrome.advise.tuning.techniques import find_techniques
from velodrome.advise.tuning.writing import choose_path, write_tuned_recipe
from velodrome.data.threads import usable_cores
from velodrome.errors import ArgumentError, DataError, RefusedError, VelodromeError
from velodrome.recipes.build import build
from velodrome.recipes.read import load_recipe

MODULE = """\
import time
import torch
from torch import nn
from torch.utils.data import Dataset


def shapes(num=120):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num, 16, generator=generator)
    y = x[:, :3].argmax(1)
    return (x[:100], y[:100]), (x[100:], y[100:])


class Slow(Dataset):
    '''Forty milliseconds a sample, spent waiting: as many workers, as many times faster.'''

    def __init__(self, wait_s):
        self.wait_s = wait_s
        (self.x, self.y), _ = shapes()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        time.sleep(self.wait_s)
        return self.x[index], self.y[index]


def slow(wait_s=0.04):
    return Slow(wait_s), None


READS = []
THREADS = []


class Counted(Slow):
    def __getitem__(self, index):
        READS.append(index)
        return super().__getitem__(index)


def counted():
    return Counted(0.002), None


def iterator():
    (x, y), val = shapes()
    return iter([(x, y)]), val


class Noting(nn.Linear):
    def forward(self, x):
        THREADS.append(torch.get_num_threads())
        return super().forward(x)


def noting():
    return Noting(16, 3)


def one():
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


def ones():
    return (torch.ones(4, 1), torch.ones(4, 1)), None


def net():
    return nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
"""
RECIPE = """\
[model]
name = "shelf_for_tuning_tests:net"

[data]
name = "shelf_for_tuning_tests:shapes"

[loss]
name = "cross_entropy"

[optimizer]
name = "sgd"
lr = 0.01

[train]
epochs = 3
batch_size = 20
metrics = ["accuracy"]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "shelf_for_tuning_tests.py").write_text(MODULE)
    (tmp_path / "mine.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "shelf_for_tuning_tests", raising=False)
    yield tmp_path
    sys.modules.pop("shelf_for_tuning_tests", None)


def setup_of(*overrides, **change):
    return Setup(recipe="mine.toml", overrides=overrides, change=Change(fields=change))


FACTS = BenchFacts(
    device="cpu", cores=4, threads=4, steps_per_epoch=10, total_steps=100, num_workers=0, is_in_memory=True, is_indexed=False,
    has_validation=True, num_val_samples=2000, has_convolutions=False, has_dropout=False, num_train_samples=640,
    optimizer_is_fused=True, can_tf32=False, warm_up_s=1.0, loss=2.0, digest="a",
)  # fmt: skip


class PlannedArm:
    """An arm whose speed is written down: the search is tried without a clock."""

    def __init__(
        self,
        facts: BenchFacts,
        step_s: float,
        *,
        losses: tuple[float | None, float | None] = (1.0, 1.0),
        digest: str = "z",
        asked: list[int] | None = None,
    ) -> None:
        self.facts, self.step_s, self.losses, self.digest = facts, step_s, losses, digest
        self.asked = [] if asked is None else asked

    def start(self) -> BenchFacts:
        return self.facts

    def round(self, seconds: float) -> Round:
        return Round(step_s=self.step_s, turn_s=0.0, evaluation_s=0.0, memory_bytes=1_000_000)

    def rehearse(self, *, steps: int, val_samples: int | None) -> Rehearsal:
        self.asked.append(steps)
        steps = min(steps, self.facts.total_steps or steps)
        train, val = ({} if loss is None else {"loss": loss} for loss in self.losses)
        return Rehearsal(steps=steps, train=train, val={**val, "accuracy": 0.5}, seconds=1.0, digest=self.digest)

    def close(self) -> None: ...


def search_of(arms, *, facts=FACTS, recipe=RECIPE, folder=None, said=None, **options):
    """Return a search over arms that `arms(change)` gives."""
    options = {"seconds": 1000.0, "say": (said if said is not None else []).append, **options}
    return Search(
        setup_of(), load_recipe("mine.toml").recipe, make_arm=lambda setup: arms(setup.change), round_s=0.1, **options
    )


def plain(change):
    """Nothing makes a difference."""
    return PlannedArm(FACTS, 0.01)


# -- techniques -----------------------------------------------------------------------------------------------------


def by_name(facts, *, overrides=(), **options):
    recipe = load_recipe("mine.toml", overrides).recipe
    return {each.name: each for each in find_techniques(recipe, facts, **options)}


def test_what_does_not_apply_says_why(folder):
    found = by_name(FACTS)
    assert "in memory" in found["workers"].why_not
    assert found["pinned memory"].why_not == "for CUDA only"
    assert "no convolution" in found["channels_last"].why_not
    assert "--batch-size" in found["batch size"].why_not
    assert not found["threads"].why_not


READ_ONE_BY_ONE = replace(FACTS, is_in_memory=False, is_indexed=True, has_convolutions=True)
BATCHED = replace(FACTS, is_in_memory=False, num_train_samples=None, num_val_samples=None)
APPLIES = {
    "CPU, tensors": (FACTS, {"threads", "evaluation batch", "fused optimizer", "precision", "compile"}),
    "CPU, dataset, pictures": (
        READ_ONE_BY_ONE,
        {"data in memory", "workers", "threads", "evaluation batch", "fused optimizer", "channels_last", "precision", "compile"},
    ),
    "CPU, a loader": (BATCHED, {"threads", "fused optimizer", "precision", "compile"}),
    "CUDA, tensors beside it": (
        replace(FACTS, device="cuda", can_tf32=True),
        {"data on the device", "evaluation batch", "fused optimizer", "graph capture", "precision", "compile"},
    ),
    "CUDA, tensors on it": (
        replace(FACTS, device="cuda", is_resident=True),
        {"evaluation batch", "fused optimizer", "graph capture", "precision", "compile"},
    ),
    "CUDA, dataset, pictures": (
        replace(READ_ONE_BY_ONE, device="cuda"),
        {
            "data in memory", "workers", "pinned memory", "evaluation batch", "fused optimizer", "channels_last", "graph capture", "precision",
            "compile",
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("where", APPLIES)
def test_what_applies_is_tried_and_everything_else_says_why_not(folder, where):
    facts, expected = APPLIES[where]
    found = by_name(facts)
    assert {name for name, each in found.items() if each.choices} == expected
    assert {name for name, each in found.items() if each.why_not} == set(found) - expected


def test_data_that_are_read_one_by_one_are_tried_in_memory_before_workers(folder):
    found = list(by_name(READ_ONE_BY_ONE).values())
    assert [each.name for each in found][:3] == ["data in memory", "data on the device", "workers"]
    assert found[0].choices == (Change(fields={"train.in_memory": True}),)


def test_pinned_memory_is_switched_on_or_off(folder):
    facts = replace(READ_ONE_BY_ONE, device="cuda")
    assert by_name(facts)["pinned memory"].choices == (Change(fields={"train.pin_memory": True}),)
    found = by_name(facts, overrides=["train.pin_memory=true"])
    assert found["pinned memory"].choices == (Change(fields={"train.pin_memory": False}),)


def test_compilation_and_graph_capture_exclude_one_another(folder):
    facts = replace(FACTS, device="cuda")
    assert "says already" in by_name(facts, overrides=["train.engine=captured"])["compile"].why_not
    assert "compiled" in by_name(facts, overrides=["train.compile=true"])["graph capture"].why_not
    (choice,) = by_name(facts, overrides=["train.engine=compiled"])["compile"].choices
    assert choice == Change(fields={"train.engine": "eager"})


def test_the_fields_of_every_choice_are_accepted(folder):
    for facts, _ in APPLIES.values():
        for batch_size in (False, True):
            for technique in by_name(facts, batch_size=batch_size).values():
                for choice in technique.choices:
                    load_recipe("mine.toml", Setup(recipe="", change=choice).all_overrides)


def test_workers_are_tried_for_a_dataset_that_is_read_sample_by_sample(folder):
    found = by_name(replace(FACTS, is_in_memory=False, is_indexed=True))
    counts = [choice.fields["train.num_workers"] for choice in found["workers"].choices]
    assert [count for count in counts if count != "auto"] == [1, 2, 4]


def test_threads_are_tried_downwards_from_all_cores(folder):
    assert [choice.fields["train.threads"] for choice in by_name(FACTS)["threads"].choices] == [2, 1]
    assert "one core" in by_name(replace(FACTS, cores=1))["threads"].why_not


def test_larger_micro_batches_divide_the_batch(folder):
    found = by_name(FACTS, overrides=["train.batch_size=24", "train.micro_batch=4"])
    assert [choice.fields["train.micro_batch"] for choice in found["micro-batch"].choices] == [8, 24]


def test_a_recipe_that_compiles_is_tried_without(folder):
    found = by_name(FACTS, overrides=["train.compile=true"])
    assert found["compile"].choices == (Change(fields={"train.compile": False}),)


# -- measuring ------------------------------------------------------------------------------------------------------


def rounds(*seconds):
    return tuple(Round(step_s=each, turn_s=0.0, evaluation_s=0.5, memory_bytes=None) for each in seconds)


def test_the_speed_up_is_the_median_of_the_ratios_of_whole_epochs():
    # Epochs of 10 steps and 0.5 s of evaluation: 1.5/1.0, 2.5/1.0, 10.5/1.0
    both = Rounds(first=rounds(0.1, 0.2, 1.0), second=rounds(0.05, 0.05, 0.05), first_steps=10, second_steps=10)
    assert both.ratios == pytest.approx([1.5, 2.5, 10.5])
    assert both.speed_up == pytest.approx(2.5)


def test_the_noise_of_two_equal_things_is_how_far_they_lie_apart():
    same = Rounds(first=rounds(0.1, 0.1, 0.1), second=rounds(0.1, 0.1, 0.1), first_steps=10, second_steps=10)
    apart = Rounds(first=rounds(0.1, 0.1, 0.1), second=rounds(0.2, 0.2, 0.2), first_steps=10, second_steps=10)
    assert same.spread == 0
    assert apart.spread == pytest.approx(0.4)  # 1.5 s against 2.5 s: 0.6


def test_what_is_clear_takes_fewer_rounds():
    fast, same, slow = PlannedArm(FACTS, 0.01), PlannedArm(FACTS, 0.01), PlannedArm(FACTS, 0.02)
    assert len(take_turns(fast, slow, steps=(10, 10), rounds=5, seconds=1).ratios) == 2
    assert len(take_turns(slow, fast, steps=(10, 10), rounds=5, seconds=1).ratios) == 3
    assert len(take_turns(fast, same, steps=(10, 10), rounds=5, seconds=1).ratios) == 5


class Crowded(PlannedArm):
    """An arm whose turns others disturb when told so, and are ten times as long then."""

    def __init__(self, step_s, shares):
        super().__init__(FACTS, step_s)
        self.shares = iter(shares)

    def round(self, seconds):
        share = next(self.shares)
        calm = super().round(seconds)
        return replace(calm, others_fraction=share, step_s=calm.step_s * (10 if share > 0.2 else 1))


def turns_of(shares, *, other=0.009):
    return take_turns(Crowded(0.01, shares), PlannedArm(FACTS, other), steps=(10, 10), rounds=5, seconds=1)


def test_turns_that_others_disturb_do_not_count_and_are_made_again():
    found = turns_of([0.0, 0.6, 0.1, 0.9, 0.0, 0.0, 0.2])
    assert found.ratios == pytest.approx([1.111] * 5, abs=1e-3)
    assert not found.is_disturbed
    assert found.others_fraction == 0.2


def test_a_clear_answer_of_calm_turns_is_enough():
    found = turns_of([0.0, 0.9, 0.0], other=0.02)
    assert found.ratios == pytest.approx([0.5, 0.5])
    assert not found.is_disturbed


def test_where_others_never_rest_all_turns_count_and_the_comparison_says_so():
    found = turns_of([0.9, 0.5, 0.9, 0.9, 0.0, 0.9, 0.9, 0.9])
    assert len(found.ratios) == 8  # five, and three again
    assert found.is_disturbed
    assert found.others_fraction == 0.9


def test_losses_are_equal_close_or_changed():
    assert agree((2.0, "a"), (2.0, "a")) == Agreement(kind="equal bits", difference=0.0)
    assert agree((2.0, "a"), (2.0, "b")).kind == "close"  # the losses agree, the weights do not to the bit
    assert agree((2.0, "a"), (2.002, "b")).kind == "changed"
    assert str(agree((2.0, "a"), (2.002, "b"))) == "changed, 1.0e-03 apart"
    assert str(agree((2.0, "a"), (2.0, "b"))) == "close, the same loss"


# -- the search -----------------------------------------------------------------------------------------------------


def test_what_pays_is_taken_on_top_of_what_paid_before(folder):
    def arms(change):
        step_s = (
            0.01
            * (0.5 if change.fields.get("train.threads") == 1 else 1)
            * (0.5 if "train.precision" in change.fields else 1)
        )
        return PlannedArm(FACTS, step_s)

    result = search_of(arms).run()
    taken = [trial for trial in result.trials if trial.is_taken]
    assert [str(trial.change) for trial in taken] == ["threads=1", 'precision="bf16"']
    assert [trial.speed_up for trial in taken] == pytest.approx([2.0, 2.0])
    assert result.change == Change(fields={"train.threads": 1, "train.precision": "bf16"})
    assert result.verified is not None
    assert result.verified.speed_up == pytest.approx(4.0)
    assert result.is_worth_it
    # 1 s at the start and 100 steps: 2 s against 1.25 s
    assert result.sentence == '4.00x an epoch, 1.60x the whole run with its start: threads=1, precision="bf16"'


def test_nothing_that_helps_is_said(folder):
    result = search_of(plain).run()
    assert result.change is None
    assert not result.is_worth_it
    assert "Nothing that was tried is faster than the recipe as it is" in result.sentence
    assert {trial.why for trial in result.trials} == {"no gain"}


def test_a_gain_within_the_noise_is_no_gain(folder):
    mood = itertools.cycle([0.01, 0.02])

    def arms(change):
        return PlannedArm(FACTS, 0.0095 if change.fields.get("train.threads") == 1 else next(mood))

    result = search_of(arms).run()  # the baseline and its twin: 1 against 2
    assert result.noise == pytest.approx(0.5)
    assert not [trial for trial in result.trials if trial.is_taken and trial.speed_up < 1.5]


class Disturbed(PlannedArm):
    """The recipe as it is, which another program slows down during some of its rounds."""

    def __init__(self, slow_rounds, share=0.0):
        super().__init__(FACTS, 0.010)
        self.slow_rounds, self.share, self.num_rounds = slow_rounds, share, 0

    def round(self, seconds):
        self.num_rounds += 1
        found = super().round(seconds)
        if self.num_rounds in self.slow_rounds:
            found = replace(found, step_s=0.4, others_fraction=self.share)
        return found


def disturbed_arms(slow_rounds, share=0.0):
    """Return arms of which threads=1 is half as fast as the recipe, and bf16 is 1.43 times as fast: at rounds 6 to 8, threads are tried."""
    baselines = [Disturbed(slow_rounds, share)]

    def arms(change):
        if not change.fields:
            return baselines.pop() if baselines else PlannedArm(FACTS, 0.010)
        step_s = 0.010
        step_s *= {1: 2.0, 2: 1.5}.get(change.fields.get("train.threads"), 1.0)
        step_s *= 0.7 if change.fields.get("train.precision") == "bf16" else 1.0
        return PlannedArm(FACTS, step_s)

    return arms


def test_where_the_whole_is_not_faster_a_part_of_it_that_is_is_found(folder):
    said = []
    tuning = search_of(disturbed_arms(range(6, 9)), said=said).run()
    assert tuning.change == Change(fields={"train.precision": "bf16"})
    assert tuning.is_worth_it
    assert tuning.verified.speed_up == pytest.approx(1 / 0.7)
    (threads,) = [each for each in tuning.trials if str(each.change) == "threads=2"]
    assert threads.speed_up > 20
    assert not threads.is_taken
    assert threads.outcome == "left out again: with it all were 0.95x"
    assert '  not faster (0.95x); precision="bf16" alone: 1.43x' in said
    # Without the other program, nothing is ever wrong.
    assert search_of(disturbed_arms([])).run().change == Change(fields={"train.precision": "bf16"})


def test_parts_are_tried_only_while_there_is_time(folder):
    ticks = itertools.count(step=10.0)
    tuning = search_of(disturbed_arms(range(6, 9)), seconds=1e9, clock=lambda: next(ticks)).run()
    assert tuning.is_worth_it  # the control: time enough
    begun, inner = [0.0], disturbed_arms(range(6, 9))

    def clock():
        return begun[0]

    def arms(change):
        begun[0] += 10.0
        return inner(change)

    # Every arm takes 10 s: two of the recipe, seven of trials, and 39 s are left where 40 s are wanted for a part.
    tuning = search_of(arms, seconds=129.0, clock=clock).run()
    assert not tuning.is_worth_it
    assert tuning.verified.speed_up == pytest.approx(1 / (1.5 * 0.7))
    assert "Leave the recipe as it is" in tuning.sentence


def test_other_programs_that_keep_the_cores_busy_are_told(folder):
    tuning = search_of(disturbed_arms(range(6, 100), share=0.45)).run()
    text = "\n".join(tuning.lines())
    assert "kept up to 45 % of the cores busy" in text
    assert tuning.to_json()["others_fraction"] == 0.45
    assert "kept up to" not in "\n".join(search_of(plain).run().lines())


def test_losses_that_disagree_are_refused_however_fast(folder):
    def arms(change):
        if change.fields.get("optimizer.fused") is False:
            return PlannedArm(replace(FACTS, loss=2.1, digest="b"), 0.001)
        return PlannedArm(FACTS, 0.01)

    result = search_of(arms).run()
    (fused,) = [trial for trial in result.trials if trial.technique == "fused optimizer"]
    assert not fused.is_taken
    assert "too far off: 2.1 instead of 2" in fused.why


def test_a_configuration_that_fails_is_reported_and_the_others_go_on(folder):
    class Failing(PlannedArm):
        def start(self):
            raise RuntimeError("no compiler here")

    def arms(change):
        return Failing(FACTS, 1) if "train.compile" in change.fields else plain(change)

    result = search_of(arms).run()
    (compiled,) = [trial for trial in result.trials if trial.technique == "compile"]
    assert compiled.why == "not possible: RuntimeError: no compiler here"
    assert len(result.trials) > 3


def test_compilation_has_to_pay_within_the_run(folder):
    def arms(change, warm_up_s=0.0):
        if change.fields.get("train.compile"):
            return PlannedArm(replace(FACTS, warm_up_s=1.0 + warm_up_s), 0.005)
        return PlannedArm(FACTS, 0.01)

    # It saves 5 ms a step: 0.4 s more at the start are 80 of the run's 100 steps, and 2 s are 400.
    for warm_up_s, steps, is_taken in ((0.4, 80, True), (2.0, 400, False)):
        result = search_of(lambda change, more=warm_up_s: arms(change, more)).run()
        (compiled,) = [trial for trial in result.trials if trial.technique == "compile"]
        assert compiled.break_even_steps == pytest.approx(steps, abs=1)
        assert compiled.is_taken is is_taken
        assert "this run has 100" in compiled.outcome


def test_the_speed_of_the_whole_run_stands_beside_that_of_an_epoch(folder):
    def arms(change):
        if change.fields.get("train.compile"):
            return PlannedArm(replace(FACTS, warm_up_s=1.2), 0.005)
        return PlannedArm(FACTS, 0.01)

    result = search_of(arms).run()
    # 1 s and 100 steps of 10 ms, against 1.2 s and 100 of 5 ms: 2 / 1.7
    assert result.verified.run_speed_up == pytest.approx(2 / 1.7)
    assert result.sentence == "2.00x an epoch, 1.18x the whole run with its start: compile=true"
    assert result.to_json()["verified"]["run_speed_up"] == pytest.approx(2 / 1.7)


def test_what_makes_the_whole_run_slower_is_not_written(folder):
    def arms(change):
        if change.fields.get("train.eval_batch_size"):  # no technique that is asked by itself when it pays
            return PlannedArm(replace(FACTS, warm_up_s=3.0), 0.005)
        return PlannedArm(FACTS, 0.01)

    result = search_of(arms).run()
    # 1 s and 100 steps of 10 ms, against 3 s and 100 of 5 ms: 2 / 3.5
    assert result.verified.run_speed_up == pytest.approx(2 / 3.5)
    assert not result.is_worth_it
    assert "2.00x as fast, but with its start the whole run 0.57x" in result.sentence


def test_what_later_steps_cost_as_well_is_not_charged_to_the_start(folder):
    slow = ("data.name=shelf_for_tuning_tests:slow", "data.wait_s=0.01")
    with_steps = Bench(setup_of(*slow)).start()  # twelve of 0.2 s, as every other
    in_memory = Bench(
        setup_of(*slow, **{"train.in_memory": True})
    ).start()  # 100 samples, 10 ms each, before the first step
    assert with_steps.warm_up_s < 0.9
    assert in_memory.warm_up_s > 1.0


def test_a_trial_that_found_no_time_says_how_much_it_wants(folder):
    now = itertools.count(step=10)
    result = search_of(plain, seconds=60.0, clock=lambda: float(next(now))).run()
    assert not result.trials
    assert "trials found no time, and one takes about" in result.sentence
    assert "give it --minutes" in result.sentence
    assert "--minutes" not in search_of(plain).run().sentence


def test_the_time_box_says_what_was_not_tried(folder):
    now = itertools.count()  # a second goes by whenever somebody looks at the clock
    few = search_of(plain, seconds=20.0, clock=lambda: float(next(now))).run()
    many = search_of(plain).run()
    assert 0 < len(few.trials) < len(many.trials)
    late = [each for each in few.skipped if each.why == "out of time"]
    assert len(few.trials) + len(late) == len(many.trials)
    assert all(each.change for each in late)


def test_an_interruption_keeps_what_is_known(folder):
    class Interrupting(PlannedArm):
        def start(self):
            raise KeyboardInterrupt

    def arms(change):
        return Interrupting(FACTS, 1) if "train.precision" in change.fields else plain(change)

    result = search_of(arms).run()
    assert result.is_interrupted
    assert result.trials
    assert result.verified is None
    assert "interrupted" in "\n".join(result.lines())
    tried_or_not = [*(each.technique for each in result.trials), *(each.technique for each in result.skipped)]
    assert set(tried_or_not) == set(by_name(FACTS))  # not one of them is passed over in silence
    cut_short = [each for each in result.skipped if each.why == "interrupted"]
    assert [(each.technique, each.change.partition("=")[0]) for each in cut_short] == [("precision", "precision")]
    assert "compile" in [each.technique for each in result.skipped if each.why == "not reached"]
    assert "  compile compile=true: not reached" in result.lines()
    assert {each.why for each in search_of(plain).run().skipped}.isdisjoint({"not reached", "interrupted"})


def test_what_was_interrupted_before_the_first_trial_lists_every_technique_as_not_reached(folder):
    class Interrupting(PlannedArm):
        def round(self, seconds):
            raise KeyboardInterrupt

    result = search_of(lambda change: Interrupting(FACTS, 1)).run()
    assert {each.technique for each in result.skipped} == set(by_name(FACTS))
    assert {each.technique for each in result.skipped if each.why == "not reached"} >= {
        "threads",
        "precision",
        "compile",
    }
    assert "interrupted" not in {each.why for each in result.skipped}


def test_what_was_interrupted_before_it_was_timed_has_no_time(folder):
    class Interrupting(PlannedArm):
        def round(self, seconds):
            raise KeyboardInterrupt

    text = "\n".join(search_of(lambda change: Interrupting(FACTS, 1)).run().lines())
    assert "4 threads of 4 cores, not timed; 100 steps." in text


def test_numbers_that_must_stay_equal_leave_out_what_may_change_them(folder):
    result = search_of(plain, numerics="equal").run()
    assert {trial.technique for trial in result.trials} == {"evaluation batch", "threads", "fused optimizer"}
    assert [each.why for each in result.skipped if each.technique == "precision"] == [
        'it may change the numbers, and numerics="equal"'
    ]


@pytest.mark.parametrize(
    ("numerics", "loss", "digest", "is_taken"),
    [
        ("equal", 2.0, "a", True),  # the same bits, though other threads may round in another way
        ("equal", 2.0, "b", False),
        ("close", 2.0, "b", True),
        ("changed", 2.0, "b", True),
    ],
)
def test_what_happened_to_the_numbers_is_held_against_the_wish(folder, numerics, loss, digest, is_taken):
    def arms(change):
        is_one = change.fields.get("train.threads") == 1
        return PlannedArm(replace(FACTS, loss=loss, digest=digest), 0.001) if is_one else plain(change)

    result = search_of(arms, numerics=numerics).run()
    (trial,) = [trial for trial in result.trials if trial.change.fields == {"train.threads": 1}]
    assert trial.is_taken is is_taken
    if not is_taken:
        assert trial.why == 'the numbers are close, and numerics="equal"'


def test_a_technique_that_should_change_nothing_is_judged_by_its_bits_too(folder):
    def arms(change):
        is_smaller = change.fields.get("train.eval_batch_size") == 250
        return PlannedArm(replace(FACTS, digest="b"), 0.001) if is_smaller else plain(change)

    for numerics, is_taken in (("equal", False), ("close", True)):
        result = search_of(arms, numerics=numerics).run()
        assert [trial.is_taken for trial in result.trials if trial.change.fields == {"train.eval_batch_size": 250}] == [
            is_taken
        ]


def test_compilation_that_is_less_than_close_is_taken_only_where_numbers_may_change(folder):
    def arms(change):
        is_compiled = change.fields.get("train.compile") is True
        return PlannedArm(replace(FACTS, loss=2.001, digest="b"), 0.001) if is_compiled else plain(change)  # 5e-4 apart

    for numerics, is_taken in (("close", False), ("changed", True)):
        result = search_of(arms, numerics=numerics).run()
        assert [trial.is_taken for trial in result.trials if trial.technique == "compile"] == [is_taken]


def test_small_differences_add_up_against_the_recipe_as_it_is(folder):
    # Two steps of 0.8e-4 each: the second one is close to the first, and 1.6e-4 from the recipe, which is more than rounding.
    def arms(change):
        count = ("train.threads" in change.fields) + ("optimizer.fused" in change.fields)
        facts = replace(FACTS, loss=2.0 * (1 + 0.8e-4 * count), digest=str(count))
        return PlannedArm(facts, 0.01 * 0.5**count)

    result = search_of(arms, numerics="close").run()
    (fused,) = [trial for trial in result.trials if trial.technique == "fused optimizer"]
    assert not fused.is_taken
    assert fused.agreement is not None
    assert fused.agreement.difference == pytest.approx(1.6e-4)
    assert result.change is not None
    assert list(result.change.fields) == ["train.threads"]


def test_what_failed_in_the_end_leaves_what_was_found(folder):
    class FailsLate(PlannedArm):
        def rehearse(self, *, steps, val_samples):
            raise RuntimeError("planted")

    search = search_of(lambda change: FailsLate(FACTS, 0.001 if change.fields else 0.01))
    with pytest.raises(RuntimeError, match="planted"):
        search.run()
    assert search.result.is_anything_known
    assert "the whole was not checked, so nothing was written" in search.result.sentence
    assert any(trial.is_taken for trial in search.result.trials)


def test_a_recipe_that_fails_while_something_is_tried_ends_the_search_and_not_the_trial(folder):
    class Dying(PlannedArm):
        num_left = 7  # the noise takes five rounds, the first trial two, being clearly slower

        def round(self, seconds):
            self.num_left -= 1
            if self.num_left < 0:
                raise RuntimeError("the recipe itself")
            return super().round(seconds)

    search = search_of(lambda change: PlannedArm(FACTS, 0.02) if change.fields else Dying(FACTS, 0.01))
    with pytest.raises(RuntimeError, match="the recipe itself"):
        search.run()
    assert [trial.why for trial in search.result.trials] == ["slower"]


def test_no_noise_is_told_where_none_was_measured(folder):
    class Interrupting(PlannedArm):
        def round(self, seconds):
            raise KeyboardInterrupt

    result = search_of(lambda change: Interrupting(FACTS, 1)).run()
    assert result.sentence == "Nothing was tried, so nothing is known to be faster than the recipe as it is."
    assert result.to_json()["noise"] is None
    assert not result.is_anything_known


def test_a_start_that_takes_longer_than_all_trials_may_is_told(folder):
    now = itertools.count()
    result = search_of(plain, seconds=2.0, clock=lambda: float(next(now))).run()
    assert result.start_s == 1.0  # a second goes by whenever somebody looks at the clock
    assert "of 2 s (starting the recipe alone took 1 s, which comes on top)" in "\n".join(result.lines())


def test_where_the_recipe_is_not_the_same_twice_what_is_known_of_a_technique_counts(folder):
    digests = itertools.count()

    def arms(change):
        return PlannedArm(replace(FACTS, digest=str(next(digests))), 0.001 if change.fields else 0.01)

    result = search_of(arms, numerics="equal").run()
    assert not result.is_repeatable
    assert {trial.technique for trial in result.trials} == {"evaluation batch"}
    assert any(trial.is_taken for trial in result.trials)


def test_weights_that_differ_in_the_end_are_not_equal_numbers(folder):
    def arms(change):
        return PlannedArm(FACTS, 0.001, digest="other") if change.fields else PlannedArm(FACTS, 0.01)

    result = search_of(arms, numerics="equal").run()
    assert result.change is not None
    assert not result.is_worth_it
    assert "the weights are not the same after the check" in result.sentence
    assert search_of(arms, numerics="close").run().is_worth_it


def test_what_was_taken_rules_out_what_does_not_go_with_it(folder):
    facts = replace(FACTS, device="cuda", is_resident=True)

    def arms(change):
        return PlannedArm(facts, 0.001 if "train.engine" in change.fields else 0.01)

    result = search_of(arms).run()
    assert result.change == Change(fields={"train.engine": "captured"})
    assert "compile" not in {trial.technique for trial in result.trials}
    (skipped,) = [each for each in result.skipped if each.technique == "compile"]
    assert skipped.why == 'engine="captured" says already what runs the steps'


def test_trials_on_a_gpu_keep_their_data_where_the_recipe_has_them(folder):
    setups = []

    def arms(setup):
        setups.append(setup)
        return PlannedArm(replace(FACTS, device="cuda", is_resident=True), 0.001 if setup.change.fields else 0.01)

    search = Search(
        setup_of(), load_recipe("mine.toml").recipe, make_arm=arms, seconds=1000, round_s=0.1, say=lambda line: None
    )
    result = search.run()
    assert all(setup.overrides == ("train.resident=true",) for setup in setups[2:])  # after the baseline and its twin
    assert result.change is not None
    assert "train.resident" not in result.change.fields


def test_a_combination_that_learns_worse_is_not_recommended(folder):
    def arms(change):
        if change.fields:
            return PlannedArm(FACTS, 0.001, losses=(1.0, 1.2))
        return PlannedArm(FACTS, 0.01)

    result = search_of(arms).run()
    assert result.change is not None
    assert not result.is_worth_it
    assert "+20.0 %" in result.sentence


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((1.0, 1.0), (1.0, 1.04), True),
        ((1.0, 0.0), (1.0, 0.0), True),
        ((1.0, 0.0), (1.0, 0.1), False),  # above 0: infinitely worse
        ((1.0, None), (1.1, None), False),  # the training loss, where the validation has none
        ((1.0, None), (1.0, None), True),
        ((None, None), (None, None), False),
        ((1.0, -1.0), (1.0, -0.9), False),
        ((1.0, 1.0), (1.0, float("nan")), False),
        ((1.0, 0.0), (1.0, -float("nan")), False),
    ],
)
def test_a_loss_that_is_worse_or_not_known_is_no_recommendation(folder, before, after, expected):
    def arms(change):
        return PlannedArm(FACTS, 0.001 if change.fields else 0.01, losses=after if change.fields else before)

    result = search_of(arms).run()
    assert result.change is not None
    assert result.is_worth_it is expected
    if before == (None, None):
        assert "there is no loss to compare" in result.sentence


def test_a_run_that_is_over_before_the_check_is_said_to_be_as_long_as_it_is(folder):
    facts = replace(FACTS, total_steps=4)
    result = search_of(lambda change: PlannedArm(facts, 0.001 if change.fields else 0.01)).run()
    assert "after 4 steps of the real run, on val: loss" in "\n".join(result.lines())


def test_larger_batches_are_compared_after_as_many_samples(folder):
    asked = {1: [], 4: []}

    def arms(change, loss=1.0):
        factor = change.fields.get("train.batch_size", 20) // 20
        return PlannedArm(
            FACTS,
            0.001 if factor == 4 else 0.01,
            losses=(1.0, loss if factor == 4 else 1.0),
            asked=asked.get(factor, []),
        )

    result = search_of(arms, batch_size=True).run()
    assert result.change == Change(fields={"train.batch_size": 80})
    assert asked == {1: [100], 4: [25]}  # 100 steps of 20 samples, 25 of 80
    assert result.is_worth_it
    assert "after 100 steps of the real run (and 25 of larger batches, as many samples)" in "\n".join(result.lines())
    worse = search_of(lambda change: arms(change, 1.2), batch_size=True).run()
    assert not worse.is_worth_it
    assert "the loss is +20.0 % after 100 steps or as many samples" in worse.sentence
    assert "--lr" in worse.sentence


def test_wrong_arguments_are_refused(folder):
    with pytest.raises(ArgumentError, match="leaves no time"):
        search_of(plain, seconds=0)
    with pytest.raises(ArgumentError, match="Use equal, close or changed"):
        search_of(plain, numerics="some")


def test_the_answer_is_json(folder):
    result = search_of(lambda change: PlannedArm(FACTS, 0.005 if "train.threads" in change.fields else 0.01)).run()
    read = json.loads(json.dumps(result.to_json()))
    assert read["best"] == {"train.threads": 2}
    assert read["verified"]["faster"] is True
    assert set(read["trials"][0]) == {
        "technique", "change", "numerics", "speed_up", "step_s", "memory_bytes", "losses", "break_even_steps", "total_steps", "taken", "outcome",
    }  # fmt: skip
    assert {"technique", "why", "change"} == set(read["not_tried"][0])


# -- real trials ----------------------------------------------------------------------------------------------------


def test_a_bench_trains_and_evaluates_and_says_what_it_found(folder):
    bench = Bench(setup_of())
    facts, one = bench.start(), bench.round(0.02)
    assert facts.steps_per_epoch == 5  # 100 samples in batches of 20
    assert facts.total_steps == 15
    assert facts.num_val_samples == 20
    assert facts.is_in_memory
    assert one.step_s > 0
    assert one.evaluation_s > 0


def test_a_recipe_that_needs_its_schedule_is_tried_with_it_and_for_more_steps_than_it_has(folder):
    # Of (w - 1)^2 gradient descent diverges at rates above 1: the warm-up leads to 2 at the 12th of 12 steps, then the run is over.
    setup = setup_of(
        "model.name=shelf_for_tuning_tests:one", "data.name=shelf_for_tuning_tests:ones", "loss.name=mse", "optimizer.lr=2.0",
        "train.metrics=[]", "train.epochs=12", "train.batch_size=4", "scheduler.name=constant", "scheduler.warmup=12",
    )  # fmt: skip
    bench = Bench(setup)
    facts = bench.start()
    assert facts.total_steps == 12
    weight = bench._trainer.model.weight.detach().clone()
    for _ in range(2):
        bench.round(0.1)
    assert bench._trainer.progress.steps_done > facts.total_steps
    assert bench._trainer.model.weight.item() == pytest.approx(weight.item(), rel=0.01)
    real = Bench(setup).rehearse(steps=12, val_samples=None)
    assert (facts.loss, facts.digest) == (real.loss, real.digest)  # the first steps are those of the real run
    plain = Bench(setup_of(*setup.overrides[:-2])).start()
    assert plain.digest != facts.digest  # the negative control: without the schedule they are others


def test_equal_configurations_agree_to_the_bit_and_others_do_not(folder):
    one, same, other = (Bench(setup_of(*more)).start() for more in ((), (), ("train.seed=1",)))
    assert (one.loss, one.digest) == (same.loss, same.digest)
    assert one.digest != other.digest


def test_trials_leave_threads_random_numbers_and_files_alone(folder):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    threads, before = torch.get_num_threads(), sorted(folder.iterdir())
    result = Search(
        setup_of(), load_recipe("mine.toml").recipe, seconds=1000, rounds=1, round_s=0.005, numerics="equal",
        make_arm=Bench, say=lambda line: None,
    ).run()  # fmt: skip
    assert result.trials
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.rand(3), expected)
    assert [path for path in sorted(folder.iterdir()) if path.name != "__pycache__"] == before


def test_workers_win_where_samples_have_to_be_waited_for(folder):
    setup = setup_of("data.name=shelf_for_tuning_tests:slow", "train.batch_size=2")
    recipe = load_recipe("mine.toml", setup.overrides).recipe
    arms = {count: Bench(setup.with_change(Change(fields={"train.num_workers": count}))) for count in (0, 2)}
    facts = [arm.start() for arm in arms.values()]
    assert facts[0].digest == facts[1].digest  # the order does not depend on workers
    comparison = take_turns(*arms.values(), steps=(50, 50), rounds=1, seconds=0.6)
    # 2 samples x 40 ms a step, two steps at a time: 80 ms against 40 ms, and what the machine adds to both.
    assert comparison.first[0].step_s > 1.3 * comparison.second[0].step_s
    assert "workers" in {each.name for each in find_techniques(recipe, facts[0]) if each.choices}


def test_an_iterator_is_refused(folder):
    with pytest.raises(DataError, match="return a list, a dataset, or a loader"):
        Bench(setup_of("data.name=shelf_for_tuning_tests:iterator"))


def test_threads_are_those_of_the_recipe_while_a_trial_runs_only(folder):
    threads = torch.get_num_threads()
    assert Bench(setup_of("train.threads=2")).start().threads == 2
    assert torch.get_num_threads() == threads


@pytest.mark.skipif(usable_cores() < 2, reason="needs two cores")
def test_timed_steps_have_the_threads_of_the_real_run(folder, monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("velodrome.data.threads._told", None)  # what another test's recipe has asked for
    before = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # as a process has them that was told nothing
    changes = ("data.name=shelf_for_tuning_tests:slow", "data.wait_s=0.0", "model.name=shelf_for_tuning_tests:noting")
    setup = setup_of(*changes, "train.num_workers=1")
    try:
        bench = Bench(setup)
        noted = sys.modules["shelf_for_tuning_tests"].THREADS
        facts = bench.start()
        noted.clear()
        bench.round(0.01)
        timed = set(noted)
        assert torch.get_num_threads() == len(os.sched_getaffinity(0))
        noted.clear()
        ready = build(load_recipe("mine.toml", setup.all_overrides), say=lambda line: None)
        ready.make_trainer(progress=False).fit(ready.train, steps=3)
        assert timed == set(noted) == {facts.threads}
        assert facts.threads < len(os.sched_getaffinity(0))
    finally:
        torch.set_num_threads(before)


def test_a_tuned_recipe_waits_for_fewer_samples(folder):
    # Two milliseconds a sample: an epoch waits a fifth of a second. Read once it pays after one and a half epochs, of twenty.
    setup = setup_of(
        "data.name=shelf_for_tuning_tests:counted", "train.batch_size=4", "train.epochs=20", "train.metrics=[]"
    )
    search = Search(
        setup, load_recipe("mine.toml", setup.overrides).recipe, make_arm=Bench, seconds=1000, rounds=1, round_s=0.01,
        numerics="equal", say=lambda line: None,
    )  # fmt: skip
    result = search.run()
    assert result.is_worth_it, "\n".join(result.lines())
    assert result.change is not None
    assert result.change.fields["train.in_memory"] is True
    assert result.verified is not None
    assert result.verified.speed_up > 3
    write_tuned_recipe(folder / "tuned.toml", setup, result)
    reads, weights = sys.modules["shelf_for_tuning_tests"].READS, []
    waited = []
    for source, overrides in (("mine.toml", [*setup.overrides, "train.epochs=3"]), ("tuned.toml", ["train.epochs=3"])):
        reads.clear()
        ready = build(load_recipe(source, overrides), say=lambda line: None)
        trainer = ready.make_trainer(progress=False)
        trainer.fit(ready.train, **ready.fit_arguments)
        waited.append(len(reads))
        weights.append(digest_of(trainer.model))
    assert waited[0] >= 300  # three epochs of 100 samples
    assert waited[1] == 1 + 100 + 64  # however many epochs: one for the shape, all, and some twice
    assert weights[0] == weights[1]


def test_the_rehearsal_is_the_real_run_cut_short(folder):
    found = Bench(setup_of()).rehearse(steps=7, val_samples=10)
    assert found.steps == 7
    assert set(found.val) == {"loss", "accuracy"}


# -- the tuned recipe -----------------------------------------------------------------------------------------------


def test_the_tuned_recipe_is_a_recipe_with_what_paid(folder):
    def arms(change):
        return PlannedArm(FACTS, 0.005 if "train.precision" in change.fields else 0.01)

    setup = setup_of("train.epochs=2")
    search = Search(
        setup,
        load_recipe("mine.toml").recipe,
        make_arm=lambda each: arms(each.change),
        seconds=1000,
        say=lambda line: None,
    )
    result = search.run()
    path = choose_path("mine.toml", None)
    write_tuned_recipe(path, setup, result)
    tuned = load_recipe("mine.tuned.toml").recipe
    expected = load_recipe("mine.toml", ["train.epochs=2", "train.precision=bf16"]).recipe
    assert asdict(Change(fields=tuned.to_tables())) == asdict(Change(fields=expected.to_tables()))
    assert path.read_text().startswith(
        '# mine.toml, tuned: 2.00x an epoch, 1.33x the whole run with its start: precision="bf16"'
    )


def test_places_that_cannot_be_written_are_refused_before_anything_is_tried(folder):
    (folder / "mine.tuned.toml").write_text("mine")
    with pytest.raises(RefusedError, match="--overwrite"):
        choose_path("mine.toml", None)
    assert choose_path("mine.toml", None, overwrite=True).name == "mine.tuned.toml"
    (folder / "same.toml").symlink_to(folder / "mine.toml")
    for out in (folder / "mine.toml", folder / "same.toml"):
        with pytest.raises(
            RefusedError,
            match="is the recipe that is tuned, .* Give another name with --out, such as --out mine.tuned.toml",
        ):
            choose_path("mine.toml", out, overwrite=True)
    with pytest.raises(ArgumentError, match="no .toml file"):
        choose_path("mine.toml", folder / "tuned.txt")
    with pytest.raises(ArgumentError, match="no folder"):
        choose_path("mine.toml", folder / "nowhere" / "tuned.toml")
    assert str(choose_path("mnist-mlp", None)) == "mnist-mlp.tuned.toml"


def test_a_disk_that_is_full_in_the_end_says_what_was_found(folder, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    result = search_of(lambda change: PlannedArm(FACTS, 0.005 if "train.precision" in change.fields else 0.01)).run()
    monkeypatch.setattr("velodrome.record.atomic._write_temp", full)
    with pytest.raises(VelodromeError, match="No space left on device.*velodrome train mine.toml") as caught:
        write_tuned_recipe(folder / "t.toml", setup_of("train.epochs=2"), result)
    assert caught.value.exit_code == 1
    assert "train.epochs=2 'train.precision=\"bf16\"'" in caught.value.message


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("os._exit(9)", r"The trial of threads=1 ended, its process with exit code 9"),
        ("raise RuntimeError('planted')", r"The trial of threads=1 failed. .*RuntimeError: planted \(.*shelf_for_tuning_tests.py:\d+\)\."),
        ("time.sleep(60)", r"The trial of threads=1 was not done after 8 s"),
    ],
)  # fmt: skip
def test_a_trial_that_ends_badly_is_named(folder, code, message):
    with (folder / "shelf_for_tuning_tests.py").open("a") as module:
        module.write(f"\n\nclass Bad(nn.Linear):\n    def forward(self, x):\n        import os\n        {code}\n")
        module.write("\n\ndef bad():\n    return Bad(16, 3)\n")
    setup = setup_of("model.name=shelf_for_tuning_tests:bad", **{"train.threads": 1})
    arm = RemoteBench(setup, timeout_s=8.0 if "sleep" in code else 120.0)
    try:
        with pytest.raises(TrialError, match=message):
            arm.start()
    finally:
        arm.close()
