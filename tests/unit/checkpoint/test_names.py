import torch

from velodrome.checkpoint.names import clean_name, clean_names


def test_clean_name_strips_wrappers_and_nothing_else():
    assert clean_name("module._orig_mod.layer.weight") == "layer.weight"
    assert clean_name("_orig_mod.module.layer.weight") == "layer.weight"
    assert clean_name("encoder._orig_mod.weight") == "encoder.weight"
    assert clean_name("encoder.module.weight") == "encoder.module.weight"


def test_clean_name_of_a_wrapped_model_equals_the_bare_name():
    bare = torch.nn.Sequential(torch.nn.Linear(2, 1))
    wrapped = torch.nn.DataParallel(bare)
    assert [clean_name(name) for name in wrapped.state_dict()] == list(bare.state_dict())


def test_clean_names_that_would_collide_stay_as_they_are():
    assert clean_names(["module.a", "a"]) == {"module.a": "module.a", "a": "a"}
