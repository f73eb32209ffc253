"""Runs as their files tell of them: looked at, checked, proved, put side by side, reported on."""
