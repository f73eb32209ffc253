"""Runs that are told to stop by a signal or a deadline: they save where they are, and leave."""
