"""Metrics over several processes, against all batches given to one object."""

import pytest
import torch

from velodrome.errors import ArgumentError
from velodrome.metrics.merging import check_mergeable, merged_states
from velodrome.testing.torchvision_cpu import import_torchvision


def make(name):
    import contextlib

    with contextlib.suppress(ImportError):
        import_torchvision()
    import torchmetrics
    from torchmetrics import classification

    if name == "collection":
        same = {"num_classes": 3}
        members = [classification.MulticlassPrecision(**same), classification.MulticlassRecall(**same)]
        return torchmetrics.MetricCollection([*members, classification.MulticlassAUROC(**same)])
    return {
        "accuracy": lambda: classification.MulticlassAccuracy(num_classes=3, average="micro"),
        "auroc": lambda: classification.MulticlassAUROC(num_classes=3, thresholds=None),
        "confusion": lambda: classification.MulticlassConfusionMatrix(num_classes=3),
        "pearson": lambda: torchmetrics.PearsonCorrCoef(),
        "maximum": lambda: torchmetrics.MaxMetric(),
        "composed": lambda: torchmetrics.MeanSquaredError() + torchmetrics.MeanAbsoluteError(),
        "own": Longest,
    }[name]()


class Longest:
    """A metric of the user's own that can take in another one."""

    def __init__(self):
        self.length = 0.0

    def update(self, output, target):
        self.length = max(self.length, float(len(output)))

    def compute(self):
        return self.length

    def reset(self):
        self.length = 0.0

    def merge_state(self, other):
        self.length = max(self.length, other.length)


def batches(name):
    """Return what each rank sees, rank 1 less; and rank 0 sees nothing of "accuracy"."""
    generator = torch.Generator().manual_seed(0)
    sizes = [[], [4, 3]] if name in ("accuracy", "auroc", "collection") else [[5, 2], [4]]
    if name in ("pearson", "maximum", "composed"):
        return [
            [(torch.rand(n, generator=generator), torch.rand(n, generator=generator)) for n in rank] for rank in sizes
        ]
    return [[(torch.rand(n, 3, generator=generator).softmax(1), torch.arange(n) % 3) for n in rank] for rank in sizes]


def feed(metric, name, some):
    for output, target in some:
        metric.update(*((output,) if name == "maximum" else (output, target)))


def numbers(result):
    if isinstance(result, dict):
        return {key: numbers(value) for key, value in result.items()}
    return result.tolist() if isinstance(result, torch.Tensor) else result


def compute_merged(name):
    from velodrome.distributed.world import join_world

    world = join_world(torch.device("cpu"))
    metric = make(name)
    with torch.inference_mode():
        feed(metric, name, batches(name)[world.rank])
        with merged_states(metric, world):
            merged = numbers(metric.compute())
        feed(metric, name, batches(name)[world.rank])  # its own state is back, and goes on
        with merged_states(metric, world):
            again = numbers(metric.compute())
    return merged, again


@pytest.mark.parametrize(
    "name", ["accuracy", "auroc", "confusion", "collection", "pearson", "maximum", "composed", "own"]
)
def test_the_value_is_that_of_all_batches_in_one_process(two, name):
    expected = []
    metric = make(name)
    for _ in range(2):
        for some in batches(name):
            feed(metric, name, some)
        expected.append(numbers(metric.compute()))
    for results in two.run(compute_merged, name):
        for result, wanted in zip(results, expected, strict=True):
            assert torch.allclose(
                *(torch.tensor(list(v.values()) if isinstance(v, dict) else v) for v in (result, wanted))
            )


def test_torchmetrics_does_not_ask_the_others_by_itself(two):
    # In a process group torchmetrics exchanges states in compute(); while states are merged it must not, or they count twice.
    merged = two.run(compute_merged, "confusion")[0][0]
    assert sum(map(sum, merged)) == 5 + 2 + 4


def test_a_metric_that_cannot_be_put_together_is_refused():
    class Own:
        def update(self, output, target): ...
        def compute(self): ...
        def reset(self): ...

    with pytest.raises(ArgumentError, match=r"The metric 'mine' is a Own, .*Give a torchmetrics object.*merge_state"):
        check_mergeable("mine", Own())
    check_mergeable("longest", Longest())
    check_mergeable("collection", make("collection"))
