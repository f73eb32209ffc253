"""Transforms of whole batches, random ones too: `velodrome.DataLoader(data, 128, transform=velodrome.transforms.Compose([...]))`.

```python
from velodrome import transforms

augment = transforms.Compose([
    transforms.RandomCrop(28, padding=2),
    transforms.RandomHorizontalFlip(),
    transforms.Normalize(0.286, 0.353),
    transforms.Cutout(8),
])
train = vd.DataLoader((images, labels), 128, shuffle=True, transform=augment)
```

One operation changes a whole batch, on the device that the data lie on, and still each sample's change is a function of (seed, epoch,
index) alone: not of the batch size, the other samples of the batch, the number of processes or workers, or where a run was interrupted.
"""

from velodrome.data.transforms.base import Compose, Draws, Transform
from velodrome.data.transforms.erasing import Cutout, RandomErasing
from velodrome.data.transforms.geometry import RandomCrop, RandomHorizontalFlip, RandomTranslate, RandomVerticalFlip
from velodrome.data.transforms.values import ColorJitter, GaussianNoise, Normalize, ToFloat

__all__ = [
    "ColorJitter",
    "Compose",
    "Cutout",
    "Draws",
    "GaussianNoise",
    "Normalize",
    "RandomCrop",
    "RandomErasing",
    "RandomHorizontalFlip",
    "RandomTranslate",
    "RandomVerticalFlip",
    "ToFloat",
    "Transform",
]
