"""The shipped fakes have the answers that their docstrings promise."""

from __future__ import annotations

import torch

from velodrome.testing.tiny import tiny_classification, tiny_cnn, tiny_mlp, tiny_regression


def test_tiny_classification_labels_are_where_the_largest_input_is() -> None:
    inputs, labels = tiny_classification(num_samples=50, num_features=5, num_classes=3)

    assert inputs.shape == (50, 5)
    assert torch.equal(inputs.argmax(1), labels)
    assert labels.bincount().tolist() == [17, 17, 16]


def test_tiny_regression_follows_its_formula() -> None:
    inputs, targets = tiny_regression(num_samples=3, num_features=2)

    expected = 1.0 * inputs[:, 0] + 2.0 * inputs[:, 1] + 0.5
    torch.testing.assert_close(targets[:, 0], expected)
    assert targets.shape == (3, 1)


def test_models_are_fixed_by_their_seed_and_leave_the_random_state_alone() -> None:
    before = torch.get_rng_state()

    first, second, other = tiny_mlp(seed=1), tiny_mlp(seed=1), tiny_mlp(seed=2)

    assert torch.equal(first[0].weight, second[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_tiny_cnn_takes_images_of_8_by_8() -> None:
    assert tiny_cnn(num_classes=4)(torch.zeros(2, 1, 8, 8)).shape == (2, 4)


def test_data_is_fixed_by_its_seed() -> None:
    assert torch.equal(tiny_classification(seed=3)[0], tiny_classification(seed=3)[0])
    assert not torch.equal(tiny_classification(seed=3)[0], tiny_classification(seed=4)[0])
