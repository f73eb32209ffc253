"""Training, evaluation and inference mode: set while a loop runs, put back however it ends."""

import pytest
import torch
from torch import nn

from velodrome import Callback, Trainer, evaluate, predict
from velodrome.errors import ArgumentError
from velodrome.loop.modes import evaluation_mode, fetch_outside_of_inference_mode, training_mode

X, Y = torch.randn(8, 3), torch.randint(0, 2, (8,))


def make_model():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def make_trainer(model, **arguments):
    return Trainer(model, "sgd", lr=0.1, loss="cross_entropy", progress=False, device="cpu", **arguments)


def modes_of(model):
    return [module.training for module in model.modules()]


@pytest.fixture(params=["all training", "all eval", "frozen batch norm", "eval with a training dropout"])
def model(request):
    made = make_model()
    if request.param == "all eval":
        made.eval()
    elif request.param == "frozen batch norm":
        made[1].eval()
    elif request.param == "eval with a training dropout":
        made.eval()
        made[2].train()
    return made


def run_fit(trainer):
    trainer.fit((X, Y), (X, Y), batch_size=4, epochs=1)


def run_evaluate(trainer):
    trainer.evaluate((X, Y))


def run_predict(trainer):
    trainer.predict((X, Y))


def break_out_of_train(trainer):
    for epoch in trainer.epochs(1):
        for _ in epoch.train((X, Y), batch_size=4):
            break
        assert not torch.is_inference_mode_enabled()


def break_out_of_evaluate(trainer):
    for epoch in trainer.epochs(1):
        for _ in epoch.evaluate((X, Y), batch_size=4):
            break
        assert not torch.is_inference_mode_enabled()


def leave_from_inside_evaluate(trainer):
    for epoch in trainer.epochs(1):
        for _ in epoch.evaluate((X, Y), batch_size=4):
            return


def raise_in_train(trainer):
    for epoch in trainer.epochs(1):
        for _ in epoch.train((X, Y), batch_size=4):
            raise KeyError("mine")


def raise_in_evaluate(trainer):
    for epoch in trainer.epochs(1):
        for _ in epoch.evaluate((X, Y), batch_size=4):
            raise KeyError("mine")


def raise_in_predict(trainer):
    trainer.model.register_forward_hook(lambda *_: {}["mine"])
    trainer.predict((X, Y))


WAYS = [
    run_fit,
    run_evaluate,
    run_predict,
    break_out_of_train,
    break_out_of_evaluate,
    leave_from_inside_evaluate,
    raise_in_train,
    raise_in_evaluate,
    raise_in_predict,
]


@pytest.mark.parametrize("way", WAYS)
def test_every_module_gets_its_own_mode_back(model, way):
    before = modes_of(model)
    caught = None
    try:
        way(make_trainer(model))
    except KeyError as error:
        caught = error  # its traceback keeps the frames of the loop alive; the modes must be back all the same
    assert modes_of(model) == before
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    assert (caught is not None) == way.__name__.startswith("raise")


@pytest.mark.parametrize("where", ["on_step_end", "on_evaluate_end", "on_epoch_start", "on_epoch_end"])
def test_exception_in_a_callback_puts_the_modes_back(where):
    class Fails(Callback):
        pass

    def fail(self, trainer, *details):
        raise KeyError("mine")

    setattr(Fails, where, fail)
    model = make_model().eval()
    with pytest.raises(KeyError, match="mine"):
        run_fit(make_trainer(model, callbacks=[Fails()]))
    assert not any(modes_of(model))
    assert not torch.is_inference_mode_enabled()


def test_inside_train_a_model_in_eval_mode_trains_and_inside_evaluate_it_does_not():
    model = make_model().eval()
    trainer = make_trainer(model)
    for epoch in trainer.epochs(1):
        for _ in epoch.train((X, Y), batch_size=8):
            assert all(modes_of(model))
            assert torch.is_grad_enabled()
            trainer.step(trainer.model(X).sum())
        for x, _ in epoch.evaluate((X, Y), batch_size=8):
            assert not any(modes_of(model))
            assert torch.is_inference_mode_enabled()
            assert not trainer.model(x).requires_grad


def test_frozen_batch_norm_in_a_training_model_keeps_its_statistics():
    model = make_model()
    model[1].eval()
    make_trainer(model).fit((X, Y), (X, Y), batch_size=4, epochs=2)
    assert torch.equal(model[1].running_mean, torch.zeros(4))
    assert model[1].num_batches_tracked == 0
    assert model.training
    assert not model[1].training


