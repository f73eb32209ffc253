"""Freezing and grouping parameters by pattern, and those that an optimizer misses or holds in vain."""

import pytest
import torch
from torch import nn

from velodrome.errors import ArgumentError
from velodrome.step.optimizers import resolve_optimizer
from velodrome.step.parameters import freeze, held_in_vain, parameter_groups, unheld_parameters


def make_model():
    return nn.ModuleDict(
        {
            "encoder": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)),
            "head": nn.Linear(2, 1),
        }
    )


ENCODER = ["encoder.0.weight", "encoder.0.bias", "encoder.1.weight", "encoder.1.bias"]
HEAD = ["head.weight", "head.bias"]


def names_by_group(model, groups):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {group["name"]: [names[id(parameter)] for parameter in group["params"]] for group in groups}


# freeze


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["encoder"], ENCODER),
        (["encoder.*"], ENCODER),
        (["enc*"], ENCODER),
        ("encoder", ENCODER),
        (["encoder.0"], ENCODER[:2]),
        (["*.bias"], ["encoder.0.bias", "encoder.1.bias", "head.bias"]),
        (["head.weight", "encoder.1"], [*ENCODER[2:], "head.weight"]),
        (["*"], [*ENCODER, *HEAD]),
        ([], []),
    ],
)
def test_freeze_turns_off_what_the_patterns_match_and_nothing_else(patterns, expected):
    model = make_model()
    assert freeze(model, patterns) == expected
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == expected


def test_freeze_of_a_module_does_not_touch_one_whose_name_begins_alike():
    model = nn.ModuleDict({"head": nn.Linear(1, 1), "head2": nn.Linear(1, 1)})
    assert freeze(model, ["head"]) == ["head.weight", "head.bias"]


def test_freeze_finds_a_tied_parameter_under_either_name():
    model = make_model()
    model["tied"] = nn.Linear(2, 1)
    model["tied"].weight = model["head"].weight
    assert freeze(model, ["tied"]) == ["head.weight", "tied.bias"]


def test_freeze_with_a_pattern_without_match_names_the_nearest_and_freezes_nothing():
    model = make_model()
    with pytest.raises(
        ArgumentError, match=r"'encodr\.\*' matches no parameter of this ModuleDict\. Did you mean \"encoder\""
    ):
        freeze(model, ["head", "encodr.*"])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_pattern_of_a_module_without_parameters_is_refused():
    with pytest.raises(ArgumentError, match=r"'1' matches no parameter of this Sequential\. Known: 0, 0\.bias"):
        freeze(nn.Sequential(nn.Linear(1, 1), nn.ReLU()), ["1"])


def test_hint_of_a_large_model_is_cut():
    model = nn.Sequential(*[nn.Linear(1, 1) for _ in range(500)])
    with pytest.raises(ArgumentError, match=r", \.\.\. \(1500 names\)\.$") as caught:
        freeze(model, ["zzz"])
    assert len(str(caught.value)) < 800


# groups


def test_groups_later_patterns_override_option_by_option():
    model = make_model()
    groups = parameter_groups(model, {"head": {"lr": 1.0, "momentum": 0.5}, "*.bias": {"weight_decay": 0.0, "lr": 2.0}})
    assert names_by_group(model, groups) == {
        "default": ["encoder.0.weight", "encoder.1.weight"],
        "*.bias": ["encoder.0.bias", "encoder.1.bias"],
        "head": ["head.weight"],
        "head + *.bias": ["head.bias"],
    }
    options = {group["name"]: {k: v for k, v in group.items() if k not in ("params", "name")} for group in groups}
    assert options == {
        "default": {},
        "*.bias": {"weight_decay": 0.0, "lr": 2.0},
        "head": {"lr": 1.0, "momentum": 0.5},
        "head + *.bias": {"lr": 2.0, "momentum": 0.5, "weight_decay": 0.0},
    }


def test_groups_with_equal_options_are_one():
    model = make_model()
    groups = parameter_groups(model, {"encoder.0": {"lr": 0.1}, "head": {"lr": 0.1}, "encoder.1": {"lr": 0.2}})
    assert [len(group["params"]) for group in groups] == [4, 2]


def test_groups_leave_frozen_parameters_out_and_have_no_empty_default():
    model = make_model()
    freeze(model, ["encoder"])
    assert names_by_group(model, parameter_groups(model, {"head": {"lr": 0.1}})) == {"head": HEAD}


