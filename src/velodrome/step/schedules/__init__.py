"""Learning-rate schedules: by name with warm-up, or any scheduler of torch, stepped when it ought to be."""

from velodrome.step.schedules.base import NO_SCHEDULE, Schedule
from velodrome.step.schedules.resolve import known_schedules, resolve_scheduler

__all__ = ["NO_SCHEDULE", "Schedule", "known_schedules", "resolve_scheduler"]
