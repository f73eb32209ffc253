"""A process that dies, fails or leaves takes the others with it, soon, and they say which one it was."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.programs import environment, ranks_of

pytestmark = pytest.mark.slow

LIMIT_S = 30
SCRIPT = """
import os, signal, sys, time
import torch
import velodrome as vd

class Fault(vd.Callback):
    def on_step_end(self, trainer):
        if trainer.progress.steps_done == 5 and os.environ["RANK"] == "1":
            print("fault at", time.time(), flush=True)
            how = sys.argv[1]
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("planted: sample 7 is broken")

x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
trainer = vd.Trainer(torch.nn.Linear(3, 1), "sgd", lr=1e-3, loss="mse", callbacks=[Fault()], device="cpu", progress=False)
try:
    trainer.fit((x, x[:, :1]), epochs=100, batch_size=8)
except vd.errors.WorldError as error:
    print("survivor:", trainer.progress.steps_done, error.rank, error, time.time(), sep="|", flush=True)
    raise
print("done", flush=True)
"""


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("kill", "Rank 1 (pid "),
        ("raise", "Rank 1 failed: ValueError: planted: sample 7 is broken"),
    ],
)
def test_the_survivor_of_a_torchrun_script_ends_and_names_the_rank(tmp_path, how, told):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), how]
    result = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=120)

    assert result.returncode == 1
    assert "done" not in result.stdout
    survivor = next(line for line in result.stdout.splitlines() if line.startswith("survivor:")).split("|")
    fault = float(next(line for line in result.stdout.splitlines() if line.startswith("fault at")).split()[-1])
    assert survivor[1:3] == ["5", "1"]
    assert survivor[3].startswith(told)
    assert "Rank 0 cannot go on alone" in survivor[3]
    assert float(survivor[4]) - fault < LIMIT_S


def start_training(tmp_path, *arguments):
    """Start the main recipe in two processes; return the launcher, and the processes' ids once the first rows are written."""
    command = [
        sys.executable, "-m", "velodrome", "train", "fashion-mnist-mlp", "data.source=embedded", "train.epochs=1000",
        "--processes", "2", "--name", "run", *arguments,
    ]  # fmt: skip
    launcher = subprocess.Popen(
        command, env=environment(), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 90
    rows = tmp_path / "runs" / "run" / "metrics.jsonl"
    while not (rows.exists() and rows.read_text().count("\n") >= 2):
        assert launcher.poll() is None, launcher.communicate()
        assert time.monotonic() < end
        time.sleep(0.1)
    return launcher, ranks_of(launcher.pid)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the ids of processes from /proc")
def test_a_killed_process_of_the_command_line_ends_the_other_and_is_named(tmp_path):
    launcher, pids = start_training(tmp_path)
    assert sorted(pids) == [0, 1]
    os.kill(pids[1], signal.SIGKILL)
    began = time.monotonic()
    _, err = launcher.communicate(timeout=LIMIT_S)

    assert time.monotonic() - began < LIMIT_S
    assert launcher.returncode == 1
    assert "Error: Rank 1 was killed by signal 9 (SIGKILL)." in err
    assert "Traceback" not in err
    assert not Path(f"/proc/{pids[0]}").exists()
    record = json.loads((tmp_path / "runs" / "run" / "run.json").read_text())
    # Rank 0 may be inside of a computation when the launcher's SIGTERM comes: it then has no time to learn and record why.
    if record["status"] != "running":
        assert record["status"] == "failed"
        assert "WorldError: Rank 1 (pid" in record["error"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_command_reaches_the_processes(tmp_path, number, code):
    launcher, pids = start_training(tmp_path)
    launcher.send_signal(number)
    _, err = launcher.communicate(timeout=LIMIT_S)

    assert launcher.returncode == code
    assert f"{number.name}: stopped after step" in err
    assert json.loads((tmp_path / "runs" / "run" / "run.json").read_text())["status"] == "stopped"
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids.values())


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the ids of processes from /proc")
def test_a_signal_to_one_of_the_processes_ends_all_with_its_exit_code(tmp_path):
    launcher, pids = start_training(tmp_path)
    os.kill(pids[1], signal.SIGTERM)
    _, err = launcher.communicate(timeout=LIMIT_S)

    assert launcher.returncode == 143
    assert "SIGTERM: stopped after step" in err
    assert err.count("Go on with: velodrome resume runs/run") == 1
    assert "Error" not in err
    assert json.loads((tmp_path / "runs" / "run" / "run.json").read_text())["status"] == "stopped"


def run_cli(tmp_path, *arguments):
    command = [sys.executable, "-m", "velodrome", "train", *arguments, "--processes", "2"]
    return subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=120)


def test_what_is_wrong_with_the_data_is_told_once_with_the_exit_code_of_the_verb(tmp_path):
    result = run_cli(tmp_path, "fashion-mnist-mlp", "data.source=embedded", "model.sizes=[784, 8, 3]", "--json")
    assert result.returncode == 2
    error = json.loads(result.stdout)["error"]
    assert error["type"] == "DataError"
    assert error["exit_code"] == 2
    assert "The model has 3 outputs" in error["message"]
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


def test_a_run_of_two_processes_writes_what_one_writes(tmp_path):
    result = run_cli(tmp_path, "fashion-mnist-mlp", "data.source=embedded", "train.epochs=1", "--name", "two")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Recipe: fashion-mnist-mlp") == 1
    assert "each batch divided among 2 processes" in result.stderr
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["two"]
    last = json.loads((tmp_path / "runs" / "two" / "metrics.jsonl").read_text().splitlines()[-1])
    num_steps = math.ceil(last["samples"] / 128)  # batches of 128, in one process or two
    assert (last["epoch"], last["step"]) == (1, num_steps)
    assert last["val/accuracy"] > 0.5


LEAVES = """
import atexit, os, sys
from pathlib import Path

@atexit.register  # the first that is registered is called last: what is there then is there while Python ends
def tell():
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    os.write(1, f"rank {os.environ['RANK']} leaves {sorted(names)}\\n".encode())

import torch
import velodrome as vd

torch.manual_seed(0)
x, y = torch.randn(16, 4), torch.arange(16) % 3
vd.fit(torch.nn.Linear(4, 3), (x, y), (x, y), epochs=1, batch_size=8, loss="cross_entropy", device="cpu", progress=False)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads have their names in /proc")
def test_no_thread_of_the_process_group_is_left_when_python_ends(tmp_path):
    """One that lets go of a tensor then aborts the process, once in a hundred runs; the launcher ends the others for it."""
    script = tmp_path / "leaves.py"
    script.write_text(LEAVES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    result = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    told = sorted(line for line in result.stdout.splitlines() if line.startswith("rank "))
    assert [line[:12] for line in told] == ["rank 0 leave", "rank 1 leave"]
    assert not [line for line in told if "gloo" in line]
