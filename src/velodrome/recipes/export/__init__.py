"""From a trained run to one file that is used without Velodrome: `velodrome export`.

`of_run.py` is where an export begins. `write.py` is the way of every file: made beside its target, read back, compared with the model, then
put in place. One file each for what goes in (`example.py`), what is said about it (`metadata.py`), how outputs are compared (`comparing.py`)
and what people are told (`wording.py`); one a format.
"""
