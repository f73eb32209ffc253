import shutil

import pytest
import torch
from torch import nn

from velodrome.checkpoint.read import load_file_into, load_weights_into, read_state, read_tensors, resolve_weights
from velodrome.errors import ArgumentError, CheckpointError


@pytest.fixture
def run(tmp_path, make_store, save_steps):
    """Return a run directory with steps 1, 2 and 3, of which 2 is the best."""
    store = make_store()
    save_steps(store, 1, 2, 3)
    store.mark_best(2, monitor="val/loss", value=0.1)
    return tmp_path / "run"


def linear() -> nn.Linear:
    return nn.Linear(2, 1, bias=False)


def test_resolve_weights_from_every_kind_of_path(run):
    best = run / "checkpoints" / "step-00000002" / "model.safetensors"
    last = run / "checkpoints" / "step-00000003" / "model.safetensors"
    assert resolve_weights(run, "best") == best
    assert resolve_weights(run, "last") == last
    assert resolve_weights(run / "checkpoints", "last") == last
    assert resolve_weights(best.parent, "last") == best
    assert resolve_weights(str(best), "last") == best


def test_resolve_weights_last_damaged_falls_back_and_says_so(run):
    (run / "checkpoints" / "step-00000003" / "model.safetensors").write_bytes(b"")
    with pytest.warns(RuntimeWarning, match=r"step-00000002 is used.*model\.safetensors has 0 bytes"):
        assert resolve_weights(run, "last").parent.name == "step-00000002"


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "pytorch_model.bin", "w.ckpt", "w.PKL"])
def test_resolve_weights_pickle_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(CheckpointError, match=r"a pickle by its name.*only .safetensors files are read"):
        resolve_weights(tmp_path / name)


def test_resolve_weights_wrong_paths_say_what_to_do(tmp_path, run):
    with pytest.raises(CheckpointError, match=r"none does not exist.*velodrome train"):
        resolve_weights(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(CheckpointError, match=r"notes\.txt is not a \.safetensors file"):
        resolve_weights(tmp_path / "notes.txt")
    with pytest.raises(ArgumentError, match=r"weights='newest' is unknown"):
        resolve_weights(run, "newest")  # type: ignore[arg-type]
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty holds no checkpoint that can be loaded"):
        resolve_weights(tmp_path / "empty", "last")


def test_resolve_weights_best_never_marked_or_lost(run):
    shutil.rmtree(run / "checkpoints" / "step-00000002")
    with pytest.raises(CheckpointError, match=r'step 2, is missing or damaged.*weights="last"'):
        resolve_weights(run, "best")
    (run / "checkpoints" / "best.json").unlink()
    with pytest.raises(CheckpointError, match=r'no best\.json.*weights="last"'):
        resolve_weights(run, "best")


@pytest.mark.parametrize(
    "text",
    [
        '{"step": 1}',
        '{"step": true, "monitor": "a", "value": 1}',
        '{"step": 1, "monitor": "a", "value": NaN}',
    ],
)
def test_resolve_weights_damaged_best_mark_is_refused(run, text):
    (run / "checkpoints" / "best.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"best\.json is damaged"):
        resolve_weights(run, "best")


def test_read_tensors_unknown_group_names_what_there_is(run):
    with pytest.raises(CheckpointError, match=r"no ema\.safetensors. It holds model\.safetensors, state\.json"):
        read_tensors(run / "checkpoints" / "step-00000001", "ema")


def test_read_flipped_bit_is_refused_unless_verification_is_off(run):
    folder = run / "checkpoints" / "step-00000001"
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged: its SHA-256 begins"):
        read_tensors(folder)
    with pytest.raises(CheckpointError, match=r"is damaged"):
        load_weights_into(linear(), path)
    assert not torch.equal(read_tensors(folder, verify=False)["weight"], torch.ones(1, 2))
    assert read_state(folder) == {"step": 1}


def test_load_weights_into_bare_and_wrapped_models(run):
    model = linear()
    load_weights_into(model, run)
    assert model.weight.tolist() == [[2.0, 2.0]]
    load_weights_into(nn.DataParallel(model), run, which="last")
    assert model.weight.tolist() == [[3.0, 3.0]]


def test_load_weights_into_another_shape_lists_the_differences_and_changes_nothing(run):
    model = nn.Sequential(nn.Linear(2, 3))
    before = [value.clone() for value in model.state_dict().values()]
    message = r"do not fit this Sequential: 2 missing in the file: 0\.weight, 0\.bias; 1 unknown to the model: w"
    with pytest.raises(CheckpointError, match=message):
        load_weights_into(model, run)
    with pytest.raises(CheckpointError, match=r"weight \(1, 2\) -> \(3, 2\)") as caught:
        load_weights_into(nn.Linear(2, 3, bias=False), run)
    assert caught.value.differing == ("weight (1, 2) -> (3, 2)",)
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))


