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
`MixUp` and `CutMix` mix samples of one batch, and so depend on which samples are in it; on nothing else.
"""

from velodrome.data.transforms.affine import RandomAffine, RandomRotation
from velodrome.data.transforms.base import Compose, Draws, Transform
from velodrome.data.transforms.colors import ColorJitter
from velodrome.data.transforms.erasing import Cutout, RandomErasing
from velodrome.data.transforms.geometry import RandomCrop, RandomHorizontalFlip, RandomTranslate, RandomVerticalFlip
from velodrome.data.transforms.mixing import CutMix, MixUp
from velodrome.data.transforms.resizing import RandomResizedCrop, Resize
from velodrome.data.transforms.values import GaussianNoise, Normalize, ToFloat

__all__ = [
    "ColorJitter",
    "Compose",
    "CutMix",
    "Cutout",
    "Draws",
    "GaussianNoise",
    "MixUp",
    "Normalize",
    "RandomAffine",
    "RandomCrop",
    "RandomErasing",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "RandomRotation",
    "RandomTranslate",
    "RandomVerticalFlip",
    "Resize",
    "ToFloat",
    "Transform",
]
