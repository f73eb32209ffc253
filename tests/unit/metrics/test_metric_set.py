import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics import MeanSquaredError, MetricCollection
from torchmetrics.classification import (
    BinaryAUROC,
    BinaryROC,
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)  # fmt: skip

from velodrome.errors import ArgumentError
from velodrome.metrics.metric_set import MetricSet, resolve_metrics

CPU = torch.device("cpu")


def make(*metrics):
    return MetricSet(resolve_metrics(list(metrics)), CPU)


def batches(sizes, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.rand(size, classes, generator=generator), torch.randint(classes, (size,), generator=generator))
        for size in sizes
    ]


def feed(metric_set, pairs):
    for output, target in pairs:
        metric_set.update(output, target)
    return metric_set.compute_blocking()


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=80))
@settings(max_examples=30, deadline=None)
def test_metrics_over_ragged_batches_are_those_over_all_samples(sizes):
    pairs = batches(sizes)
    outputs, targets = (torch.cat(part) for part in zip(*pairs, strict=True))
    result = feed(make("accuracy", "top2", lambda output, target: output.max(dim=1).values), pairs)
    num_right = int((outputs.argmax(1) == targets).sum())
    assert result["accuracy"] == num_right / len(targets)
    assert result["top2"] == pytest.approx(
        (outputs.topk(2).indices == targets[:, None]).double().sum().item() / len(targets)
    )
    assert result["<lambda>"] == pytest.approx(outputs.max(dim=1).values.double().mean().item(), rel=1e-12)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_torchmetrics_objects_give_what_they_give_when_used_directly(mode):
    metrics = [
        MulticlassAccuracy(3, average="micro"),
        MulticlassF1Score(3),
        MetricCollection({"macro": MulticlassAccuracy(3), "each": MulticlassF1Score(3, average=None)}),
        MulticlassConfusionMatrix(3),
    ]
    pairs = batches([5] * 40 + [2])  # 32 are given as one, the rest when the value is asked for
    metric_set = make(*metrics)
    for _ in range(2):
        with mode():
            metric_set.reset()
            for output, target in pairs:
                metric_set.update(output, target)
        result = metric_set.compute_blocking()  # the last nine batches go in here, outside
    for output, target in pairs:
        for metric in metrics:
            metric.update(output, target)
    accuracy, f1, collection, confusion = (metric.compute() for metric in metrics)
    expected = {
        "multiclass_accuracy": float(accuracy),
        "multiclass_f1_score": float(f1),
        "macro": float(collection["macro"]),
    }
    expected |= {f"each_{index}": float(value) for index, value in enumerate(collection["each"])}
    expected |= {f"multiclass_confusion_matrix_{i}": float(value) for i, value in enumerate(confusion.flatten())}
    assert result == pytest.approx(expected, rel=1e-6)


def test_area_under_the_curve_over_batches_is_that_over_all():
    generator = torch.Generator().manual_seed(0)
    pairs = [(torch.rand(4, generator=generator), torch.randint(2, (4,), generator=generator)) for _ in range(50)]
    metric = BinaryAUROC()
    metric.update(*(torch.cat(part) for part in zip(*pairs, strict=True)))
    assert feed(make(BinaryAUROC()), pairs)["binary_auroc"] == pytest.approx(float(metric.compute()))


def test_two_sets_of_one_object_share_nothing_and_leave_it_alone():
    metric = MeanSquaredError()
    metric.update(torch.zeros(1), torch.ones(1))
    first, second = make(metric), make(metric)
    assert feed(first, [(torch.zeros(2), torch.full((2,), 3.0))]) == {"mean_squared_error": 9.0}
    assert feed(second, [(torch.zeros(2), torch.full((2,), 2.0))]) == {"mean_squared_error": 4.0}
    assert metric.compute() == 1.0
    first.reset()
    assert feed(first, [(torch.zeros(1), torch.ones(1))]) == {"mean_squared_error": 1.0}


def test_reset_forgets_batches_that_are_still_held():
    metric_set = make("accuracy")
    metric_set.update(torch.eye(2), torch.tensor([1, 0]))
    metric_set.reset()
    assert metric_set.compute_blocking() == {}
    assert feed(metric_set, [(torch.eye(2), torch.tensor([0, 1]))]) == {"accuracy": 1.0}


@pytest.mark.parametrize(("shape", "num_held"), [((1, 2), 32), ((1 << 17, 2), 1)])
def test_batches_are_held_up_to_a_number_or_a_size(shape, num_held):
    seen = []

    def size(output, target):
        seen.append(len(output))
        return torch.zeros(len(output))

    metric_set = make(size)
    for step in range(1, 2 * num_held + 1):
        metric_set.update(torch.zeros(shape), torch.zeros(shape[0]))
        assert len(seen) == step // num_held
    metric_set.update(torch.zeros(1, 2), torch.zeros(1))
    assert len(seen) == 2
    metric_set.compute_blocking()
    assert seen == [num_held * shape[0], num_held * shape[0], 1]


