"""Whole steps recorded once and replayed as one call.

```text
engine         what the trainer runs: eager until a step is recorded and trusted, replays from then on
evaluation     the same for forward passes of an evaluation
steps          how a step is recorded, and compared with the eager engine
shelf          the recordings there are, by shape of batch
replays        makes the steps: what `Updates` asks first
premises       what recordings rely on, and whether that still holds; limits for what cannot be recorded
rehearsal      what is tried and does not count: kept, put back, compared; attributes for what modules keep in Python
recording      a recorded step and where its results lie: static_batch for what goes in, ring for what comes out
device_rates   learning rates as tensors
graphs         CUDA graphs behind an interface of three calls
context        what all of these need to know of the trainer
```
"""
