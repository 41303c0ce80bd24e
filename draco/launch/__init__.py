"""How a job becomes processes: a pure `plan` per launcher, one shared `run` with the effects.

A plan is data: the command line and the environment of one process, which is the whole job. So a dry run prints what
would be run, tests compare plans without starting anything, and launcher and trainer meet only in a command line and
a run directory.
"""

from draco.launch.plan import LAUNCHERS, Plan, plan
from draco.launch.run import Outcome, run

__all__ = ["LAUNCHERS", "Outcome", "Plan", "plan", "run"]