def test_groups_hold_a_tied_parameter_once():
    model = make_model()
    model["tied"] = nn.Linear(2, 1)
    model["tied"].weight = model["head"].weight
    groups = parameter_groups(model, {"tied": {"lr": 0.1}})
    assert names_by_group(model, groups)["tied"] == ["head.weight", "tied.bias"]
    torch.optim.SGD(groups, lr=0.1)  # would refuse a parameter that is in two groups


def test_group_of_frozen_parameters_is_refused():
    model = make_model()
    freeze(model, ["encoder"])
    with pytest.raises(
        ArgumentError, match=r"groups\['encoder'\] matches 4 parameters, all of them frozen.* leave the pattern out"
    ):
        parameter_groups(model, {"encoder": {"lr": 0.1}})


@pytest.mark.parametrize("options", [{}, 0.1, {"params": []}, {"name": "x"}])
def test_group_options_that_are_none_are_refused(options):
    with pytest.raises(ArgumentError, match=r"are no options\. Give some of the optimizer's arguments"):
        parameter_groups(make_model(), {"head": options})


# groups in an optimizer


@pytest.mark.parametrize(
    "optimizer", ["sgd", torch.optim.SGD, lambda given, **options: torch.optim.SGD(given, **options)]
)
def test_optimizer_by_name_or_factory_updates_each_group_with_its_own_rate(optimizer):
    model = make_model()
    made = resolve_optimizer(optimizer, model, lr=0.5, groups={"head": {"lr": 0.25}})
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    made.step()
    steps = {name: (before[name] - parameter).mean().item() for name, parameter in model.named_parameters()}
    assert steps == pytest.approx({**dict.fromkeys(ENCODER, 0.5), **dict.fromkeys(HEAD, 0.25)}, abs=1e-6)
    assert [group["name"] for group in made.param_groups] == ["default", "head"]
    assert made.state_dict()["param_groups"][1]["name"] == "head"


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop", "adagrad", "nadam"])
def test_group_names_are_harmless_to_torchs_optimizers(name):
    model = make_model()
    made = resolve_optimizer(name, model, groups={"head": {"lr": 0.1}})
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    made.step()
    other = resolve_optimizer(name, model, groups={"head": {"lr": 0.1}})
    other.load_state_dict(made.state_dict())
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_group_betas_may_be_a_list_as_toml_has_them():
    made = resolve_optimizer("adam", make_model(), groups={"head": {"betas": [0.8, 0.9]}})
    assert made.param_groups[1]["betas"] == (0.8, 0.9)


@pytest.mark.parametrize("optimizer", ["sgd", torch.optim.SGD])
def test_unknown_option_of_a_group_is_refused_with_the_nearest(optimizer):
    with pytest.raises(
        ArgumentError, match=r"groups\['head'\]: SGD has no option 'weight_decai'\. Did you mean \"weight_decay\""
    ):
        resolve_optimizer(optimizer, make_model(), groups={"head": {"weight_decai": 0.1}})


@pytest.mark.parametrize("lr", [-1, "fast", True, float("nan")])
def test_rate_of_a_group_that_is_none_is_refused(lr):
    with pytest.raises(ArgumentError, match=r"groups\['head'\]: lr=.* is not a learning rate"):
        resolve_optimizer("sgd", make_model(), groups={"head": {"lr": lr}})


def test_groups_for_an_instance_are_refused():
    model = make_model()
    instance = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ArgumentError, match=r"groups was given together with an optimizer instance"):
        resolve_optimizer(instance, model, groups={"head": {"lr": 0.1}})


# who holds what


def test_trainable_parameters_in_no_optimizer_are_named():
    model = make_model()
    freeze(model, ["encoder.0"])
    optimizer = torch.optim.SGD(model["head"].parameters(), lr=0.1)
    assert unheld_parameters(model, optimizer) == ["encoder.1.weight", "encoder.1.bias"]
    second = torch.optim.SGD(model["encoder"].parameters(), lr=0.1)
    assert unheld_parameters(model, [optimizer, second]) == []


def test_held_parameters_that_are_frozen_or_of_another_model_are_named():
    model, other = make_model(), nn.Linear(3, 1)
    optimizer = torch.optim.SGD([*model["head"].parameters(), other.weight], lr=0.1)
    freeze(model, ["head.bias"])
    found = held_in_vain(model, optimizer)
    assert found.frozen == ["head.bias"]
    assert found.foreign == ["SGD, group 0, parameter 2 of shape (1, 3)"]
    assert held_in_vain(model, torch.optim.SGD(model["encoder"].parameters(), lr=0.1)) == ([], [])
