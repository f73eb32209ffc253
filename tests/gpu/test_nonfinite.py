"""Numbers going bad on CUDA: no wait between log points, and the weights of the step before."""

import math

import pytest
import torch
from torch import nn

from velodrome import Callback, Trainer
from velodrome.errors import NumericsError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]

BAD = 20


def batches(bad=True):
    generator = torch.Generator().manual_seed(0)
    made = [(torch.randn(8, 4, generator=generator), torch.randn(8, 1, generator=generator)) for _ in range(40)]
    if bad:
        made[BAD][0][0, 0] = math.nan
    return [(x.cuda(), y.cuda()) for x, y in made]


def make_trainer(optimizer="adam", **arguments):
    torch.manual_seed(0)
    return Trainer(nn.Linear(4, 1), optimizer, lr=0.01, loss="mse", device="cuda", progress=False, **arguments)


class ForbidsWaits(Callback):
    """Makes every wait an error from the second step to the last but one."""

    def on_step_end(self, trainer):
        mode = {2: "error", 39: "default"}.get(trainer.progress.steps_done)
        if mode is not None:
            torch.cuda.set_sync_debug_mode(mode)


@pytest.fixture(autouse=True)
def put_back():
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("switches", [{}, {"clip_norm": 1.0}, {"accumulate": 2}, {"precision": "bf16"}])
def test_a_bad_loss_leaves_the_weights_without_a_wait(optimizer, switches):
    callbacks = [] if "accumulate" in switches else [ForbidsWaits()]
    trainer = make_trainer(optimizer, callbacks=callbacks, log_every="1000 steps", **switches)
    step = BAD // switches.get("accumulate", 1) + 1
    with pytest.raises(NumericsError, match=f"The training loss became nan at step {step} "):
        trainer.fit(batches(), epochs=1)
    before = make_trainer(optimizer, **switches)
    before.fit(batches(bad=False)[:BAD], epochs=1)
    assert torch.equal(trainer.model.weight, before.model.weight)


def test_an_optimizer_that_takes_no_flag_waits_and_says_so(capsys):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    trainer = Trainer(
        model, torch.optim.RMSprop(model.parameters(), lr=0.01), loss="mse", device="cuda", progress=False
    )
    with pytest.raises(NumericsError, match=f"loss became nan at step {BAD + 1} .*the input 'batch/0'"):
        trainer.fit(batches(), epochs=1)
    assert "RMSprop is not fused, so that each of its updates waits" in capsys.readouterr().err
    assert torch.isfinite(model.weight).all()


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_the_other_policies_go_on(policy):
    trainer = make_trainer(on_nonfinite=policy, log_every="10 steps")
    trainer.fit(batches(), epochs=1)
    without = make_trainer()
    good = batches(bad=False)
    without.fit([*good[:BAD], *good[BAD + 1 :]], epochs=1)
    assert torch.equal(trainer.model.weight, without.model.weight)
