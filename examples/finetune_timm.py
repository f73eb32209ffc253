"""Fine-tuning a timm model: the head alone while the backbone is frozen, then everything with a small rate for the backbone.

Frozen means two things here: `freeze=` keeps the weights, and `.eval()` on a layer keeps BatchNorm's running statistics. A
model in training mode keeps the modules that you put in eval mode where they are.

The model is built from its name with random weights, so that nothing is downloaded; give pretrained=True for a real task.

    pip install timm
    python examples/finetune_timm.py
"""

from __future__ import annotations

import timm
import torch
from torch import Tensor

import velodrome as vd


def stripes(num_images: int) -> tuple[Tensor, Tensor]:
    """Return noisy images of horizontal (0) and vertical (1) stripes of many widths, and which they are."""
    labels = torch.randint(2, (num_images,))
    phases = 0.5 + torch.rand(num_images, 1) + torch.arange(32) * (0.4 + 0.8 * torch.rand(num_images, 1))
    waves = phases.sin()[:, None, None, :].expand(num_images, 3, 32, 32)
    images = torch.where(labels[:, None, None, None] == 1, waves, waves.transpose(2, 3))
    return images + 0.5 * torch.randn(num_images, 3, 32, 32), labels


def main(num_images: int = 256, head_epochs: int = 2, all_epochs: int = 4, device: str = "auto") -> dict:
    """Train both stages, and return the updates made and the validation accuracy after each."""
    vd.seed_everything(0)
    train, val = stripes(num_images), stripes(128)
    model = timm.create_model("test_resnet", pretrained=False, num_classes=2)
    settings = {"loss": "cross_entropy", "metrics": ["accuracy"], "device": device, "progress": False}

    # Stage 1: the head on top of features that stay as they are.
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    frozen = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = vd.Trainer(model, "adamw", lr=1e-2, freeze=["conv1", "bn1", "layer*"], **settings)
    first.fit(train, val, batch_size=32, epochs=head_epochs)
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor.cpu(), frozen[name])]

    # Stage 2: all of it, the head faster than the backbone.
    model.requires_grad_(True)
    model.train()
    second = vd.Trainer(
        model, "adamw", lr=1e-3, parameter_groups={"fc": {"lr": 3e-3}}, clip_norm=1.0, scheduler="cosine", **settings
    )
    second.fit(train, val, batch_size=32, epochs=all_epochs)

    result = {
        "steps": (first.progress.steps_done, second.progress.steps_done),
        "changed_in_stage_1": changed,
        "accuracy": (first.result.metrics["val/accuracy"], second.result.metrics["val/accuracy"]),
        "losses": [row["train/loss"] for row in second.result.history],
    }
    print(f"head alone: {len(changed)} of {len(frozen)} tensors changed, accuracy {result['accuracy'][0]:.2f}")
    print(f"all of it: accuracy {result['accuracy'][1]:.2f} after {sum(result['steps'])} updates")
    return result


if __name__ == "__main__":
    main()
