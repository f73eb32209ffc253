"""Reads the records of a run and draws them; never imports the loop."""
