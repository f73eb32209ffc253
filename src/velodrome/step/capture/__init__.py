"""Whole steps recorded once and replayed as one call.

```text
engine         what the trainer runs: eager until a step is recorded and trusted, replays from then on
evaluation     the same for forward passes of an evaluation
graphs         CUDA graphs behind an interface of three calls
limits         what cannot be recorded, and what a recording relies on
rehearsal      steps that do not count: kept, put back, compared
recording      a recorded step and where its results lie: static_batch for what goes in, ring for what comes out
device_rates   learning rates as tensors
```
"""
