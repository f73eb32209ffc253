"""Learning-rate schedules: by name with warm-up, or any scheduler of torch, stepped when it ought to be.

What the loop asks of one is in `base`; what makes one of a name or of torch's, in `resolve`.
"""

from velodrome.step.schedules.base import NO_SCHEDULE, Schedule

__all__ = ["NO_SCHEDULE", "Schedule"]
