"""Every script of examples/ runs, makes the number of updates that its sizes give, and learns what it says."""

from __future__ import annotations

import importlib.util
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from velodrome.testing.torchvision_cpu import import_torchvision

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[2] / "examples"
TESTED = {
    "gan", "finetune_timm", "finetune_transformers", "distillation", "metric_learning", "reinforce", "variable_length",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _without_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, **sizes: Any) -> dict[str, Any]:
    return load(name).main(device="cpu", **sizes)


def test_every_example_is_tested_and_listed() -> None:
    scripts = {path.stem for path in ROOT.glob("*.py")}
    listed = set(re.findall(r"\(([a-z_]+)\.py\)", (ROOT / "README.md").read_text(encoding="utf-8")))

    assert scripts == TESTED == listed


@pytest.mark.parametrize("name", sorted(TESTED))
def test_examples_fit_on_two_screens_and_use_public_names_only(name: str) -> None:
    text = (ROOT / f"{name}.py").read_text(encoding="utf-8")

    assert 40 <= len(text.splitlines()) <= 120
    assert "from velodrome" not in text  # `import velodrome as vd`, and what that offers
    assert re.findall(r"(?:vd|trainer|epoch|result)\._\w+", text) == []


@pytest.mark.parametrize(("accumulate", "windows"), [(1, 64), (2, 32), (5, 13)])
def test_gan_counts_the_updates_of_both_networks(accumulate: int, windows: int) -> None:
    result = run("gan", epochs=1, accumulate=accumulate)

    assert result["steps"] == 2 * windows  # 64 batches: with 5 a window, 12 and a short one
    assert {"train/critic/grad_norm", "train/generator/grad_norm", "lr/critic", "lr/generator"} <= result["row"].keys()


def test_gan_learns_the_ring() -> None:
    result = run("gan")

    assert result["steps"] == 12 * 2 * (4096 // 64 // 2)
    assert result["distance_before"] > 1.5
    assert result["distance_after"] < 0.6


def test_gan_trains_in_fp16_with_a_scale_for_each_network() -> None:
    result = run("gan", epochs=6, precision="fp16")

    assert result["steps"] == 6 * 2 * 32
    assert result["row"]["skipped_steps"] == 0
    assert result["distance_after"] < 0.75 * result["distance_before"]


def test_timm_model_is_tuned_in_two_stages() -> None:
    with suppress(ImportError):
        import_torchvision()  # which timm imports, and which may not fit the build of torch
    pytest.importorskip("timm")
    result = run("finetune_timm")

    assert result["steps"] == (2 * 256 // 32, 4 * 256 // 32)
    assert result["changed_in_stage_1"] == ["fc.weight", "fc.bias"]  # neither other weights nor BatchNorm statistics
    assert result["losses"][-1] < result["losses"][0]
    assert result["accuracy"][1] > 0.95


def test_transformers_model_returns_its_loss() -> None:
    with suppress(ImportError):
        import_torchvision()  # which transformers imports where it is installed, and which may not fit the build of torch
    pytest.importorskip("transformers")
    result = run("finetune_transformers")

    assert result["steps"] == 6 * (512 // 16 // 2)
    assert result["losses"][-1] < 0.5 * result["losses"][0]
    assert result["accuracy"] > 0.9  # chance is 0.5


def test_student_learns_from_the_teacher() -> None:
    result = run("distillation")

    assert result["steps"] == 20 * 600 // 50
    assert result["losses"][-1] < 0.5 * result["losses"][0]
    assert result["accuracy"] > 0.9  # chance is 1/3
    assert result["teacher_is_unchanged"]


def test_embedding_finds_neighbours_of_the_same_class() -> None:
    result = run("metric_learning")

    assert result["steps"] == 8 * 16  # 1000 samples in batches of 64
    assert result["losses"][-1] < 0.5 * result["losses"][0]
    assert result["before"] < 0.4  # chance is 1/8
    assert result["after"] > 0.6


def test_policy_learns_from_its_own_episodes() -> None:
    result = run("reinforce")

    assert (result["steps"], result["episodes"]) == (60, 60 * 32)
    assert result["before"] < 0.0
    assert result["after"] > 0.9 * result["best"]


def test_policy_accumulates_over_batches_of_episodes() -> None:
    result = run("reinforce", steps=3, num_walkers=8, accumulate=4)

    assert (result["steps"], result["episodes"]) == (3, 3 * 4 * 8)


@pytest.mark.parametrize(("accumulate", "windows"), [(1, 30), (2, 15), (4, 8)])
def test_tagger_updates_once_a_window(accumulate: int, windows: int) -> None:
    result = run("variable_length", epochs=1, accumulate=accumulate)

    assert (
        result["steps"] == windows
    )  # 480 sequences in batches of 16: 30 micro-batches, the last of 4 windows is short


def test_tagger_learns_sums() -> None:
    result = run("variable_length")

    assert result["steps"] == 6 * 15
    assert result["losses"][-1] < 0.1 * result["losses"][0]
    assert result["accuracy"] > 0.95  # chance is 1/6
