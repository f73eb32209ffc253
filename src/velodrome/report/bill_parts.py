"""The parts of a bill, in the order of a step, and what they are called: for the bill itself and for reports of it."""

from __future__ import annotations

__all__ = ["PARTS"]

PARTS = {
    "data_wait": "waiting for data",
    "transfer": "transfer",
    "forward": "forward and loss",
    "backward": "backward",
    "optimizer": "optimizer",
    "logging": "logging and metrics",
    "callbacks": "callbacks",
    "saving": "saving",
    "evaluation": "evaluation",
    "other": "other",
}
