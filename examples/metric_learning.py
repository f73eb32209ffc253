"""Metric learning: a Siamese network with a triplet loss. The model has three inputs and no target.

An element of the data is (anchor, positive, negative); the model, called with all three, returns its loss, and `fit` takes
it from there. What is wanted in the end is the embedding, so it is judged by a nearest-neighbour search, after training and
in plain PyTorch on `trainer.predict`'s output.

Source: F. Schroff et al., "FaceNet: A Unified Embedding for Face Recognition and Clustering", 2015, section 3.1.

    python examples/metric_learning.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import velodrome as vd

NUM_CLASSES, NUM_FEATURES = 8, 16


def samples(num_samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return features of which four tell the class, and twelve, much louder, tell nothing."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(NUM_CLASSES, (num_samples,), generator=generator)
    centres = torch.randn(NUM_CLASSES, 4, generator=torch.Generator().manual_seed(7))
    quiet = centres[labels] + 0.3 * torch.randn(num_samples, 4, generator=generator)
    loud = 3 * torch.randn(num_samples, NUM_FEATURES - 4, generator=generator)
    return torch.cat([quiet, loud], dim=1), labels


class Triplets(Dataset):
    """An anchor, another sample of its class, and one of another class; drawn anew every epoch."""

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs = inputs
        self.labels = labels
        self.of_class = [(labels == k).nonzero().flatten() for k in range(NUM_CLASSES)]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        label = int(self.labels[index])
        other = (label + int(torch.randint(1, NUM_CLASSES, ()))) % NUM_CLASSES
        return self.inputs[index], self.draw(label), self.draw(other)

    def draw(self, label: int) -> Tensor:
        """Return a sample of the class."""
        members = self.of_class[label]
        return self.inputs[members[torch.randint(len(members), ())]]


class Siamese(nn.Module):
    """One network for all three; returns the embedding of one input, or the loss of a triplet."""

    def __init__(self, margin: float = 0.3) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(NUM_FEATURES, 64), nn.ReLU(), nn.Linear(64, 8))
        self.loss = nn.TripletMarginLoss(margin)

    def forward(self, anchor: Tensor, positive: Tensor | None = None, negative: Tensor | None = None) -> Tensor:
        """Return embeddings on the unit sphere, or the loss."""
        points = [nn.functional.normalize(self.embed(x), dim=1) for x in (anchor, positive, negative) if x is not None]
        return points[0] if len(points) == 1 else self.loss(*points)


def nearest_neighbour_accuracy(points: Tensor, labels: Tensor) -> float:
    """Return how often the nearest other point is of the same class."""
    distances = torch.cdist(points, points).fill_diagonal_(torch.inf)
    return float((labels[distances.argmin(dim=1)] == labels).float().mean())


def main(num_samples: int = 1000, epochs: int = 8, device: str = "auto") -> dict:
    """Train, and return the updates made, the losses, and the retrieval accuracy before and after."""
    vd.seed_everything(0)
    val_inputs, val_labels = samples(400, seed=2)
    trainer = vd.Trainer(Siamese(), "adam", lr=3e-3, device=device, progress=False)
    before = nearest_neighbour_accuracy(trainer.predict(val_inputs), val_labels)

    result = trainer.fit(Triplets(*samples(num_samples, seed=1)), batch_size=64, epochs=epochs)

    after = nearest_neighbour_accuracy(trainer.predict(val_inputs), val_labels)
    losses = [row["train/loss"] for row in result.history]
    print(f"{trainer.progress.steps_done} updates; triplet loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(
        f"nearest neighbour of the same class: {100 * before:.0f}% before, {100 * after:.0f}% after (chance is {100 / NUM_CLASSES:.0f}%)"
    )
    return {"steps": trainer.progress.steps_done, "losses": losses, "before": before, "after": after}


if __name__ == "__main__":
    main()
