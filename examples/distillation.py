"""Distillation: a small student learns from a large teacher, in one call with a `step_fn`.

`step_fn=(model, batch) -> {"loss": ...}` replaces forward and loss; everything else of `fit` stays: evaluation, metrics,
records. The teacher is not part of the model, so it is neither trained nor saved, and it stays in eval mode.

Source: G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.

    python examples/distillation.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import velodrome as vd


def spirals(num_points: int) -> tuple[Tensor, Tensor]:
    """Return noisy points of three spiral arms, and which arm each belongs to."""
    labels = torch.arange(num_points) % 3
    radius = torch.rand(num_points)
    angle = 4 * radius + labels * (2 * torch.pi / 3) + 0.3 * torch.randn(num_points)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1), labels


def network(num_hidden: int) -> nn.Sequential:
    """Return one hidden layer."""
    return nn.Sequential(
        nn.Linear(2, num_hidden), nn.ReLU(), nn.Linear(num_hidden, num_hidden), nn.ReLU(), nn.Linear(num_hidden, 3)
    )


def distil_from(
    teacher: nn.Module, temperature: float = 2.0, weight: float = 0.9
) -> Callable[[nn.Module, Any], dict[str, Tensor]]:
    """Return a step that mixes the teacher's soft answers with the labels."""
    teacher.eval()

    def step(student: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        inputs, labels = batch
        with torch.no_grad():
            soft = F.log_softmax(teacher(inputs) / temperature, dim=1)
        output = student(inputs)
        # The square keeps the gradients of both parts in proportion when the temperature changes.
        from_teacher = F.kl_div(
            F.log_softmax(output / temperature, dim=1), soft, log_target=True, reduction="batchmean"
        )
        loss = weight * temperature**2 * from_teacher + (1 - weight) * F.cross_entropy(output, labels)
        return {"loss": loss, "output": output, "target": labels}

    return step


def main(epochs: int = 20, device: str = "auto") -> dict:
    """Train teacher and student, and return the student's updates, its losses and both accuracies."""
    vd.seed_everything(0)
    few_labels, val = spirals(600), spirals(600)
    settings = {"batch_size": 50, "metrics": ["accuracy"], "optimizer": "adam", "device": device, "progress": False}

    teacher = network(64)
    vd.fit(teacher, few_labels, loss="cross_entropy", lr=5e-3, epochs=2 * epochs, **settings)
    taught = vd.evaluate(teacher, val, loss="cross_entropy", metrics=["accuracy"], device=device)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}

    result = vd.fit(network(16), few_labels, val, step_fn=distil_from(teacher), lr=2e-2, epochs=epochs, **settings)

    losses = [row["train/loss"] for row in result.history]
    print(f"{result.metrics['step']} updates of the student; loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(f"accuracy: teacher {taught['accuracy']:.3f}, student {result.metrics['val/accuracy']:.3f}")
    return {
        "steps": result.metrics["step"],
        "losses": losses,
        "accuracy": result.metrics["val/accuracy"],
        "teacher_accuracy": taught["accuracy"],
        "teacher_is_unchanged": all(torch.equal(teacher.state_dict()[name], tensor) for name, tensor in before.items()),
    }


if __name__ == "__main__":
    main()
