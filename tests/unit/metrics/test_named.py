import pytest
import torch

from velodrome.errors import ArgumentError, DataError
from velodrome.metrics.named import Labels, known_names, named_metric


def values(name, output, target, **arguments):
    return named_metric(name, Labels(**arguments)).values(torch.tensor(output), torch.tensor(target)).tolist()


def test_accuracy_of_classes():
    assert values("accuracy", [[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], [1, 1, 1]) == [True, False, True]


def test_accuracy_of_class_probabilities_as_targets():
    assert values("accuracy", [[0.1, 0.9], [0.8, 0.2]], [[0.4, 0.6], [0.0, 1.0]]) == [True, False]


def test_accuracy_of_segmentation_has_a_value_a_pixel():
    output = torch.zeros(1, 3, 2, 2)
    output[0, 2, 0, 0] = output[0, 1, 1, 1] = 1
    target = torch.tensor([[[2, 0], [1, 1]]])
    assert named_metric("accuracy", Labels()).values(output, target).tolist() == [[[True, True], [False, True]]]


@pytest.mark.parametrize("shape", [(4,), (4, 1), (2, 2)])
def test_accuracy_of_binary_labels_compares_with_the_threshold(shape):
    logits = torch.tensor([-2.0, 0.3, 0.7, 3.0]).reshape(shape)
    labels = torch.tensor([0.0, 1.0, 1.0, 0.0]).reshape(shape)
    at_zero = named_metric("accuracy", Labels(binary_threshold=0.0, is_binary=True, threshold_is_known=True)).values(
        logits, labels
    )
    assert at_zero.flatten().tolist() == [True, True, True, False]
    at_half = named_metric("accuracy", Labels()).values(logits.sigmoid(), labels.long())
    assert at_half.flatten().tolist() == [True, True, True, False]


def test_accuracy_of_one_output_against_flat_labels_is_binary_and_not_always_class_0():
    assert values("accuracy", [[2.0], [-1.0], [3.0]], [1, 0, 0], binary_threshold=0.0, threshold_is_known=True) == [
        True,
        True,
        False,
    ]


def test_accuracy_of_several_yes_or_no_outputs_is_not_that_of_classes():
    probabilities, labels = [[0.9, 0.8], [0.6, 0.2]], [[1.0, 0.0], [1.0, 0.0]]
    assert values("accuracy", probabilities, labels, is_binary=True) == [[True, False], [True, True]]
    assert values("accuracy", probabilities, labels) == [True, True]  # soft classes: the largest of each row


@pytest.mark.parametrize("name", ["accuracy", "top1"])
def test_ignored_targets_count_neither_as_right_nor_as_wrong(name):
    output, target = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]]), torch.tensor([0, -100, 0])
    total, count = named_metric(name, Labels(ignore_index=-100)).values(output, target)
    assert (total.item(), count.item()) == (1, 2)  # rows 0 and 2 count, row 0 is right


def test_accuracy_of_whole_numbers_compares_classes():
    assert values("accuracy", [3, 2, 0], [3, 1, 0]) == [True, False, True]
    assert values("accuracy", 1.0, 1) is True


def test_top_k():
    output = [[0.1, 0.2, 0.3, 0.4]] * 3
    assert values("top2", output, [3, 2, 1]) == [True, True, False]
    assert values("top_1", output, [3, 2, 1]) == [True, False, False]
    assert named_metric("top-3", Labels()).name == "top3"
    assert named_metric("top2", Labels()).values(torch.rand(2, 4, 3), torch.zeros(2, 3).long()).shape == (2, 3)


@pytest.mark.parametrize(
    ("output", "target"), [((4, 3), (4, 2)), ((4, 3), (1,)), ((4, 3, 5), (4, 1)), ((4,), (4, 1)), ((2, 3, 5), (2, 3))]
)
def test_shapes_that_do_not_fit_are_refused_with_both(output, target):
    for name, wish in (("accuracy", r"\(N, classes, ...\) against \(N, ...\)"), ("top1", "class indices")):
        with pytest.raises(DataError, match=wish) as caught:
            named_metric(name, Labels()).values(torch.zeros(output), torch.zeros(target).long())
        assert f"{output} with targets of shape {target}" in str(caught.value)


def test_top_k_of_mixed_labels_goes_by_the_largest_share():
    output = torch.tensor([[0.1, 0.5, 0.4], [0.7, 0.2, 0.1]])
    shares = torch.tensor([[0.2, 0.1, 0.7], [0.3, 0.1, 0.6]])  # class 2 is second and third
    assert named_metric("top2", Labels()).values(output, shares).tolist() == [True, False]


def test_top_k_of_fewer_classes_is_refused():
    with pytest.raises(DataError, match="with at least 5 classes"):
        named_metric("top5", Labels()).values(torch.zeros(2, 3), torch.zeros(2).long())


@pytest.mark.parametrize("name", ["accuracy", "top1"])
def test_what_is_no_tensor_is_refused(name):
    with pytest.raises(DataError, match=f"{name} got a dict as output. It compares tensors: give a function"):
        named_metric(name, Labels()).values({"logits": torch.zeros(2, 2)}, torch.zeros(2))
    with pytest.raises(DataError, match=f"{name} got a NoneType as target"):
        named_metric(name, Labels()).values(torch.zeros(2, 2), None)


@pytest.mark.parametrize("name", ["acuracy", "Accuracy", "top0", "top", "f1"])
def test_unknown_names_are_refused_with_the_known_ones(name):
    with pytest.raises(ArgumentError, match=r"is not a known metric.*Known: accuracy, top5. Or give any torchmetrics"):
        named_metric(name, Labels())
    assert known_names() == ["accuracy", "top5"]


def test_accuracy_of_a_regression_is_refused():
    with pytest.raises(DataError, match="targets from 0.5 to 3, which are not all 0 or 1. It is for classes"):
        values("accuracy", [[0.1], [0.7]], [[0.5], [3.0]])


def test_accuracy_of_logits_under_an_unknown_loss_is_refused_and_under_a_known_one_counted():
    with pytest.raises(DataError, match="outputs from -2 to 0.3 and cannot tell where a yes begins"):
        values("accuracy", [[-2.0], [0.3]], [[0.0], [1.0]])
    assert values("accuracy", [[-2.0], [0.3]], [[0.0], [1.0]], threshold_is_known=True) == [[True], [False]]


def test_only_the_first_values_are_looked_at():
    metric = named_metric("accuracy", Labels())
    metric.values(torch.tensor([0.2, 0.9]), torch.tensor([0.0, 1.0]))
    assert metric.values(torch.tensor([7.0]), torch.tensor([1.0])).tolist() == [True]
