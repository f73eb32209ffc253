"""What a run costs once: nothing is imported that it does not use, and memory that a step frees stays for the next one."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from velodrome.step.without_compiler import without_compiler

_JOB = """
import sys, tempfile, torch, velodrome as vd
from torch import nn

def fit(folder, **more):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    data = torch.randn(64, 4), torch.randint(2, (64,))
    return vd.fit(model, data, data, batch_size=8, loss="cross_entropy", optimizer="adamw", lr=0.01, metrics=["accuracy"],
                  scheduler="one_cycle", ema=0.9, device="cpu", progress=False, run_dir=folder, **more)
"""


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _JOB + textwrap.dedent(code)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_that_is_saved_and_resumed_does_not_import_the_compiler() -> None:
    printed = run("""
        with tempfile.TemporaryDirectory() as folder:
            fit(folder + "/run", epochs=1)
            print([row["epoch"] for row in fit(folder + "/run", epochs=2, resume="auto").history])
        print("torch._dynamo" in sys.modules)
    """)
    assert printed.split()[-1] == "False"


def test_a_recipe_is_read_without_the_compiler_and_its_symbols() -> None:
    printed = run("""
        from velodrome.recipes.read import load_recipe
        load_recipe("fashion-mnist-mlp")
        print([name for name in ("torch._dynamo", "torch.fx.experimental.symbolic_shapes", "sympy") if name in sys.modules])
    """)
    assert printed.strip() == "[]"


def test_torch_alone_imports_the_compiler_for_an_optimizer() -> None:
    """The control: when torch stops doing so, `without_compiler` can go."""
    printed = run("torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0); print('torch._dynamo' in sys.modules)")
    assert printed.split()[-1] == "True"


def test_the_compiler_finds_its_guards_as_torch_made_them() -> None:
    printed = run("""
        from torch.optim import Optimizer
        with tempfile.TemporaryDirectory() as folder:
            fit(folder + "/run", epochs=1)
        before = [hasattr(getattr(Optimizer, name).__wrapped__, "__dynamo_disable") for name in ("add_param_group", "state_dict")]
        optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
        after = [hasattr(getattr(Optimizer, name).__wrapped__, "__dynamo_disable") for name in ("add_param_group", "state_dict")]
        print(before, after, len(optimizer.state_dict()["param_groups"]))
    """)
    assert printed.strip() == "[False, False] [True, False] 1"


def test_an_error_within_leaves_the_guards_too() -> None:
    with pytest.raises(ValueError, match="Invalid learning rate"), without_compiler():
        torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=-1.0)
    assert torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0).param_groups[0]["lr"] == 1.0


_FAULTS = """
import resource
torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 10))
data = torch.randn(640, 784), torch.randint(10, (640,))
def faults(**more):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    vd.fit(model, data, epochs=10, batch_size=64, loss="cross_entropy", optimizer="sgd", lr=0.01, device="cpu", progress=False, **more)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 100
faults()
print(faults())
"""


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(os, "confstr"), reason="page faults of glibc's heap")
def test_steps_take_no_new_pages_from_the_system() -> None:
    """Two megabytes of gradients are freed and made again a hundred times: 400 pages each if glibc returned them."""
    kept = float(run(_FAULTS))
    returned = float(run(_FAULTS, MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072"))
    assert kept < 20  # what the first step of each run takes, over its hundred steps
    assert returned > 100  # the user's own setting stands


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(os, "confstr"), reason="glibc's heap")
@pytest.mark.parametrize(("free", "is_kept"), [("2 * 2**30", "True"), ("2 * 2**30 - 1", "False")])
def test_where_memory_is_short_nothing_is_kept(free: str, is_kept: str) -> None:
    printed = run(f"""
        import velodrome.data_in_use, velodrome.step.freed_memory as memory
        velodrome.data_in_use.available_bytes = lambda device: {free}
        with tempfile.TemporaryDirectory() as folder:
            fit(folder + "/run", epochs=1)
        print(memory._is_kept)
    """)
    assert printed.split()[-1] == is_kept


def given_back_mb(**environment: str) -> float:
    """Return how much a run gives back at its end of 200 MB that its callback has freed."""
    printed = run(
        """
        from pathlib import Path
        def resident():
            return next(int(line.split()[1]) / 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
        class Look(vd.Callback):
            def on_epoch_end(self, trainer, row):
                self.hoard = [torch.ones(2**18) for _ in range(200)]  # a megabyte each
                self.pin = torch.ones(2**10)  # above them in the heap
                del self.hoard
                self.during = resident()
        look = Look()
        torch.manual_seed(0)
        data = torch.randn(64, 4), torch.randint(2, (64,))
        vd.fit(nn.Linear(4, 2), data, batch_size=8, loss="cross_entropy", optimizer="sgd", lr=0.01, device="cpu", progress=False,
               epochs=1, callbacks=[look])
        print(look.during - resident())
    """,
        **environment,
    )
    return float(printed.split()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory as Linux tells it")
def test_the_memory_is_given_back_at_the_end_of_a_run() -> None:
    assert given_back_mb() > 150


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory as Linux tells it")
def test_what_the_user_has_the_process_keep_is_not_given_back() -> None:
    assert given_back_mb(MALLOC_TRIM_THRESHOLD_="1073741824", MALLOC_MMAP_THRESHOLD_="33554432") < 50
