"""Runs from Python: `run` trains a job from a script or a notebook, `Run` is what it returns, or an old run opened.

start.py      `run`: a job from a file, a dict or keywords, to its end
naming.py     objects of the caller's, in a job by their paths
here.py       a simulated run inside the caller's process, which is as before afterwards
progress.py   what is shown meanwhile: a line on a terminal, an output of a notebook's cell
opened.py     `Run`; columns.py: its records as columns

It stands beside the command line: both start runs through draco/launch/ready.py, with the same bits.
"""

from draco.experiment.opened import Run
from draco.experiment.start import Interrupted, run

__all__ = ["Interrupted", "Run", "run"]
