"""The benchmark for CUDA machines: what it says without one, and that its arms do equal work, seen on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

CPU = torch.device("cpu")


@pytest.fixture
def gpu(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_it_says_so_and_names_the_next_command(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu.py"])
    with pytest.raises(SystemExit) as error:
        gpu.main()
    assert error.value.code == 2
    assert "sees no CUDA device" in (said := capsys.readouterr().err)
    assert "make bench-gpu" in said


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_arms_learn_the_same_in_full_precision(gpu: ModuleType, model: str) -> None:
    train, val = gpu.load_data(None, 100)
    val = tuple(each[:50] for each in val)
    names = gpu.arm_names(CPU)
    assert {"tutorial", "raw", "raw again", "eager, fp32", "eager, bf16"} <= set(names)

    runs = {name: [gpu.run_arm(name, model=model, train=train, val=val, device=CPU, epochs=2)] for name in names}
    found = gpu.compare(runs)

    assert found["eager, fp32"]["largest_loss_difference"] < 1e-5
    assert 0 < found["eager, bf16"]["largest_loss_difference"] < 0.1  # control: other arithmetic is seen
    assert found["raw"]["times_raw"]["median"] == 1.0
    assert all(each["step_us"]["median"] > 0 for each in found.values())


def test_a_steps_time_is_the_median_epochs_after_the_first(gpu: ModuleType) -> None:
    clock = gpu.Clock(CPU)
    clock.times_s = [0.0, 5.0, 6.0, 8.0, 9.0]  # epochs of 5, 1, 2 and 1 seconds
    inputs = torch.zeros(4, 1, 28, 28), torch.zeros(4, dtype=torch.long)

    found = gpu.finished(clock, gpu.make_model("mlp"), 100, losses=[], val=inputs, device=CPU)

    assert found.notes["step_us"] == pytest.approx(10_000)  # 1 s / 100 steps
    assert found.notes["first_epoch_s"] == 5.0
    assert found.seconds == 9.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_waits_are_those_of_steps(gpu: ModuleType) -> None:
    device = torch.device("cuda")
    train, _ = gpu.load_data(None, 64 * 40)
    waits = gpu.count_waits("mlp", train, device).notes["waits"]
    assert waits["eager, fp32"]["added"] == 0
    assert waits["control: .item() a step"]["added"] >= 20


def results_of(step_us: float, eager: float, tutorial: float, differs: float, added: int) -> dict[str, Any]:
    arm = {
        "step_us": {"median": step_us},
        "times_eager": {"median": eager},
        "times_tutorial": {"median": tutorial},
        "loss_difference_from_eager": differs,
    }
    return {"goal_us": 75.0, "arms": {"captured, fp32": arm}, "waits": {"captured, fp32": {"added": added}}}


@pytest.mark.parametrize(
    ("measured", "met"),
    [
        ((60.0, 5.0, 40.0, 1e-5, 0), [True, True, True, True, True]),
        ((75.1, 3.9, 29.9, 1e-2, 1), [False, False, False, False, False]),
        ((75.0, 4.0, 29.0, float("nan"), 0), [True, True, False, False, True]),
    ],
)
def test_each_goal_is_compared_with_what_was_measured(gpu: ModuleType, measured: Any, met: list[bool]) -> None:
    assert [each["met"] for each in gpu.judge(results_of(*measured))] == met


def test_a_goal_without_a_measurement_is_neither_met_nor_missed(gpu: ModuleType, capsys: Any) -> None:
    results = {"goal_us": 130.0, "arms": {}}
    results["goals"] = gpu.judge(results)
    gpu.show("cnn", results)
    assert "goal, captured, fp32: a step takes at most 130 us: not measured" in capsys.readouterr().out


def test_captured_arms_are_compared_with_eager_ones_of_the_same_precision(gpu: ModuleType) -> None:
    def run(step_us: float, losses: list[float]) -> Any:
        notes = {"step_us": step_us, "first_epoch_s": 1.0, "peak_allocated_mb": 0.0, "peak_reserved_mb": 0.0}
        return gpu.Outcome(seconds=1.0, losses=losses, accuracies=[0.5], notes=notes)

    runs = {"raw": [run(100.0, [1.0])], "eager, bf16": [run(300.0, [1.1])], "captured, bf16": [run(60.0, [1.25])]}
    found = gpu.compare(runs)
    assert found["captured, bf16"]["times_eager"]["median"] == 5.0  # 300 / 60
    assert found["captured, bf16"]["loss_difference_from_eager"] == pytest.approx(0.15)
    assert "times_eager" not in found["eager, bf16"]
