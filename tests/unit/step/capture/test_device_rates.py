"""Learning rates on the device."""

import pytest
import torch

from velodrome.step.capture.device_rates import DeviceRates, RatedStep

CPU = torch.device("cpu")


def make(kind, **arguments):
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    parameter.grad = torch.tensor([0.5, 0.5])
    return parameter, kind([parameter], fused=True, **arguments)


@pytest.mark.parametrize("rate", [0.1, torch.tensor(0.1), 1])
def test_an_update_takes_the_rate_and_gives_it_back(rate):
    parameter, optimizer = make(torch.optim.SGD, lr=rate)
    RatedStep(optimizer, DeviceRates(optimizer, CPU))()
    assert torch.allclose(parameter, torch.tensor([1.0, -2.0]) - float(rate) * 0.5)
    assert optimizer.param_groups[0]["lr"] is rate


def test_a_rate_that_changes_is_followed():
    parameter, optimizer = make(torch.optim.SGD, lr=0.1)
    step = RatedStep(optimizer, DeviceRates(optimizer, CPU))
    step()
    optimizer.param_groups[0]["lr"] = 0.2
    step()
    # 1 - 0.1 * 0.5 - 0.2 * 0.5
    assert parameter[0].item() == pytest.approx(0.85)


def test_groups_get_their_options_back_after_an_error():
    parameter, optimizer = make(torch.optim.Adam, lr=0.1)
    step = RatedStep(optimizer, DeviceRates(optimizer, CPU))
    step.is_recorded = True
    parameter.grad = parameter.grad.to_sparse()
    with pytest.raises(RuntimeError):
        step()
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert optimizer.param_groups[0]["capturable"] is False
