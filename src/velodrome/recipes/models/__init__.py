"""The models that a recipe can name, one file each; `registry.py` says which name means which."""

from velodrome.recipes.models.convolution import CNN, cnn
from velodrome.recipes.models.perceptron import MLP, mlp
from velodrome.recipes.models.transformer import GPT, gpt

__all__ = ["CNN", "GPT", "MLP", "cnn", "gpt", "mlp"]
