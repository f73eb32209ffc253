"""A GAN in a loop of your own: two networks, two optimizers, each with its own accumulation window, clipping and fp16 scale.

The generator learns a ring of eight Gaussians in the plane. Every line of the training is here; the trainer places batches,
accumulates, scales, clips, updates and records. `step(loss, optimizer="generator")` gives gradients to that optimizer's
parameters only, so that nothing has to be frozen or zeroed by hand.

    python examples/gan.py
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import velodrome as vd

NUM_NOISE, NUM_HIDDEN = 4, 64


def network(num_inputs: int, num_outputs: int) -> nn.Sequential:
    """Return two hidden layers."""
    return nn.Sequential(
        nn.Linear(num_inputs, NUM_HIDDEN), nn.ReLU(), nn.Linear(NUM_HIDDEN, NUM_HIDDEN), nn.ReLU(),
        nn.Linear(NUM_HIDDEN, num_outputs),
    )  # fmt: skip


def ring(num_points: int) -> Tensor:
    """Return points around eight centres on a circle of radius 2."""
    angles = torch.randint(8, (num_points,)) * (2 * math.pi / 8)
    return 2 * torch.stack([angles.cos(), angles.sin()], dim=1) + 0.1 * torch.randn(num_points, 2)


def judge(scores: Tensor, are_real: bool) -> Tensor:
    """Return how far the critic's scores are from saying that the points are real, or that they are not."""
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, float(are_real)))


def generate(model: nn.ModuleDict, num_points: int) -> Tensor:
    """Return points that the generator makes of noise."""
    noise = torch.randn(num_points, NUM_NOISE, device=next(model.parameters()).device)
    return model["generator"](noise)


@torch.no_grad()
def distance_to_ring(model: nn.ModuleDict) -> float:
    """Return how far generated points are from the circle that the real ones lie on, on average."""
    return float((generate(model, 1024).norm(dim=1) - 2).abs().mean())


def main(epochs: int = 12, accumulate: int = 2, precision: str = "fp32", device: str = "auto") -> dict:
    """Train, and return the updates made and the mean distance of generated points from the ring, before and after."""
    vd.seed_everything(0)
    # Both networks in one module: one thing to place, save and load. Its keys are the names of the optimizers.
    model = nn.ModuleDict({"generator": network(NUM_NOISE, 2), "critic": network(2, 1)})
    trainer = vd.Trainer(
        model,
        {"generator": "adam", "critic": "adam"},
        lr=3e-3,
        optimizer_args={"betas": (0.0, 0.9)},
        accumulate=accumulate,
        clip_norm=5.0,
        precision=precision,
        device=device,
        progress=False,
    )
    real_points, before = ring(4096), distance_to_ring(trainer.model)

    for epoch in trainer.epochs(epochs):
        for real in epoch.train(real_points, batch_size=64):
            critic = trainer.model["critic"]

            fake = generate(trainer.model, len(real)).detach()
            critic_loss = (judge(critic(real), are_real=True) + judge(critic(fake), are_real=False)) / 2
            trainer.step(critic_loss, optimizer="critic")

            generator_loss = judge(critic(generate(trainer.model, len(real))), are_real=True)
            trainer.step(generator_loss, optimizer="generator")

            trainer.log(critic=critic_loss, generator=generator_loss)

    row, after = trainer.result.metrics, distance_to_ring(trainer.model)
    print(
        f"{trainer.progress.steps_done} updates; losses: critic {row['train/critic']:.2f}, generator {row['train/generator']:.2f}"
    )
    print(f"distance from the ring: {before:.2f} before, {after:.2f} after")
    return {"steps": trainer.progress.steps_done, "distance_before": before, "distance_after": after, "row": row}


if __name__ == "__main__":
    main()
