"""The tutorial's job by every trainer: equal work, and ratios round by round."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

PEERS = ("Ignite", "Poutyne", "Accelerate", "skorch", "Lightning", "transformers Trainer", "Keras")


@pytest.fixture
def peer_jobs(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("peer_jobs")


@pytest.fixture
def job(peer_jobs: ModuleType) -> Any:
    generator = torch.Generator().manual_seed(0)
    data = [
        (torch.rand(n, 1, 28, 28, generator=generator), torch.randint(0, 10, (n,), generator=generator)) for n in (150, 70)
    ]  # fmt: skip
    return peer_jobs.TensorJob(train=data[0], val=data[1], epochs=2, hidden=8, eval_batch_size=50)


def test_fit_gives_the_bits_of_the_loop_over_a_loader(peer_jobs: ModuleType, job: Any) -> None:
    raw, fit = peer_jobs.raw(job), peer_jobs.velodrome_fit(job)

    assert torch.equal(fit.weights, raw.weights)
    assert fit.losses == pytest.approx(raw.losses, rel=1e-6)
    assert fit.accuracies == raw.accuracies


def test_the_floor_takes_as_many_steps_as_the_job(
    peer_jobs: ModuleType, job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    sgd = peer_jobs.sgd

    def counting(model: torch.nn.Module) -> torch.optim.Optimizer:
        optimizer = sgd(model)
        optimizer.register_step_post_hook(lambda *_: steps.append(1))
        return optimizer

    monkeypatch.setattr(peer_jobs, "sgd", counting)
    assert peer_jobs.floor(job).notes["evaluation_s"] > 0
    assert len(steps) == job.num_steps == 6  # 150 samples are three batches of 64, twice


def test_fit_steps_with_the_optimizer_of_the_others_and_the_switched_arm_with_a_fused_one(
    peer_jobs: ModuleType, job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.optim.Optimizer] = []
    sgd = peer_jobs.sgd

    def keeping(model: torch.nn.Module) -> torch.optim.Optimizer:
        made.append(sgd(model))
        return made[-1]

    monkeypatch.setattr(peer_jobs, "sgd", keeping)
    fit, raw = peer_jobs.velodrome_fit(job), peer_jobs.raw(job)
    assert [optimizer.defaults["fused"] for optimizer in made] == [None, None]
    switched = peer_jobs.velodrome_switched(job)
    assert len(made) == 2  # by name
    assert torch.equal(fit.weights, raw.weights)
    assert torch.equal(switched.weights, raw.weights)  # a fused SGD has the same bits


def test_every_trainer_has_both_arms(script: Callable[[str], ModuleType], peer_jobs: ModuleType) -> None:
    trainers, peer_steps = script("trainers"), script("peer_steps")

    assert set(peer_jobs.PEERS) == set(trainers.TRAINERS) == set(PEERS)
    assert set(peer_steps.PEERS) == {*PEERS, "Lightning, barebones"}
    assert trainers.trainer_of("Lightning, barebones").package == "lightning"
    assert trainers.installed(PEERS, ["Nobody"]) == []


@pytest.mark.parametrize("name", PEERS)
def test_every_trainer_learns_the_same(
    script: Callable[[str], ModuleType], peer_jobs: ModuleType, job: Any, name: str
) -> None:
    if not script("trainers").installed([name]):
        pytest.skip(f"{name} is not installed; make bench-peers has it")
    raw, other = peer_jobs.raw(job), peer_jobs.PEERS[name](job)

    assert float((other.weights - raw.weights).abs().max()) < 1e-6
    assert other.losses == pytest.approx(raw.losses, rel=1e-5)
    assert other.accuracies == pytest.approx(raw.accuracies)


def test_ratios_are_taken_within_a_round_and_name_best_and_median(script: Callable[[str], ModuleType]) -> None:
    end_to_end, outcome = script("end_to_end"), script("fresh").Outcome

    def runs(*seconds: float, **more: Any) -> list[Any]:
        learned = {"losses": [1.0], "accuracies": [0.5], "weights": torch.tensor([1.0])}
        return [outcome(seconds=each, **learned, peak_rss_bytes=3_000_000, **more) for each in seconds]

    results = end_to_end.compare(
        {
            "raw over a loader": runs(6.0, 12.0),
            "raw over a loader again": runs(6.0, 12.0),
            "floor: bare steps": runs(1.6, 3.2, notes={"evaluation_s": 0.4}),
            "floor: bare steps, freed memory kept": runs(1.0, 2.0, notes={"evaluation_s": 0.4}),
            "velodrome.fit": runs(2.0, 4.0),
            "velodrome.fit, switches": runs(1.0, 2.0),
            "Ignite": runs(3.0, 12.0),  # 1.5 and 3 times ours
            "Keras": runs(8.0, 8.0),  # 4 and 2 times ours
            "skorch": runs(4.0, 16.0),  # 2 and 4 times ours
        }
    )

    assert results["best_peer"]["median"] == 1.75  # (3/2 + 8/4) / 2
    assert results["median_peer"]["median"] == 2.5  # (4/2 + 12/4) / 2
    assert results["times_floor"]["median"] == 1.25  # 2/1.6
    assert results["times_kept_floor"]["median"] == 2.0  # 2/1
    assert results["times_floor_with_evaluation"]["min"] == 1.0  # 2/(1.6 + 0.4)
    assert results["switches_speed"]["median"] == 2.0
    assert results["noise"]["median"] == 1.0
    assert results["arms"]["Ignite"]["weights_equal"]
    assert results["arms"]["Ignite"]["peak_rss_mb"] == 3.0
    assert any("takes 1.75 times ours (goal 1.2)" in line for line in end_to_end.sentences(results))
