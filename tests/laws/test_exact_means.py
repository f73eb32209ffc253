"""Law: loss and metrics in the records are those over all samples at once, however the samples were cut into batches."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import velodrome
from velodrome import Trainer

NUM, CLASSES = 23, 3
BATCH_SIZES = (1, 3, 8, NUM)
WEIGHTS = [1.0, 5.0, 0.1]
LOSSES = {
    "as it is": {},
    "ignored": {"ignore_index": 1},
    "weights": {"weight": WEIGHTS},
    "both": {"ignore_index": 1, "weight": WEIGHTS},
    "smoothing": {"label_smoothing": 0.2},
    "smoothing, ignored": {"label_smoothing": 0.2, "ignore_index": 255},
    "smoothing, both": {"label_smoothing": 0.2, "ignore_index": -7, "weight": WEIGHTS},
}


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def scores_and_labels(positions, ignore_index):
    """Return scores of all classes, and labels of which a third, and all of some batches, are left out."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(NUM, CLASSES, *positions, generator=generator)
    labels = torch.randint(0, CLASSES, (NUM, *positions), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.3] = ignore_index
    labels[8:12] = ignore_index
    return scores, labels


def as_arguments(loss_args):
    return {key: torch.tensor(value) if key == "weight" else value for key, value in loss_args.items()}


def evaluated(loss, data, batch_size):
    return velodrome.evaluate(nn.Identity(), data, loss=loss, metrics=["accuracy"], batch_size=batch_size, device="cpu")


@pytest.mark.parametrize("positions", [(), (4,), (2, 3)])
@pytest.mark.parametrize("loss_args", LOSSES.values(), ids=LOSSES)
def test_cross_entropy_does_not_depend_on_the_batch_size(loss_args, positions):
    ignore_index = loss_args.get("ignore_index", -100)
    scores, labels = scores_and_labels(positions, ignore_index)
    expected = F.cross_entropy(scores, labels, **as_arguments(loss_args)).item()
    kept = labels != ignore_index
    accuracy = (scores.argmax(1) == labels)[kept].double().mean().item()
    for batch_size in BATCH_SIZES:
        values = evaluated(nn.CrossEntropyLoss(**as_arguments(loss_args)), (scores, labels), batch_size)
        assert values == pytest.approx({"loss": expected, "accuracy": accuracy}, rel=1e-12), batch_size


@pytest.mark.parametrize("positions", [(), (4,)])
@pytest.mark.parametrize("loss_args", [LOSSES["ignored"], LOSSES["weights"], LOSSES["both"]])
def test_nll_does_not_depend_on_the_batch_size(loss_args, positions):
    scores, labels = scores_and_labels(positions, loss_args.get("ignore_index", -100))
    scores = scores.log_softmax(1)
    expected = F.nll_loss(scores, labels, **as_arguments(loss_args)).item()
    for batch_size in BATCH_SIZES:
        loss = nn.NLLLoss(**as_arguments(loss_args))
        assert evaluated(loss, (scores, labels), batch_size)["loss"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("loss_args", [{}, LOSSES["weights"]])
def test_class_probabilities_are_divided_by_their_number(loss_args):
    scores, _ = scores_and_labels((4,), -100)
    shares = scores.flip(0).softmax(1)
    expected = F.cross_entropy(scores, shares, **as_arguments(loss_args)).item()
    for batch_size in BATCH_SIZES:
        loss = nn.CrossEntropyLoss(**as_arguments(loss_args))
        assert evaluated(loss, (scores, shares), batch_size)["loss"] == pytest.approx(expected, rel=1e-12)


def test_images_of_other_sizes_count_by_their_positions():
    batches = [scores_and_labels(positions, -100) for positions in ((4,), (9,), (1,))]
    flat = [(scores.movedim(1, -1).reshape(-1, CLASSES), labels.reshape(-1)) for scores, labels in batches]
    expected = F.cross_entropy(*(torch.cat(part) for part in zip(*flat, strict=True))).item()
    assert evaluated("cross_entropy", batches, None)["loss"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("loss_args", LOSSES.values(), ids=LOSSES)
def test_training_loss_is_the_mean_over_all_that_was_kept(loss_args):
    scores, labels = scores_and_labels((), loss_args.get("ignore_index", -100))
    expected = F.cross_entropy(scores, labels, **as_arguments(loss_args)).item()
    model = nn.Linear(CLASSES, CLASSES)
    nn.init.eye_(model.weight)
    nn.init.zeros_(model.bias)
    trainer = Trainer(model, "sgd", lr=0.0, loss="cross_entropy", loss_args=loss_args, device="cpu", progress=False, log_every="2 steps")  # fmt: skip
    result = trainer.fit((scores, labels), batch_size=4, epochs=1)
    assert result.metrics["train/loss"] == pytest.approx(expected, rel=1e-12)
    assert type(result.metrics["train/loss"]) is float


@pytest.mark.parametrize("loss_args", LOSSES.values(), ids=LOSSES)
def test_training_batch_of_ignored_labels_alone_changes_no_weight_and_ends_nothing(loss_args):
    # Its loss is NaN, but torch's gradient of it is 0: nothing is hidden by counting it for nothing.
    labels = torch.full((4,), loss_args.get("ignore_index", -100))
    model = nn.Linear(CLASSES, CLASSES)
    before = model.weight.detach().clone()
    trainer = Trainer(model, "sgd", lr=0.1, loss="cross_entropy", loss_args=loss_args, device="cpu", progress=False, log_every="1 steps")  # fmt: skip
    result = trainer.fit([(torch.randn(4, CLASSES), labels)] * 2, epochs=1)
    assert torch.equal(model.weight, before)
    assert "train/loss" not in result.metrics


def test_negative_control_weights_by_samples_are_noticed():
    scores, labels = scores_and_labels((), 1)
    model = nn.Identity()

    def without_items(model, batch):
        return {"loss": F.cross_entropy(model(batch[0]), batch[1], ignore_index=1)}

    def with_items(model, batch):
        return {**without_items(model, batch), "items": (batch[1] != 1).sum()}

    labels[8:12] = 0  # no batch is empty
    expected = F.cross_entropy(scores, labels, ignore_index=1).item()
    by_samples, exact = (
        velodrome.evaluate(model, (scores, labels), step_fn=step_fn, batch_size=8, device="cpu")["loss"]
        for step_fn in (without_items, with_items)
    )
    assert by_samples != pytest.approx(expected, rel=1e-3)
    assert exact == pytest.approx(expected, rel=1e-12)
