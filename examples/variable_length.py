"""Sequences of different lengths: padded batches, a loss that is a mean over tokens, and gradients that know it.

A batch of long sequences holds more tokens than one of short ones. `trainer.step(loss, items=tokens)` says so: in an
accumulation window the gradient is then that of the mean over all its tokens, as if they had been one batch, and the loss
in the records is the mean over all tokens too. The mean of the batches' means would be neither.

    python examples/variable_length.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

import velodrome as vd

NUM_SYMBOLS, NO_TARGET = 6, -100


class Sums(Dataset):
    """Sequences of digits 0 to 5; the target at each place is the sum of the two last ones, modulo 6."""

    def __init__(self, num_sequences: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(2, 20, (num_sequences,), generator=generator)
        self.sequences = [torch.randint(NUM_SYMBOLS, (int(n),), generator=generator) for n in lengths]

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        digits = self.sequences[index]
        return digits, (digits + F.pad(digits, (1, 0))[:-1]) % NUM_SYMBOLS


def pad(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return inputs and targets, each (batch, longest); places behind a sequence's end have no target."""
    inputs, targets = zip(*samples, strict=True)
    return (
        pad_sequence(list(inputs), batch_first=True),
        pad_sequence(list(targets), batch_first=True, padding_value=NO_TARGET),
    )


class Tagger(nn.Module):
    """An embedding, a GRU, and scores for every place."""

    def __init__(self, num_hidden: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(NUM_SYMBOLS, 16)
        self.read = nn.GRU(16, num_hidden, batch_first=True)
        self.score = nn.Linear(num_hidden, NUM_SYMBOLS)

    def forward(self, digits: Tensor) -> Tensor:
        """Return scores of shape (batch, length, symbols)."""
        return self.score(self.read(self.embed(digits))[0])


def main(num_sequences: int = 480, epochs: int = 6, accumulate: int = 2, device: str = "auto") -> dict:
    """Train, and return the updates made, the losses, and the accuracy over all tokens of the validation data."""
    vd.seed_everything(0)
    trainer = vd.Trainer(Tagger(), "adam", lr=2e-2, accumulate=accumulate, clip_norm=1.0, device=device, progress=False)
    train = vd.DataLoader(Sums(num_sequences, seed=1), batch_size=16, shuffle=True, collate_fn=pad)
    val = vd.DataLoader(Sums(100, seed=2), batch_size=50, collate_fn=pad)

    for epoch in trainer.epochs(epochs):
        for digits, targets in epoch.train(train):
            scores = trainer.model(digits)
            loss = F.cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=NO_TARGET)
            trainer.step(loss, items=(targets != NO_TARGET).sum())  # stays on the device: nothing waits for it
        for digits, targets in epoch.evaluate(val):
            hits = trainer.model(digits).argmax(dim=2) == targets
            trainer.log(accuracy=hits[targets != NO_TARGET].float())  # one value a token: the mean is over tokens

    losses = [row["train/loss"] for row in trainer.result.history]
    accuracy = trainer.result.metrics["val/accuracy"]
    print(f"{trainer.progress.steps_done} updates; loss a token {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(f"{100 * accuracy:.1f}% of the validation tokens")
    return {"steps": trainer.progress.steps_done, "losses": losses, "accuracy": accuracy}


if __name__ == "__main__":
    main()