def test_batches_of_other_shapes_are_not_mixed():
    result = feed(
        make("accuracy"),
        [
            (torch.eye(2), torch.tensor([0, 1])),
            (torch.eye(3), torch.tensor([0, 0, 0])),
            (torch.eye(2), torch.tensor([0, 1])),
        ],
    )
    assert result == {"accuracy": pytest.approx((2 + 1 + 2) / 7)}


def test_outputs_with_gradients_do_not_keep_the_graph():
    metric_set = make("accuracy", MulticlassAccuracy(2))
    output = torch.eye(2, requires_grad=True) * 2.0
    keep = torch.ones(())
    watcher = weakref.ref(keep)
    output.grad_fn.metadata["keep"] = keep
    metric_set.update(output, torch.tensor([0, 1]))
    del output, keep
    gc.collect()
    assert watcher() is None
    assert metric_set.compute_blocking() == {"accuracy": 1.0, "multiclass_accuracy": 1.0}


def test_soft_targets_with_gradients_do_not_keep_the_graph():
    metric_set = make("accuracy")
    target = torch.eye(2, requires_grad=True) * 1.0
    keep = torch.ones(())
    watcher = weakref.ref(keep)
    target.grad_fn.metadata["keep"] = keep
    metric_set.update(torch.eye(2), target)
    del target, keep
    gc.collect()
    assert watcher() is None


def test_functions_may_return_scalars_and_numbers_and_take_any_output():
    def mean_output(output, target):
        return output.mean()

    def half(output, target):
        return 0.5

    assert feed(make(mean_output, half), [(torch.ones(3), torch.ones(3)), (torch.zeros(1), torch.ones(1))]) == {
        "mean_output": (3 * 1 + 1 * 0) / 4,
        "half": 0.5,
    }
    pairs = [({"logits": torch.ones(2)}, None)]
    assert feed(make(lambda output, target: output["logits"] * 3), pairs) == {"<lambda>": 3.0}


def test_function_that_gives_nan_gives_nan():
    result = feed(make(lambda output, target: output / target), [(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]))])
    assert str(result["<lambda>"]) == "nan"


def test_names_come_from_the_metric_or_from_a_dict():
    resolved = resolve_metrics(["accuracy", "top_5", MulticlassF1Score(3), torch.nn.functional.mse_loss, BinaryAUROC()])
    assert list(resolved) == ["accuracy", "top5", "multiclass_f1_score", "mse_loss", "binary_auroc"]
    assert list(resolve_metrics({"acc": "accuracy", "f1": MulticlassF1Score(3)})) == ["acc", "f1"]
    assert resolve_metrics(()) == {}


def test_metrics_of_one_name_in_two_collections_are_both_given():
    def collection():
        return MetricCollection([MulticlassAccuracy(3)])

    result = feed(MetricSet(resolve_metrics({"a": collection(), "b": collection()}), CPU), batches([4]))
    assert list(result) == ["MulticlassAccuracy", "b_MulticlassAccuracy"]


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ("accuracy", "metrics='accuracy' is not a list. Write metrics=[\"accuracy\"]"),
        (5, "metrics=5 is not a list"),
        ([5], "metrics contains 5, which is no metric. Give a name, a torchmetrics object or a function"),
        ([None], "metrics contains None, which is no metric"),
        ([MulticlassAccuracy], "the class MulticlassAccuracy, not an object of it. Write MulticlassAccuracy(...)"),
        (["acuracy"], 'Did you mean "accuracy"'),
        (["accuracy", "accuracy"], "names 'accuracy' twice (the loss is always there). Give each its own name"),
        ({"loss": "accuracy"}, "names 'loss' twice"),
    ],
)
def test_what_is_no_metric_is_refused(metrics, message):
    with pytest.raises(ArgumentError) as caught:
        resolve_metrics(metrics)
    assert message in str(caught.value)


def test_metric_that_computes_no_number_is_refused():
    pairs = [(torch.rand(3), torch.tensor([0, 1, 0]))]
    with pytest.raises(ArgumentError, match="'binary_roc' computed a tuple, which is no number. Give metrics that"):
        feed(make(BinaryROC()), pairs)
    with pytest.raises(ArgumentError, match="cannot be averaged"):
        feed(make(lambda output, target: None), pairs)


def test_targets_in_a_buffer_that_is_filled_again_are_those_of_their_batch():
    metric_set, buffer = make("accuracy", MulticlassAccuracy(2)), torch.zeros(2, dtype=torch.long)
    for right in ([0, 1], [1, 0]):  # 2 of 2 and 0 of 2
        buffer.copy_(torch.tensor(right))
        metric_set.update(torch.eye(2), buffer)
    assert metric_set.compute_blocking() == {"accuracy": 0.5, "multiclass_accuracy": 0.5}


def test_metric_that_was_never_fed_has_no_value():
    metric_set = make(MulticlassAccuracy(2), "accuracy")
    assert metric_set.compute_blocking() == {}
    metric_set.update(torch.eye(2), torch.tensor([0, 1]))
    metric_set.reset()
    assert metric_set.compute_blocking() == {}
