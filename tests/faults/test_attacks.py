"""FAULTS 39, 40, 41, 56: a run directory or a checkpoint from somebody else is data. Nothing in it runs, leads outside, or fills the memory.

The canary is a pickle that writes a file when it is opened carelessly; `test_the_canary_sings_where_a_pickle_is_opened` is the control.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
import warnings
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

import velodrome
from support.programs import environment
from velodrome.checkpoint.foreign import read_foreign_weights
from velodrome.checkpoint.read import read_state, read_tensors
from velodrome.checkpoint.store import CheckpointStore
from velodrome.cli.main import run as call
from velodrome.errors import CheckpointError, RecipeError, VelodromeError
from velodrome.recipes.trained_model import load_run_recipe
from velodrome.report.records import read_records

pytestmark = pytest.mark.slow

SOURCE = Path(velodrome.__file__).parent
RECIPE = """\
[model]
name = "mlp"
sizes = ["auto", 4, 3]

[data]
name = "csv"
path = "table.csv"
target = "y"
val_fraction = 0.2

[loss]
name = "cross_entropy"

[train]
epochs = 2
batch_size = 16
device = "cpu"

[logging]
tensorboard = false
curves = false
progress = false
"""
VERBS = {
    "verify": ["verify", "run"],
    "show": ["show", "run"],
    "runs": ["runs", "."],
    "report": ["report", "run"],
    "compare": ["compare", "run", "run", "--out", "compared.html", "--force"],
    "eval": ["eval", "run"],
    "predict": ["predict", "run", "--force"],
    "resume": ["resume", "run", "train.epochs=3", "-q"],
    "auto": ["train", "mine.toml", "train.epochs=3", "--resume", "run", "-q"],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a finished run, made once."""
    folder = tmp_path_factory.mktemp("attacks")
    rows = "".join(f"{i % 7},{i % 5},{i % 3},{'abc'[i % 3]}\n" for i in range(80))
    (folder / "table.csv").write_text(f"a,b,c,y\n{rows}")
    (folder / "mine.toml").write_text(RECIPE)
    before = os.getcwd()
    os.chdir(folder)
    try:
        assert call(["train", "mine.toml", "--out", ".", "--name", "run", "-q"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def here(finished, tmp_path, monkeypatch):
    """A copy of that folder, as the current one."""
    shutil.copytree(finished, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "canary"


class Singing:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def pickled(canary):
    return pickle.dumps(Singing(canary))


def saved(canary):
    """Return what torch.save writes: an archive with a pickle inside."""
    file = io.BytesIO()
    torch.save({"state_dict": {"weight": torch.zeros(2)}, "more": Singing(canary)}, file)
    return file.getvalue()


def write_with_hash(path, data):
    """Replace a file of a checkpoint, and say so in its manifest."""
    path.write_bytes(data)
    manifest = path.parent / "manifest.json"
    if path != manifest and manifest.exists():
        document = json.loads(manifest.read_text())
        document["files"][path.name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest.write_text(json.dumps(document))


def newest(folder):
    return max((folder / "run" / "checkpoints").glob("step-*"))


def snapshot(folder, *, without):
    """Return the content of everything in a folder but of one of its folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if without not in path.parents and path != without
    }


def answer(capfd, *arguments):
    capfd.readouterr()
    code = call([str(each) for each in arguments])
    captured = capfd.readouterr()
    assert "Traceback" not in captured.out + captured.err, captured.err
    return code, captured.out, captured.err


def refused(capfd, *arguments):
    """Call a verb that must refuse; return its sentence."""
    code, _, err = answer(capfd, *arguments)
    assert code in (2, 3), (code, err)
    assert err.startswith("Error: ")
    return err


def test_the_canary_sings_where_a_pickle_is_opened(tmp_path, canary):
    (tmp_path / "x.pt").write_bytes(saved(canary))
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert canary.exists()
    canary.rmdir()
    pickle.loads(pickled(canary))
    assert canary.exists()


FILES = [
    "run.json", "recipe.toml", "preprocessing.json", "metrics.jsonl", "metrics.csv", "log.txt", "lock.json", "checkpoints/best.json",
    "checkpoints/latest.json", "step/manifest.json", "step/state.json", "step/model.safetensors", "step/optimizer.safetensors",
    "step/rng-rank0.safetensors", "step/callbacks.safetensors", "step/sums-rank0.safetensors", "step/window.safetensors",
    "step/ema.safetensors", "step/more.pt", "checkpoints/weights.pt", "more.pkl",
]  # fmt: skip


def place(here, name):
    return newest(here) / name.removeprefix("step/") if name.startswith("step/") else here / "run" / name


@pytest.mark.parametrize("make", [pickled, saved], ids=["pickle", "archive"])
@pytest.mark.parametrize("name", FILES)
def test_no_verb_opens_a_pickle_whatever_it_is_called(here, canary, capfd, name, make):
    before = snapshot(here, without=here / "run")
    path = place(here, name)
    write_with_hash(path, make(canary))
    codes = {verb: answer(capfd, *arguments)[0] for verb, arguments in VERBS.items()}

    assert not canary.exists()
    assert set(codes.values()) <= {0, 2, 3}, codes
    if name in ("run.json", "step/manifest.json", "step/state.json", "step/model.safetensors"):
        assert codes["verify"] == 3
    for made in ("predictions.csv", "compared.html"):
        (here / made).unlink(missing_ok=True)
    assert snapshot(here, without=here / "run") == before


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("step/")])
def test_python_opens_no_pickle_either(here, canary, name):
    path = place(here, name)
    write_with_hash(path, saved(canary))
    for use in (
        lambda: velodrome.load_model("run"),
        lambda: velodrome.load_model(newest(here)),
        lambda: velodrome.load_model(path, torch.nn.Linear(2, 2)),
        lambda: read_state(newest(here)),
        lambda: [read_tensors(newest(here), group) for group in ("model", "optimizer", "callbacks", "rng-rank0")],
        lambda: read_records("run"),
    ):
        with suppress(VelodromeError):
            use()
    assert not canary.exists()


# -- weights of torch.save ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [pickled, saved], ids=["pickle", "archive"])
def test_import_of_a_pickle_with_code_is_refused_and_nothing_runs(tmp_path, canary, capfd, make):
    (tmp_path / "x.pt").write_bytes(make(canary))
    said = refused(capfd, "import", tmp_path / "x.pt")
    assert "holds more than tensors" in said
    assert "nothing in the file was run" in said
    assert not canary.exists()
    assert sorted(os.listdir(tmp_path)) == ["x.pt"]


def test_eval_of_a_pickle_names_the_command_that_imports_it(here, canary, capfd):
    (here / "x.pt").write_bytes(saved(canary))
    said = refused(capfd, "eval", "x.pt", "--recipe", "mine.toml")
    assert "velodrome import x.pt" in said
    assert not canary.exists()


def test_import_of_one_number_that_claims_to_be_a_billion_is_refused(tmp_path, capfd):
    torch.save({"w": torch.zeros(1).expand(1 << 40)}, tmp_path / "x.pt")
    assert "its tensors claim 4,398,046,511,104" in refused(capfd, "import", tmp_path / "x.pt")


def test_import_of_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path, capfd):
    torch.save({"w": torch.zeros(1000)}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as given, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as bomb:
        for entry in given.infolist():
            bomb.writestr(entry.filename, given.read(entry), compress_type=zipfile.ZIP_DEFLATED)
    assert "is compressed" in refused(capfd, "import", tmp_path / "bomb.pt")


@pytest.mark.parametrize(
    "data", [b"", b"PK\x03\x04", b"PK\x05\x06" + b"\0" * 18, b"\x80\x02]q\0.", b"{}", b"\0" * 4096]
)
def test_import_of_anything_else_is_refused_with_one_sentence(tmp_path, capfd, data):
    (tmp_path / "x.pt").write_bytes(data)
    said = refused(capfd, "import", tmp_path / "x.pt")
    assert str(tmp_path / "x.pt") in said
    assert len(said) < 600


# -- paths -------------------------------------------------------------------------------------------------------------

PATHS = [
    "../../outside.json",
    "/etc/passwd",
    "a/b",
    "..",
    ".hidden",
    "con\0trol",
    "C:\\x",
    "model.safetensors/../../x",
    "x" * 300,
]


@pytest.mark.parametrize("name", PATHS)
def test_a_manifest_cannot_name_a_file_outside_its_folder(here, capfd, name):
    (here / "outside.json").write_text("mine")
    manifest = newest(here) / "manifest.json"
    document = json.loads(manifest.read_text())
    document["files"][name] = {"bytes": 4, "sha256": hashlib.sha256(b"mine").hexdigest()}
    manifest.write_text(json.dumps(document))

    said = answer(capfd, "verify", "run")
    assert said[0] == 3
    assert "is not a plain name inside the folder" in said[1]
    assert (here / "outside.json").read_text() == "mine"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that a newer checkpoint was skipped
        code, out, _ = answer(capfd, "eval", "run", "--weights", "last", "--json")
    assert code == 0
    assert str(newest(here).name) not in out
    with pytest.raises(CheckpointError, match="not a plain name inside the folder"):
        read_state(newest(here))


@pytest.mark.parametrize("group", ["../x", "/srv/x", "model/../../x", "..", "Model", "", "m\0"])
def test_a_group_of_tensors_cannot_name_another_folder(tmp_path, group):
    store = CheckpointStore(tmp_path / "checkpoints", run_id="a")
    with pytest.raises(ValueError, match="cannot name a file"):
        store.save(1, {group: {"w": torch.zeros(1)}}, {})
    with pytest.raises(CheckpointError):
        read_tensors(tmp_path / "checkpoints" / "step-00000001", group)
    assert os.listdir(tmp_path) == []


def test_names_of_tensors_are_names_and_no_paths(tmp_path, capfd):
    from safetensors.torch import save_file

    names = ["../../x", "/etc/passwd", "__class__", "a" * 1000, "module.__reduce__"]
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "x.safetensors")
    (tmp_path / "in").mkdir()
    with pytest.raises(CheckpointError, match="do not fit this Linear"):
        velodrome.load_model(tmp_path / "x.safetensors", torch.nn.Linear(1, 1))
    assert answer(capfd, "import", tmp_path / "x.safetensors", "--to", tmp_path / "in" / "y.safetensors")[0] == 0
    assert sorted(os.listdir(tmp_path)) == ["in", "x.safetensors"]
    assert os.listdir(tmp_path / "in") == ["y.safetensors"]


NAMES = [
    "../../x",
    "/etc/x",
    "a/b",
    "CON",
    "nul.txt",
    "a:b",
    "größe 🚲",
    "x" * 300,
    "-rf",
    "..",
    ".",
    "a\x00b",
    "<script>",
    "~root",
    "$HOME",
    "",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_stays_inside_of_its_root_whatever_it_is_called(here, tmp_path, capfd, name):
    root = here / "root"
    before = snapshot(tmp_path, without=root)
    code, _, err = answer(capfd, "train", "mine.toml", "--out", root, f"--name={name}", "train.epochs=1", "-q")
    assert code == 0, err
    (run,) = root.iterdir()
    assert re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", run.name)
    assert run.name not in ("con", "nul")
    assert not run.is_symlink()
    assert run.resolve().parent == root.resolve()
    assert snapshot(tmp_path, without=root) == before


def test_the_name_as_it_was_given_is_kept(here):
    name = "../../Größe: 3e-4"
    command = [sys.executable, "-m", "velodrome", "train", "mine.toml", "--name", name, "train.epochs=1", "-q"]
    subprocess.run(command, check=True, env=environment())
    record = json.loads((here / "runs" / "grosse-3e-4" / "run.json").read_text())
    assert name in record["command"]


def test_a_run_named_like_a_link_to_elsewhere_is_refused(here, tmp_path, capfd):
    (tmp_path / "elsewhere").mkdir()
    (here / "runs").mkdir()
    (here / "runs" / "mine").symlink_to(tmp_path / "elsewhere")
    assert "exists already" in refused(capfd, "train", "mine.toml", "--name", "mine")
    assert os.listdir(tmp_path / "elsewhere") == []


# -- links -------------------------------------------------------------------------------------------------------------

LINKED = [
    "run.json", "recipe.toml", "preprocessing.json", "metrics.jsonl", "metrics.cut.jsonl", "metrics.csv", "log.txt", "lock.json", "tb",
    "checkpoints", "checkpoints/best.json", "checkpoints/latest.json", "step", "step/model.safetensors", "step/manifest.json", "step/state.json",
]  # fmt: skip


@pytest.mark.parametrize("dangling", [False, True], ids=["file", "nothing"])
@pytest.mark.parametrize("name", LINKED)
def test_a_file_of_a_run_that_is_a_link_is_neither_read_nor_written_when_the_run_goes_on(
    here, tmp_path, capfd, name, dangling
):
    path = newest(here) if name == "step" else place(here, name)
    target = tmp_path / "outside"
    if path.exists():
        shutil.move(path, target)
    elif name == "tb":
        target.mkdir()
    else:
        target.write_text("mine")
    if dangling:
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    path.symlink_to(target)
    before = snapshot(tmp_path, without=here)

    for arguments in (VERBS["resume"], VERBS["auto"]):
        said = refused(capfd, *arguments)
        assert str(path.relative_to(here)) in said or "there is no run in it" in said
    if not (dangling and name == "run.json"):
        with pytest.raises(VelodromeError):
            velodrome.Trainer(torch.nn.Linear(1, 1), run_dir=here / "run", resume="auto", progress=False)
        assert answer(capfd, "verify", "run")[0] == 3

    assert snapshot(tmp_path, without=here) == before
    assert path.is_symlink()


def test_the_run_directory_itself_may_be_a_link(here, tmp_path, capfd):
    shutil.move(here / "run", tmp_path / "disk")
    (here / "run").symlink_to(tmp_path / "disk")
    assert answer(capfd, "verify", "run")[0] == 0
    assert answer(capfd, *VERBS["resume"])[0] == 0
    assert json.loads((tmp_path / "disk" / "run.json").read_text())["progress"]["epochs_done"] == 3


def test_a_copied_checkpoint_is_whole_by_itself(here, tmp_path, capfd):
    model = velodrome.load_model("run", weights="last")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    shutil.copytree(newest(here), tmp_path / "taken")
    shutil.rmtree(here / "run")
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    assert answer(capfd, "verify", tmp_path / "taken")[0] == 0
    after = velodrome.load_model(tmp_path / "taken", model).state_dict()
    assert all(after[name].equal(before[name]) for name in before)


# -- sizes, depth and numbers ------------------------------------------------------------------------------------------


@contextmanager
def memory_limited_to(num_bytes):
    """Let this process take so much more memory; what parses a bomb before it looks at its size fails."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def sparse(path, data=b"", size=8 << 30):
    path.write_bytes(data)
    os.truncate(path, size)


@pytest.mark.skipif(sys.platform != "linux", reason="reads its memory from /proc")
@pytest.mark.parametrize(
    "name",
    [
        "run.json",
        "recipe.toml",
        "preprocessing.json",
        "metrics.jsonl",
        "lock.json",
        "checkpoints/best.json",
        "step/manifest.json",
    ],
)
def test_a_file_of_eight_gigabytes_is_refused_by_its_size(here, capfd, name):
    sparse(place(here, name))
    with memory_limited_to(2 << 30):
        codes = [answer(capfd, *arguments)[0] for arguments in VERBS.values()]
    assert set(codes) <= {0, 2, 3}
    if name != "lock.json":  # a note, of which the first bytes are read; the lock is the system's
        assert set(codes) & {2, 3}


def test_a_state_that_is_too_large_is_refused_by_its_size_although_its_hash_is_right(here, capfd):
    path, size = place(here, "step/state.json"), (1 << 26) + 1
    sparse(path, size=size)
    digest = hashlib.sha256(bytes(size)).hexdigest()
    document = json.loads((path.parent / "manifest.json").read_text())
    document["files"]["state.json"] = {"bytes": size, "sha256": digest}
    (path.parent / "manifest.json").write_text(json.dumps(document))
    for other in sorted(path.parent.parent.glob("step-*"))[:-1]:
        shutil.rmtree(other)
    assert f"has {size} bytes. At most {1 << 26} are read" in refused(capfd, *VERBS["resume"])


@pytest.mark.skipif(sys.platform != "linux", reason="reads its memory from /proc")
@pytest.mark.parametrize("header", [1 << 62, (1 << 64) - 1, 99_000_000, 7 << 30])
def test_a_header_that_claims_to_be_huge_is_refused(tmp_path, capfd, header):
    size = 200 << 20 if header == 99_000_000 else 8 << 30  # which the file holds, or not
    sparse(tmp_path / "x.safetensors", header.to_bytes(8, "little") + b'{"a":' * 10, size=size)
    with memory_limited_to(2 << 30):
        said = refused(capfd, "import", tmp_path / "x.safetensors", "--to", tmp_path / "y.safetensors")
    assert "x.safetensors" in said
    assert not (tmp_path / "y.safetensors").exists()


DEEP = b"[" * 100_000 + b"]" * 100_000
BAD_JSON = [
    DEEP,
    b'{"a":' * 100_000,
    b'{"id": ' + b"9" * 100_000 + b"}",
    b'{"id": NaN}',
    b'{"id": "a", "progress": {"steps_done": 1e999}}',
    b"\xff\xfe",
    b"null",
    b"",
]


@pytest.mark.parametrize("data", BAD_JSON, ids=range(len(BAD_JSON)))
@pytest.mark.parametrize(
    "name",
    [
        "run.json",
        "metrics.jsonl",
        "preprocessing.json",
        "checkpoints/best.json",
        "step/manifest.json",
        "step/state.json",
    ],
)
def test_json_that_is_too_deep_too_long_or_no_json_is_refused_by_name(here, capfd, name, data):
    write_with_hash(place(here, name), data + b"\n")
    codes = {verb: answer(capfd, *arguments)[0] for verb, arguments in VERBS.items()}
    assert set(codes.values()) <= {0, 2, 3}, codes
    is_json = (
        name == "step/state.json" and data.startswith(b'{"id"') and len(data) < 100
    )  # NaN and infinity are values there
    if (name not in ("preprocessing.json", "metrics.jsonl") or (name == "metrics.jsonl" and data)) and not is_json:
        assert codes["verify"] == 3
    if name == "run.json":
        assert (codes["resume"], codes["auto"]) == (3, 3)


def test_a_record_with_unknown_counters_is_refused(here, capfd):
    record = json.loads((here / "run" / "run.json").read_text())
    for progress, words in (
        ({**record["progress"], "evil": 1}, "counts evil"),
        ({"steps_done": "8"}, "progress.steps_done is no count"),
    ):
        (here / "run" / "run.json").write_text(json.dumps({**record, "progress": progress}))
        assert words in refused(capfd, *VERBS["resume"])


# -- state that has the right hash and the wrong meaning -----------------------------------------------------------------


def change(state, path, value):
    *parents, last = path
    for name in parents:
        state = state[name]
    if value is None:
        del state[last]
    else:
        state[last] = value


STATES = [
    (("resume",), {}),
    (("resume",), []),
    (("progress",), None),
    (("progress",), {"steps_done": "all"}),
    (("progress", "evil"), 1),
    (("averaging",), None),
    (("averaging",), 3),
    (("resume", "settings"), None),
    (("resume", "settings"), "none"),
    (("resume", "optimizers"), None),
    (("resume", "optimizers"), {"optimizer": {"names": 3}}),
    (("resume", "updates"), 5),
    (("resume", "random"), {"python": "os.system"}),
    (("resume", "position"), None),
    (("resume", "position"), {"stage": "__import__('os')"}),
    (("resume", "keeping"), {"best": 3, "best_ones": 3}),
    (("resume", "callbacks"), 7),
    (("resume", "phase"), 7),
    (("resume", "stop"), "rm -rf"),
    (("resume", "journal_bytes"), "many"),
    (("resume", "journal_bytes"), -5),
    (("resume", "data"), 1),
    (("resume", "row"), "os:system"),
    (("resume", "order_seed"), "os:system"),
]


@pytest.mark.parametrize(("path", "value"), STATES, ids=lambda value: json.dumps(value)[:40])
def test_state_that_means_nothing_is_refused_with_one_sentence(here, capfd, path, value):
    for checkpoint in (here / "run" / "checkpoints").glob("step-*"):
        file = checkpoint / "state.json"
        state = json.loads(file.read_text())
        change(state, path, value)
        write_with_hash(file, json.dumps(state).encode())
    before = (here / "run" / "metrics.jsonl").read_bytes()
    code, _, err = answer(capfd, *VERBS["resume"])
    assert code in (0, 2, 3), err
    if code:
        assert err.count("\n") == 1
        assert (here / "run" / "metrics.jsonl").read_bytes() == before


# -- names of code -----------------------------------------------------------------------------------------------------

MODULE = """\
import pathlib
pathlib.Path({canary!r}).mkdir(exist_ok=True)
import torch
def make(**arguments):
    return torch.nn.Linear(3, 3)
def data(**arguments):
    return ((torch.zeros(8, 3), torch.zeros(8, dtype=torch.long)), None)
"""
PLACES = {
    "model": {"model": {"name": "evil_for_attacks:make"}},
    "data": {"data": {"name": "evil_for_attacks:data"}},
    "loss": {"loss": {"name": "evil_for_attacks:make"}},
    "optimizer": {"optimizer": {"name": "evil_for_attacks:make"}},
    "scheduler": {"scheduler": {"name": "evil_for_attacks:make"}},
    "metric": {"train": {"epochs": 2, "metrics": ["evil_for_attacks:make"]}},
    "os": {"model": {"name": "os:system"}},
}


def plant(here, canary, tables):
    """Make a run whose recipe names code: the module lies where the command is run, as in an archive that was unpacked there."""
    import tomllib

    from velodrome.recipes.toml_writer import to_toml

    (here / "evil_for_attacks.py").write_text(MODULE.format(canary=str(canary)))
    recipe = here / "run" / "recipe.toml"
    recipe.write_text(to_toml({**tomllib.loads(recipe.read_text()), **tables}))


@pytest.mark.parametrize("tables", PLACES.values(), ids=PLACES.keys())
def test_code_that_a_recipe_in_a_run_directory_names_is_not_imported(here, canary, capfd, tables):
    plant(here, canary, tables)
    for verb in ("verify", "show", "runs", "eval", "predict", "resume"):
        code, _, err = answer(capfd, *VERBS[verb])
        assert code in (0, 2, 3)
        assert not canary.exists()
        if code == 2:
            assert "stands in a recipe inside a run directory" in err
            assert "pass a recipe that you trust with --recipe" in err
    with suppress(VelodromeError):
        velodrome.load_model("run")
    with suppress(VelodromeError):
        load_run_recipe("run")
    assert not canary.exists()
    assert "evil_for_attacks" not in sys.modules


def test_code_is_imported_when_the_user_names_the_recipe_that_names_it(here, canary, capfd):
    plant(here, canary, PLACES["model"])
    assert answer(capfd, "eval", "run", "--recipe", "run/recipe.toml")[0] == 3  # that model has other weights
    assert canary.exists()
    sys.modules.pop("evil_for_attacks", None)


def test_code_on_the_command_line_is_the_users_own(here, canary, capfd):
    """Every way of saying it: this one is refused for the run's recipe, whoever gave the override, and tells how it goes."""
    plant(here, canary, {})
    assert "--recipe" in refused(capfd, "eval", "run", "model.name=evil_for_attacks:make")
    assert not canary.exists()
    assert answer(capfd, "train", "mine.toml", "model.name=evil_for_attacks:make", "--dry-run")[0] in (0, 2)
    assert canary.exists()
    sys.modules.pop("evil_for_attacks", None)


def walk(value, path=()):
    """Yield the places of all texts in JSON."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from walk(each, (*path, key))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from walk(each, (*path, index))
    elif isinstance(value, str):
        yield path


def test_no_text_in_a_checkpoint_is_ever_imported(here, canary, capfd):
    """Each text in state.json, manifest and run.json, one after the other, names code; the whole text or its part behind a colon."""
    plant(here, canary, {})
    for name in ("step/state.json", "step/manifest.json", "run.json", "preprocessing.json", "checkpoints/best.json"):
        path = place(here, name)
        before, manifest = path.read_bytes(), (newest(here) / "manifest.json").read_bytes()
        document = json.loads(before)
        for where in list(walk(document)):
            changed = json.loads(before)
            change(changed, where, "evil_for_attacks:make")
            write_with_hash(path, json.dumps(changed).encode())
            run = shutil.copytree(here / "run", here / "copy")
            answer(capfd, "eval", run, "-q")
            code, _, err = answer(capfd, "resume", run, "train.epochs=3", "-q")
            assert code in (0, 2, 3), (name, where, err)
            assert not canary.exists(), (name, where)
            shutil.rmtree(run)
            path.write_bytes(before)
            (newest(here) / "manifest.json").write_bytes(manifest)
    assert "evil_for_attacks" not in sys.modules


# -- recipes -----------------------------------------------------------------------------------------------------------

BOMBS = {
    "deep list": "a = " + "[" * 100_000 + "]" * 100_000,
    "deep table": "[" + ".".join("a" * 1 for _ in range(5_000)) + "]\nb = 1",
    "long number": "[train]\nepochs = " + "9" * 100_000,
    "many keys": "\n".join(f"k{i} = 1" for i in range(2_000)),
    "yaml aliases": "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n",
    "yaml code": "!!python/object/apply:os.system ['touch canary']",
    "binary": "\x00\x01\x02",
    "infinite": "[train]\nepochs = inf",
    "date": "[train]\nepochs = 1979-05-27",
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS.keys())
def test_a_recipe_that_is_a_bomb_is_refused(here, capfd, text):
    (here / "bomb.toml").write_text(text)
    assert len(refused(capfd, "train", "bomb.toml", "--dry-run")) < 20_000
    (here / "run" / "recipe.toml").write_text(text)
    refused(capfd, "eval", "run")
    with pytest.raises(RecipeError):
        load_run_recipe("run")


# -- what the source may not say ---------------------------------------------------------------------------------------

FORBIDDEN = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
MAY_IMPORT = {
    "checkpoint/foreign.py": {"pickle"},  # the name of the error that a refused pickle raises
    "data/workers.py": {"pickle"},  # the name of an error
    "data/failures.py": {"pickle"},  # an exception on its way from a worker process of one's own, as torch sends it
    "testing/worlds.py": {
        "pickle"
    },  # values from process to process of a test, over pipes that it made itself; no file
}


def found_in(path):
    """Yield what opens or runs other people's data, by line."""
    name = path.relative_to(SOURCE).as_posix()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for module in modules:
                if module.split(".")[0] in FORBIDDEN_MODULES - MAY_IMPORT.get(name, set()):
                    yield f"{name}:{node.lineno}: import {module}"
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        module = called.split(".")[0]
        is_forbidden = called in FORBIDDEN or module in FORBIDDEN_MODULES - MAY_IMPORT.get(name, set())
        if is_forbidden or called in ("np.load", "numpy.load"):
            yield f"{name}:{node.lineno}: {called}"
        if called in (
            "torch.load",
            "torch.jit.load",
            "torch.hub.load",
            "torch.package.PackageImporter",
            "load_state_dict_from_url",
        ):
            safe = any(each.arg == "weights_only" and ast.unparse(each.value) == "True" for each in node.keywords)
            if called != "torch.load" or not safe:
                yield f"{name}:{node.lineno}: {called}"
        if (
            any(each.arg == "shell" and ast.unparse(each.value) != "False" for each in node.keywords)
            or called == "os.system"
        ):
            yield f"{name}:{node.lineno}: a shell"


def test_the_source_opens_no_pickle_and_runs_no_text():
    found = [line for path in sorted(SOURCE.rglob("*.py")) for line in found_in(path)]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle\n", "from pickle import loads\n", "import torch\ntorch.load('x')\n", "import torch\ntorch.load('x', weights_only=False)\n",
        "eval('1')\n", "exec('1')\n", "import yaml\n", "import os\nos.system('ls')\n", "import subprocess\nsubprocess.run('ls', shell=True)\n",
    ],
)  # fmt: skip
def test_the_search_finds_each_of_them(monkeypatch, tmp_path, text):
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    (tmp_path / "x.py").write_text(text)
    assert list(found_in(tmp_path / "x.py"))


def test_unlimited_reads_of_foreign_weights_leave_no_open_file(tmp_path):
    torch.save({"w": torch.zeros(3)}, tmp_path / "x.pt")
    assert read_foreign_weights(tmp_path / "x.pt")["w"].tolist() == [0, 0, 0]
    (tmp_path / "x.pt").unlink()
