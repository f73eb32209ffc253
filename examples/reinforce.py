"""Reinforcement learning: between two updates the policy makes the data for the next one.

The data are a generator function that plays episodes with the policy as it is now, and `fit` asks it for one batch a step:
nothing is fetched ahead, so every batch is on-policy. A `step_fn` computes REINFORCE's loss. The environment is a corridor:
start in the middle, one reward at the right end, a small price for every move, so that running straight there is best.

Source: R. J. Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning", 1992.

    python examples/reinforce.py
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import velodrome as vd

NUM_CELLS, MAX_MOVES = 9, 30
LEFT_END, START, RIGHT_END = 0, NUM_CELLS // 2, NUM_CELLS - 1


class Corridor:
    """Many corridors side by side, each with a walker; an episode ends at either end or after `MAX_MOVES`."""

    def __init__(self, num_walkers: int) -> None:
        self.cells = torch.full((num_walkers,), START)
        self.moves = 0

    @property
    def is_running(self) -> Tensor:
        """Which walkers are still on their way."""
        between = (self.cells > LEFT_END) & (self.cells < RIGHT_END)
        return between & (self.moves < MAX_MOVES)

    def step(self, go_right: Tensor) -> Tensor:
        """Move every running walker, and return the rewards."""
        running = self.is_running
        self.moves += 1
        self.cells = torch.where(running, self.cells + 2 * go_right - 1, self.cells)
        arrived = running & (self.cells == RIGHT_END)
        return torch.where(running, -0.05, 0.0) + arrived.float()


@torch.no_grad()
def play(policy: nn.Module, num_walkers: int) -> dict[str, Tensor]:
    """Return what the walkers saw, did and earned from there to the end, of every move that was made."""
    world, seen, done, rewards, running = Corridor(num_walkers), [], [], [], []
    device = next(policy.parameters()).device
    while world.is_running.any():
        running.append(world.is_running)
        cells = F.one_hot(world.cells, NUM_CELLS).float()
        actions = torch.distributions.Categorical(logits=policy(cells.to(device))).sample().cpu()
        rewards.append(world.step(actions))
        seen.append(cells)
        done.append(actions)
    returns = torch.stack(rewards).flip(0).cumsum(0).flip(0)
    was_running = torch.stack(running)
    # One element a walker, so that the samples counted are episodes; moves after the end are masked.
    return {
        "cells": torch.stack(seen, dim=1),
        "actions": torch.stack(done, dim=1),
        "returns": returns.T,
        "mask": was_running.T.float(),
    }


def reinforce(policy: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the policy-gradient loss: make what earned more than the average more likely."""
    mask = batch["mask"]
    num_moves = mask.sum()
    advantage = batch["returns"] - (batch["returns"] * mask).sum() / num_moves
    log_probabilities = F.log_softmax(policy(batch["cells"]), dim=-1).gather(-1, batch["actions"][..., None])[..., 0]
    loss = -(log_probabilities * advantage * mask).sum() / num_moves
    return {
        "loss": loss,
        "items": num_moves,
    }  # the loss is a mean over moves, and there are more of them in some batches


def main(steps: int = 60, num_walkers: int = 32, accumulate: int = 1, device: str = "auto") -> dict:
    """Train, and return the updates made and the mean return of an episode, before and after."""
    vd.seed_everything(0)
    policy = nn.Linear(NUM_CELLS, 2, bias=False)
    trainer = vd.Trainer(
        policy, "adam", lr=0.1, step_fn=reinforce, accumulate=accumulate, clip_norm=1.0, device=device, progress=False
    )

    def episodes() -> Iterator[dict[str, Tensor]]:
        while True:
            yield play(policy, num_walkers)

    before = play(policy, 500)["returns"][:, 0].mean().item()
    result = trainer.fit(episodes, steps=steps)
    after = play(policy, 500)["returns"][:, 0].mean().item()

    best = 1 - 0.05 * (RIGHT_END - START)
    print(f"{trainer.progress.steps_done} updates on {trainer.progress.samples_done} episodes. {result.stop_reason}")
    print(f"mean return {before:.2f} before, {after:.2f} after (the best is {best:.2f})")
    return {
        "steps": trainer.progress.steps_done,
        "episodes": trainer.progress.samples_done,
        "before": before,
        "after": after,
        "best": best,
    }


if __name__ == "__main__":
    main()
