"""Which switches of a step pay on this CPU: a fused optimizer, bf16, channels_last. The answer depends on the chip, so it is measured.

Expected: a fused Adam pays, a fused SGD hardly does, since what it does is small beside the rest of the step; bf16 pays where the chip
computes in it; channels_last is for convolutions. One step (forward, loss, backward, update) on one ready batch, one thread, in
processor time, so that other processes on the machine matter little. As in a run of Velodrome the memory that a step frees is kept
(`keep_freed_memory`, called first of all; what that buys is in `freed_memory.py`). In turns:

    loop             torch's default optimizer, one operation a parameter
    fused            the same, fused: what Velodrome makes of a name
    fused again      the noise floor
    bf16 autocast    precision="bf16": weights are cast once a step, by autocast
    bf16 copies      bf16 copies of the weights, brought up to date after each update instead of cast in each forward pass;
                     gradients come in bf16 and are widened for the update. Written out here, not part of Velodrome
    channels_last    of the convolutional models: weights and inputs converted once

Beside the speed: the loss after all the steps, which should agree.

    python benchmarks/step_switches.py --rounds 5 --steps 40
"""

from __future__ import annotations

import argparse
from statistics import median
from time import thread_time
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from harness import add_common_options, at_least_one, environment, interleave, opening, ratios, summary, write_record
from models import cnn, mlp
from velodrome.step.freed_memory import keep_freed_memory

if TYPE_CHECKING:
    from collections.abc import Callable

BATCH = 64


def steps_of(
    build: Callable[[], nn.Module], optimizer: str, *, num: int, fused: bool = True, bf16: str = "", layout: str = ""
) -> tuple[float, float]:
    """Make some steps; return the median processor time of one in microseconds, and the last loss."""
    torch.manual_seed(0)
    model = build()
    x, y = torch.randn(BATCH, 1, 28, 28), torch.randint(0, 10, (BATCH,))
    if layout:
        model = model.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    parameters = list(model.parameters())
    masters = [nn.Parameter(p.detach().clone()) for p in parameters] if bf16 == "copies" else parameters
    if bf16 == "copies":
        model, x = model.to(torch.bfloat16), x.to(torch.bfloat16)
        parameters = list(model.parameters())
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]
    own: Any = kind(masters, lr=1e-3, fused=True) if fused else kind(masters, lr=1e-3)
    times, loss = [], torch.zeros(())
    for _ in range(num):
        begin = thread_time()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16 == "autocast"):
            output = model(x)
        loss = functional.cross_entropy(output.float(), y)
        loss.backward()
        if bf16 == "copies":
            for master, parameter in zip(masters, parameters, strict=True):
                master.grad = parameter.grad.float()
                parameter.grad = None
            own.step()
            with torch.no_grad():
                torch._foreach_copy_(parameters, masters)
        else:
            own.step()
        own.zero_grad()
        times.append(1e6 * (thread_time() - begin))
    return median(times[num // 4 :]), loss.item()


def arms_of(build: Callable[[], nn.Module], optimizer: str, num: int) -> dict[str, Callable[[], tuple[float, float]]]:
    arms = {
        "loop": lambda: steps_of(build, optimizer, num=num, fused=False),
        "fused": lambda: steps_of(build, optimizer, num=num),
        "fused again": lambda: steps_of(build, optimizer, num=num),
        "bf16 autocast": lambda: steps_of(build, optimizer, num=num, bf16="autocast"),
        "bf16 copies": lambda: steps_of(build, optimizer, num=num, bf16="copies"),
    }
    if build is cnn:
        arms["channels_last"] = lambda: steps_of(build, optimizer, num=num, layout="channels_last")
        arms["channels_last, bf16 autocast"] = lambda: steps_of(
            build, optimizer, num=num, bf16="autocast", layout="channels_last"
        )
    return arms


def main() -> None:
    """Time the switches, write the record."""
    parser = argparse.ArgumentParser(description=opening(__doc__), epilog="Takes about a minute on two idle cores.")
    add_common_options(parser, rounds=5)
    parser.add_argument("--steps", type=at_least_one, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    is_kept = keep_freed_memory()
    facts = environment(threads=1, steps=options.steps, rounds=options.rounds, freed_memory_kept=is_kept)
    results: dict[str, Any] = {}
    for name, build, optimizer in (("mlp, sgd", mlp, "sgd"), ("mlp, adam", mlp, "adam"), ("cnn, sgd", cnn, "sgd")):
        found = interleave(arms_of(build, optimizer, options.steps), rounds=options.rounds, say=False)
        times = {arm: [time for time, _ in runs] for arm, runs in found.items()}
        results[name] = {
            arm: {
                "us": summary(times[arm]),
                "of fused": summary(ratios(times[arm], times["fused"])),
                "loss": found[arm][0][1],
            }
            for arm in times
        }
        print(name)
        for arm, row in results[name].items():
            print(
                f"  {arm:32} {row['us']['median']:8.0f} us  {row['of fused']['median']:.2f} of fused  loss {row['loss']:.4f}"
            )
    cpu = torch.cpu.get_capabilities()
    chip = {key: cpu.get(key) for key in ("cpu_name", "avx512_f", "avx512_bf16", "amx_tile", "amx_bf16")}
    write_record("step_switches", {"environment": facts, "chip": chip, "results": results}, options.records)


if __name__ == "__main__":
    main()
