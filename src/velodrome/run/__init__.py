"""One run under way: what happens around the steps. `run.py` holds the parts, and is what the loop asks (`loop/host.py`)."""