def test_nested_evaluate_in_a_callback_leaves_training_mode_and_the_numbers_alone():
    class Nested(Callback):
        def __init__(self):
            self.values = []

        def on_step_end(self, trainer):
            self.values.append(trainer.evaluate((X, Y), batch_size=3)["loss"])
            assert all(modes_of(trainer.model))
            assert not torch.is_inference_mode_enabled()

    results = []
    for callbacks in ([], [Nested()]):
        torch.manual_seed(0)
        model = make_model()
        trainer = make_trainer(model, callbacks=callbacks, seed=1)
        result = trainer.fit((X, Y), batch_size=3, epochs=2)
        results.append((list(model.state_dict().values()), [row["train/loss"] for row in result.history]))
    assert all(torch.equal(a, b) for a, b in zip(results[0][0], results[1][0], strict=True))
    assert results[0][1] == results[1][1]


def test_nested_evaluate_does_not_change_the_weight_of_what_is_logged_after_it():
    class Nested(Callback):
        def on_step_end(self, trainer):
            trainer.evaluate((X, Y), batch_size=8)

    trainer = make_trainer(make_model(), callbacks=[Nested()])
    for epoch in trainer.epochs(1):
        for batch in epoch.train((X, Y), batch_size=5, shuffle=False):
            trainer.step(trainer.forward(batch).loss)
            trainer.log(size=len(batch[0]))
    assert trainer.result.metrics["train/size"] == (5 * 5 + 3 * 3) / 8


def test_a_run_inside_of_a_run_is_refused_and_the_outer_one_goes_on():
    trainer = make_trainer(make_model())
    for epoch in trainer.epochs(2):
        with pytest.raises(ArgumentError, match=r"under way already\. Finish its loop first, or make another Trainer"):
            trainer.fit((X, Y), batch_size=4, epochs=1)
        for batch in epoch.train((X, Y), batch_size=4):
            with pytest.raises(ArgumentError, match="under way already"):
                trainer.fit((X, Y), batch_size=4, epochs=1)
            trainer.step(trainer.forward(batch).loss)
    assert len(trainer.result.history) == 2


def test_train_inside_of_evaluate_is_refused():
    trainer = make_trainer(make_model())
    for epoch in trainer.epochs(1):
        for _ in epoch.evaluate((X, Y), batch_size=4):
            with pytest.raises(
                ArgumentError, match=r"train\(\) was started inside of the 'val' phase\. Finish that loop"
            ):
                next(epoch.train((X, Y), batch_size=4))


def test_module_level_evaluate_and_predict_put_modes_back(model):
    before = modes_of(model)
    evaluate(model, (X, Y), loss="cross_entropy", device="cpu")
    output = predict(model, X, device="cpu")
    assert modes_of(model) == before
    (output * nn.Parameter(torch.ones(1))).sum().backward()  # an inference tensor would refuse


def test_modes_as_context_managers_nest():
    model = make_model()
    with training_mode(model):
        with evaluation_mode(model):
            assert not any(modes_of(model))
            assert torch.is_inference_mode_enabled()
        assert all(modes_of(model))
        assert not torch.is_inference_mode_enabled()


class Cached:
    """Makes its batches when they are first asked for."""

    def __init__(self):
        self.batches = []

    def __iter__(self):
        if not self.batches:
            self.batches = [(X * 2, Y)]
        return iter(self.batches)


def test_batches_cached_in_an_evaluation_can_be_trained_on():
    data, trainer = Cached(), make_trainer(nn.Linear(3, 2))
    trainer.evaluate(data)
    trainer.fit(data, epochs=1)
    assert trainer.progress.steps_done == 1


def test_fetching_computes_no_gradients_and_the_body_is_in_the_mode_around():
    weight = torch.ones(1, requires_grad=True)

    def batches():
        for _ in range(2):
            yield weight * 2

    modes = []
    with torch.inference_mode():
        for batch in fetch_outside_of_inference_mode(batches()):
            modes.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
            assert not batch.requires_grad
            assert not batch.is_inference()
    assert modes == [(True, False)] * 2
    assert [torch.is_grad_enabled() for _ in fetch_outside_of_inference_mode(batches())] == [True, True]
