import json
import shutil

import pytest
import torch

from velodrome.checkpoint.read import read_state, read_tensors
from velodrome.checkpoint.store import CheckpointStore
from velodrome.errors import ArgumentError, CheckpointError


def steps_in(store) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in store.directory.glob("step-*"))


def test_save_writes_the_documented_files(make_store):
    store = make_store()
    path = store.save(938, {"model": {"w": torch.ones(2)}, "rng-rank0": {"torch": torch.zeros(3)}}, {"epoch": 1})
    assert path == store.directory / "step-00000938"
    files = {"manifest.json", "model.safetensors", "rng-rank0.safetensors", "state.json"}
    assert {file.name for file in path.iterdir()} == files
    assert json.loads((store.directory / "latest.json").read_text()) == {"step": 938}
    assert store.latest() == path


def test_save_strips_wrapper_names_of_parameters(make_store):
    store = make_store()
    weight = torch.ones(1)
    path = store.save(
        1,
        {
            "model": {"module.w": weight},
            "optimizer": {"module.w/exp_avg": weight},
            "rng": {"module.w": weight},
        },
        {},
    )
    assert list(read_tensors(path)) == ["w"]
    assert list(read_tensors(path, "optimizer")) == ["w/exp_avg"]
    assert list(read_tensors(path, "rng")) == ["module.w"]


def test_save_same_step_again_newer_replaces_it(make_store):
    store = make_store()
    store.save(1, {"model": {}}, {"turn": 1})
    store.save(1, {"model": {}}, {"turn": 2})
    assert read_state(store.latest()) == {"turn": 2}
    assert {path.name for path in store.directory.iterdir()} == {"step-00000001", "latest.json"}


def test_save_over_something_unreadable_sets_it_aside(make_store, save_steps):
    store = make_store()
    (store.directory / "step-00000001").mkdir(parents=True)
    (store.directory / "step-00000001" / "mine.txt").write_text("keep me")
    save_steps(store, 1)
    [aside] = store.directory.glob(".unreadable-*")
    assert (aside / "mine.txt").read_text() == "keep me"
    assert read_state(store.latest()) == {"step": 1}


def test_save_over_another_runs_step_is_refused(make_store, save_steps):
    save_steps(make_store("other"), 1)
    with pytest.raises(CheckpointError, match=r"belongs to run other.*Choose another run directory"):
        save_steps(make_store(), 1)
    assert make_store("other").latest() is not None


def test_latest_ignores_the_hint_and_other_runs(make_store, save_steps):
    store = make_store()
    assert store.latest() is None
    save_steps(make_store("other"), 9)
    assert store.latest() is None
    save_steps(store, 1, 2)
    (store.directory / "latest.json").write_text('{"step": 1}')
    with pytest.warns(RuntimeWarning, match=r"step-00000009 belongs to run other"):
        assert store.latest() == store.directory / "step-00000002"


def test_latest_renamed_folder_is_skipped_with_the_reason(make_store, save_steps):
    store = make_store()
    save_steps(store, 1, 2)
    (store.directory / "step-00000002").rename(store.directory / "step-00000007")
    with pytest.warns(RuntimeWarning, match=r"named for step 7 and holds step 2"):
        assert store.latest() == store.directory / "step-00000001"


def test_latest_nothing_loads_is_an_error_not_a_fresh_start(make_store, save_steps):
    store = make_store()
    save_steps(store, 1)
    (store.directory / "step-00000001" / "state.json").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint that can be loaded.*state\.json has 0 bytes"):
        store.latest()


def test_prune_keeps_the_newest_the_best_and_the_named(make_store, save_steps):
    store = make_store()
    save_steps(store, 1, 2, 3, 4, 5, 6)
    store.mark_best(2, monitor="val/loss", value=0.5)
    removed = store.prune(keep_last=2, keep={3})
    assert [path.name for path in removed] == ["step-00000001", "step-00000004"]
    assert steps_in(store) == [2, 3, 5, 6]
    assert not list(store.directory.glob(".tmp-*"))


def test_prune_never_keeps_fewer_than_two_whole_ones(make_store, save_steps):
    store = make_store()
    save_steps(store, 1, 2, 3, 4)
    (store.directory / "step-00000004" / "state.json").write_bytes(b"")
    store.prune(keep_last=1)
    assert steps_in(store) == [2, 3, 4]  # 4 is torn: it does not count, and it stays to be looked at


def test_prune_touches_only_its_own_run(make_store, save_steps):
    save_steps(make_store("other"), 1, 2, 3)
    (make_store().directory / "step-00000004").mkdir()
    store = make_store()
    save_steps(store, 11, 12, 13)
    store.prune()
    assert steps_in(store) == [1, 2, 3, 4, 12, 13]


def test_prune_damaged_best_mark_removes_nothing(make_store, save_steps):
    store = make_store()
    save_steps(store, 1, 2, 3)
    (store.directory / "best.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"best\.json is damaged"):
        store.prune()
    assert steps_in(store) == [1, 2, 3]


def test_mark_best_then_best_finds_it_after_a_move(make_store, save_steps, tmp_path):
    store = make_store()
    assert store.best() is None
    save_steps(store, 1, 2)
    store.mark_best(1, monitor="val/loss", value=0.25)
    best = json.loads((store.directory / "best.json").read_text())
    assert best == {"step": 1, "monitor": "val/loss", "value": 0.25}
    shutil.move(tmp_path / "run", tmp_path / "moved")
    moved = CheckpointStore(tmp_path / "moved" / "checkpoints", run_id="run-a")
    assert moved.best() == moved.directory / "step-00000001"


def test_mark_best_of_what_was_not_saved_is_refused(make_store, save_steps):
    store = make_store()
    save_steps(store, 1)
    with pytest.raises(CheckpointError, match=r"no whole checkpoint of step 2 by this run.*Save it first"):
        store.mark_best(2, monitor="val/loss", value=0.25)
    with pytest.raises(ArgumentError, match=r"val/loss = nan cannot be the best"):
        store.mark_best(1, monitor="val/loss", value=float("nan"))


def test_best_lost_is_said(make_store, save_steps):
    store = make_store()
    save_steps(store, 1, 2)
    store.mark_best(1, monitor="val/loss", value=0.25)
    shutil.rmtree(store.directory / "step-00000001")
    with pytest.warns(RuntimeWarning, match=r"step 1, is missing or damaged"):
        assert store.best() is None


@pytest.mark.parametrize(
    ("step", "tensors", "message"),
    [
        (-1, {}, "step=-1 is not a count"),
        (True, {}, "step=True is not a count"),
        (1.0, {}, "step=1.0 is not a count"),
        (1, {"../model": {}}, "'../model' cannot name a file"),
    ],
)
def test_save_wrong_argument_is_refused(make_store, step, tensors, message):
    with pytest.raises(ArgumentError, match=message):
        make_store().save(step, tensors, {})


def test_store_without_run_id_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match=r"run_id='' cannot name a run"):
        CheckpointStore(tmp_path, run_id="")


def test_directory_that_is_a_file_is_said(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot be listed: Not a directory"):
        CheckpointStore(tmp_path / "checkpoints", run_id="a").latest()


def test_prune_keeps_the_one_saved_last_also_when_its_step_is_lower(make_store, save_steps):
    """As after a return to an earlier checkpoint: what was just saved must not be the first to go."""
    store = make_store()
    save_steps(store, 10, 20, 30, 40, 5)
    store.prune(keep_last=2)
    assert steps_in(store) == [5, 30, 40]
