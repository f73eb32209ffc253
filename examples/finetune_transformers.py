"""Fine-tuning a transformers model: batches are dicts, and the model returns its loss.

Nothing has to be said to the trainer about either: a dict goes to the model by its keys, and an output with a `loss` is one.
Metrics find the output in `logits` and the target in the batch's `labels`. The model is built from a config object, with
random weights, so that nothing is downloaded; use `from_pretrained` and a tokenizer for a real task.

    pip install transformers
    python examples/finetune_transformers.py
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification

import velodrome as vd

PAD, FIRST_WORD, NUM_WORDS = 0, 4, 32


class Sentences(Dataset):
    """Sentences of different lengths; the label says whether one of the eight "good" words is among them."""

    def __init__(self, num_sentences: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(2, (num_sentences,), generator=generator)
        self.words = []
        for label in self.labels:
            length = int(torch.randint(4, 12, (), generator=generator))
            words = torch.randint(FIRST_WORD + 8, NUM_WORDS, (length,), generator=generator)
            if label:
                position = int(torch.randint(length, (), generator=generator))
                words[position] = int(torch.randint(FIRST_WORD, FIRST_WORD + 8, (), generator=generator))
            self.words.append(words)

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.words[index], "labels": self.labels[index]}


def pad(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return a batch as long as its longest sentence, as a tokenizer's collator would."""
    words = torch.nn.utils.rnn.pad_sequence([s["input_ids"] for s in samples], batch_first=True, padding_value=PAD)
    return {
        "input_ids": words,
        "attention_mask": (words != PAD).long(),
        "labels": torch.stack([s["labels"] for s in samples]),
    }


def main(num_sentences: int = 512, epochs: int = 6, device: str = "auto") -> dict:
    """Train, and return the updates made, the losses and the validation accuracy."""
    vd.seed_everything(0)
    config = BertConfig(
        vocab_size=NUM_WORDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=16, num_labels=2,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    trainer = vd.Trainer(
        model,
        "adamw",
        lr=3e-3,
        optimizer_args={"weight_decay": 0.01},
        parameter_groups={"*.bias": {"weight_decay": 0.0}, "*LayerNorm*": {"weight_decay": 0.0}},
        metrics=["accuracy"],
        accumulate=2,
        clip_norm=1.0,
        device=device,
        progress=False,
    )
    train = vd.DataLoader(Sentences(num_sentences, seed=1), batch_size=16, shuffle=True, collate_fn=pad)
    val = vd.DataLoader(Sentences(128, seed=2), batch_size=64, collate_fn=pad)
    result = trainer.fit(train, val, epochs=epochs)

    losses = [row["train/loss"] for row in result.history]
    print(f"{trainer.progress.steps_done} updates; loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(f"{100 * result.metrics['val/accuracy']:.0f}% of the validation sentences")
    return {"steps": trainer.progress.steps_done, "losses": losses, "accuracy": result.metrics["val/accuracy"]}


if __name__ == "__main__":
    main()
