"""What a trial is known by and what it gives: the values that cross from its process to the one that searches."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BenchFacts", "Round"]


@dataclass(frozen=True, kw_only=True)
class BenchFacts:
    """What is known of a configuration once it has warmed up."""

    device: str
    cores: int
    """physical ones that this process may use"""
    threads: int
    steps_per_epoch: int | None
    total_steps: int | None
    """of the whole run; None where a clock ends it, or the data do not know their length"""
    num_workers: int
    is_in_memory: bool
    """whether training batches are gathered from tensors"""
    is_resident: bool = False
    """whether these tensors are on the device"""
    is_indexed: bool
    """whether samples are fetched one by one from a dataset that workers could share"""
    has_validation: bool
    num_val_samples: int | None
    has_convolutions: bool
    has_dropout: bool
    num_train_samples: int | None
    optimizer_is_fused: bool
    can_tf32: bool
    warm_up_s: float
    """that the start takes: building, and what the first steps take longer than later ones. What is read into memory, compiled or captured is
    in here"""
    loss: float
    """mean over the first steps"""
    digest: str
    """of the weights after the first steps"""


@dataclass(frozen=True, kw_only=True)
class Round:
    """What one turn of a configuration gave."""

    step_s: float
    turn_s: float
    """what beginning and ending an epoch takes besides its steps; 0 where the timed steps have epochs' ends among them"""
    evaluation_s: float
    """of all validation data"""
    memory_bytes: int | None
    """largest so far: of the process, or on CUDA of the device"""
    others_fraction: float = 0.0
    """of the cores that the process may use: what other programs kept busy meanwhile; 0 where the system does not tell"""

    def epoch_s(self, steps: int | None) -> float:
        """Return the time of an epoch with its evaluation; that of a step where the length of an epoch is not known."""
        return self.step_s if steps is None else steps * self.step_s + self.turn_s + self.evaluation_s
