"""The batch that an export is traced with and compared on: what a model is given, without the target."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from velodrome.errors import DataError
from velodrome.recipes.loaded_data import is_indexed
from velodrome.recipes.named_transforms import make_transform
from velodrome.step.eager import split_batch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from velodrome.recipes.loaded_data import LoadedData
    from velodrome.recipes.schema import Recipe

__all__ = ["SIZES", "Example", "draw_example", "read_example"]

SIZES = (4, 1, 3)
"""samples in the batch that is traced, and in those that the file is run on too: 1 and 0 are what programs specialise on"""
Value = TypeVar("Value")
_MOST_SAMPLES = 256  # looked at for the range of values


@dataclass(frozen=True, kw_only=True)
class Example:
    """Inputs of a model.

    Args:
        inputs: by position or by name, as the model is called.
        batched: those whose first dimension is that of the samples: it is left open.
        num_samples: in these.
        origin: where they are from, in words; empty where they were drawn.
    """

    inputs: Mapping[int | str, Tensor]
    batched: frozenset[int | str]
    num_samples: int
    origin: str = ""

    @property
    def args(self) -> tuple[Tensor, ...]:
        """Those by position."""
        return tuple(tensor for key, tensor in self.inputs.items() if isinstance(key, int))

    @property
    def kwargs(self) -> dict[str, Tensor]:
        """Those by name."""
        return {key: tensor for key, tensor in self.inputs.items() if isinstance(key, str)}

    def of_size(self, size: int) -> Example:
        """Return as many samples, from the first on; where there are fewer, they come again."""
        rows = torch.arange(size) % self.num_samples
        inputs = {key: tensor[rows] if key in self.batched else tensor for key, tensor in self.inputs.items()}
        return replace(self, inputs=inputs, num_samples=size)

    def in_order_of(self, model: nn.Module) -> Example:
        """Return the same inputs, those by name in the order of the parameters of `forward`: a program has them in the order of the call."""
        places = {name: place for place, name in enumerate(inspect.signature(model.forward).parameters)}
        keys = sorted(self.inputs, key=lambda key: -1 if isinstance(key, int) else places.get(key, len(places)))
        return replace(self, inputs={key: self.inputs[key] for key in keys})

    def named(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the inputs by the names and in the order of the parameters of `forward`; of `*inputs` they are numbered."""
        return _bind(model, self.inputs)

    def shapes(self, model: nn.Module) -> dict[str, list[int | str]]:
        """Return the shape of each input, with "batch" for the open dimension."""
        shapes: dict[int | str, list[int | str]] = {
            key: ["batch", *tensor.shape[1:]] if key in self.batched else list(tensor.shape)
            for key, tensor in self.inputs.items()
        }
        return _bind(model, shapes)

    def run(self, model: Any) -> Any:  # Any: a module or what was read back; whatever it returns
        """Return what a model gives for these inputs."""
        with torch.no_grad():
            return model(*self.args, **self.kwargs)


def _bind(model: nn.Module, values: Mapping[int | str, Value]) -> dict[str, Value]:
    signature = inspect.signature(model.forward)
    kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
    args = [value for key, value in values.items() if isinstance(key, int)]
    bound = signature.bind(*args, **{key: value for key, value in values.items() if isinstance(key, str)}).arguments
    found: dict[str, Value] = {}
    for name, value in bound.items():
        if kinds[name] is inspect.Parameter.VAR_POSITIONAL:
            found |= {f"{name}_{n}": each for n, each in enumerate(value)}
        elif kinds[name] is inspect.Parameter.VAR_KEYWORD:
            found |= value
        else:
            found[name] = value
    return found


def read_example(data: LoadedData, recipe: Recipe) -> Example:
    """Return inputs as evaluation gives them to the model: of validation data, or else of training data.

    Raises:
        DataError: there is no batch, or its inputs are no tensors.
    """
    from velodrome.data.loader import DataLoader

    source: Any
    source, role = (data.train, "training") if data.val is None else (data.val, "validation")
    if is_indexed(source):  # a loader of its own: no worker processes for one batch
        transform = make_transform(recipe.data.transforms, training=False)
        source = DataLoader(source, min(recipe.train.eval_batch_size, _MOST_SAMPLES), transform=transform)
    elif callable(source) and not hasattr(source, "__iter__"):
        source = source()
    batches: Any = source
    batch = next(iter(batches), None)
    if batch is None:
        raise DataError(
            f"The {role} data hold no batch to run the model on. Check [data], or use --format safetensors."
        )
    return _of_batch(batch, origin=f"the first {role} samples")


def draw_example(shape: tuple[int, ...], *, below: int | None = None) -> Example:
    """Return drawn inputs of a known shape, where the data themselves are not at hand.

    Args:
        shape: of one sample.
        below: whole numbers from 0 to this; None draws normal ones.
    """
    own = torch.Generator().manual_seed(0)
    size = (max(SIZES), *shape)
    drawn = torch.randn(size, generator=own) if below is None else torch.randint(below, size, generator=own)
    return Example(inputs={0: drawn}, batched=frozenset([0]), num_samples=len(drawn))


def _of_batch(batch: Any, *, origin: str) -> Example:
    """Take the target off a batch and bring the rest into the form of a call, as the loop does."""
    inputs = batch
    if isinstance(batch, Mapping):
        try:
            inputs = split_batch(batch)[0]
        except DataError:  # without a target all is input
            inputs = batch
    elif isinstance(batch, (tuple, list)):
        inputs = batch[0] if len(batch) == 1 else split_batch(batch)[0]
    if not isinstance(inputs, Mapping):
        inputs = dict(enumerate(inputs if isinstance(inputs, (tuple, list)) else [inputs]))
    for key, value in inputs.items():
        if not isinstance(value, torch.Tensor):
            raise DataError(
                f"Input {key!r} of a batch is a {type(value).__name__}. A program is exported for inputs that are tensors, by position or by "
                "name. Give the model such ones, or use --format safetensors, which needs no inputs."
            )
    sizes = Counter(len(tensor) for tensor in inputs.values() if tensor.ndim)
    num_samples = sizes.most_common(1)[0][0] if sizes else 0
    if not num_samples:
        raise DataError("A batch of the data holds no sample. Check [data], or use --format safetensors.")
    batched = frozenset(key for key, tensor in inputs.items() if tensor.ndim and len(tensor) == num_samples)
    return Example(inputs=inputs, batched=batched, num_samples=num_samples, origin=origin)
