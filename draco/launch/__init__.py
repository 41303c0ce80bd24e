"""How a job becomes processes: a pure `plan` for one process, local MPI or a cluster, one `run` with the effects.

A plan is data: the command line and the environment of one process, which is the whole job. So a dry run prints what
would be run, tests compare plans without starting anything, and launcher and trainer meet only in a command line and
a run directory.
"""