def test_load_weights_into_lists_eight_and_counts_the_others(run):
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(5)))  # ten parameters
    with pytest.raises(CheckpointError, match=r"10 missing in the file: .*3\.bias and 2 more"):
        load_weights_into(model, run)


def test_load_weights_into_fraction_and_whole_number_are_not_mixed(make_store):
    store = make_store()
    store.save(1, {"model": {"weight": torch.ones(1, 2, dtype=torch.int64)}}, {})
    with pytest.raises(CheckpointError, match=r"weight torch\.int64 -> torch\.float32"):
        load_weights_into(linear(), store.directory, which="last")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(3, 2)
        self.head = nn.Linear(2, 3, bias=False)
        self.head.weight = self.embed.weight


def test_load_weights_into_tied_model_stays_tied(make_store, tmp_path):
    from safetensors.torch import save_file

    store, saved, loaded = make_store(), Tied(), Tied()
    store.save(1, {"model": saved.state_dict()}, {})
    load_weights_into(loaded, store.directory, which="last")
    assert torch.equal(loaded.head.weight, saved.embed.weight)
    assert loaded.head.weight is loaded.embed.weight
    # Other writers leave the second name out.
    save_file({"embed.weight": torch.ones(3, 2)}, tmp_path / "theirs.safetensors")
    load_weights_into(loaded, tmp_path / "theirs.safetensors")
    assert loaded.head.weight.tolist() == [[1.0, 1.0]] * 3


def test_load_weights_into_a_model_on_the_meta_device_is_refused(run):
    with torch.device("meta"):
        model = linear()
    with pytest.raises(CheckpointError, match="meta device, which holds no numbers.*to_empty"):
        load_weights_into(model, run)


def test_load_damaged_best_weights_names_the_next_command(run):
    file = resolve_weights(run, "best")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match='weights="last"'):
        load_weights_into(linear(), run)


def test_load_file_into_that_was_removed_meanwhile_says_to_run_again(run):
    file = resolve_weights(run, "best")
    model = linear()
    load_file_into(model, file, path=run, which="best")
    shutil.rmtree(file.parent)
    with pytest.raises(CheckpointError, match=r"is gone: since it was chosen it was removed.* Run the same again"):
        load_file_into(model, file, path=run, which="best")


@pytest.fixture
def averaged_run(tmp_path, make_store):
    """Return a run whose weights are 1 and their averages 2; the averages were evaluated at step 1, the weights at step 2."""
    store = make_store()
    for step, evaluated in ((1, "averaged"), (2, "raw")):
        tensors = {"model": {"weight": torch.full((1, 2), 1.0)}, "ema": {"weight": torch.full((1, 2), 2.0)}}
        store.save(step, tensors, {"evaluated_weights": evaluated})
    store.mark_best(1, monitor="val/loss", value=0.1)
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("which", "kind", "value"),
    [
        ("best", "auto", 2.0),
        ("best", "raw", 1.0),
        ("best", "averaged", 2.0),
        ("last", "auto", 1.0),
        ("last", "averaged", 2.0),
    ],
)
def test_kind_of_weights(averaged_run, which, kind, value):
    model = linear()
    load_weights_into(model, averaged_run, which=which, kind=kind)
    assert model.weight.flatten().tolist() == [value, value]


def test_kind_that_is_not_there_is_refused(run, averaged_run):
    with pytest.raises(CheckpointError, match=r"has no ema.safetensors. It holds model.safetensors, state.json"):
        resolve_weights(run / "checkpoints" / "step-00000003", kind="averaged")
    with pytest.raises(ArgumentError, match="kind='mean' is unknown. It is 'auto', 'raw' or 'averaged'"):
        resolve_weights(averaged_run, kind="mean")  # type: ignore[arg-type]
    file = averaged_run / "checkpoints" / "step-00000001" / "ema.safetensors"
    assert resolve_weights(file) == file
    with pytest.raises(ArgumentError, match="which holds one set of weights. Give the checkpoint folder"):
        resolve_weights(file, kind="raw")
