"""The model of a recipe, written out as a class."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from velodrome.recipes import registry
from velodrome.recipes.eject.code import Part, keywords
from velodrome.recipes.eject.refuse import refusal
from velodrome.recipes.eject.transformer import GPT
from velodrome.recipes.eject.user_code import import_as

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from velodrome.recipes.schema import Recipe

__all__ = ["model_part"]

_MLP = '''\
class MLP(nn.Module):
    """Linear layers with an activation between them, on flattened inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.linear_relu_stack = nn.Sequential(
{layers}
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_relu_stack(self.flatten(x))
'''
_CNN = '''\
class CNN(nn.Module):
    """Convolutions, each with pooling and ReLU, then two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
{features}
        )
        self.classifier = nn.Sequential(
{classifier}
        )
        # Channels last in memory: about twice as fast on a CPU.
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))
'''
_ACTIVATIONS = {
    "relu": "ReLU", "gelu": "GELU", "tanh": "Tanh", "sigmoid": "Sigmoid", "leaky_relu": "LeakyReLU", "elu": "ELU",
    "silu": "SiLU",
}  # fmt: skip
_OUTPUTS = {"log_softmax": "nn.LogSoftmax(dim=1)", "sigmoid": "nn.Sigmoid()"}


def model_part(recipe: Recipe) -> tuple[Part, str, list[str]]:
    """Return the class, or the import of the user's own callable, what makes the model, and its arguments.

    Raises:
        RecipeError: a built-in model that is not written out here.
    """
    name, arguments = recipe.model.name, _with_defaults(recipe)
    if registry.is_user_code(name):
        line, maker = import_as(name, "make_model")
        return Part(imports=(line,)), maker, keywords(recipe.model.arguments)
    if name not in _WRITERS:
        raise refusal("model.name", name)
    return _WRITERS[name](arguments)


def _with_defaults(recipe: Recipe) -> dict[str, Any]:  # Any: whatever TOML can hold
    import inspect

    if registry.is_user_code(recipe.model.name):
        return {}
    parameters = inspect.signature(registry.resolve_model(recipe.model.name)).parameters.values()
    return {each.name: each.default for each in parameters} | recipe.model.arguments


def _mlp(arguments: Mapping[str, Any]) -> tuple[Part, str, list[str]]:
    layers = []
    for inputs, outputs in pairwise(arguments["sizes"]):
        layers += [f"nn.Linear({inputs}, {outputs})", f"nn.{_ACTIVATIONS[arguments['activation']]}()"]
    layers[-1:] = [_OUTPUTS[arguments["output"]]] if arguments["output"] in _OUTPUTS else []
    return Part(definitions=(_MLP.format(layers=_entries(layers)),)), "MLP", []


def _cnn(arguments: Mapping[str, Any]) -> tuple[Part, str, list[str]]:
    channels, size, norm = arguments["channels"], arguments["image_size"], arguments["batch_norm"]
    features = []
    for inputs, outputs in pairwise([arguments["in_channels"], *channels]):
        bias = ", bias=False" if norm else ""
        features.append(f"nn.Conv2d({inputs}, {outputs}, kernel_size=3, padding=1{bias})")
        features += [f"nn.BatchNorm2d({outputs})"] if norm else []
        features += ["nn.MaxPool2d(2)", "nn.ReLU()"]
        size //= 2
    hidden, dropout = arguments["hidden"], arguments["dropout"]
    classifier = [
        "nn.Flatten()",
        f"nn.Dropout({dropout!r})",
        f"nn.Linear({channels[-1] * size * size}, {hidden})",
        "nn.ReLU()",
        f"nn.Dropout({dropout!r})",
        f"nn.Linear({hidden}, {arguments['num_classes']})",
    ]
    text = _CNN.format(features=_entries(features), classifier=_entries(classifier))
    return Part(definitions=(text,)), "CNN", []


def _gpt(arguments: Mapping[str, Any]) -> tuple[Part, str, list[str]]:
    constants = (
        f"VOCAB_SIZE = {arguments['vocab_size']}  # different characters",
        f"CONTEXT = {arguments['context']}  # positions that the model can look back over",
        f"NUM_LAYERS = {arguments['num_layers']}",
        f"NUM_HEADS = {arguments['num_heads']}",
        f"WIDTH = {arguments['width']}  # numbers that a position carries",
        f"DROPOUT = {arguments['dropout']!r}",
    )
    return Part(imports=("import math",), constants=constants, definitions=GPT), "GPT", []


_WRITERS: dict[str, Callable[[Mapping[str, Any]], tuple[Part, str, list[str]]]] = {
    "mlp": _mlp,
    "cnn": _cnn,
    "gpt": _gpt,
}


def _entries(lines: Iterable[str]) -> str:
    return "\n".join(f"            {line}," for line in lines)
