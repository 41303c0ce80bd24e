"""A comparison: one base job, trained with every combination of some of its values, as one table and two plots.

    grid -> cells -> plan -> run (child processes) -> results -> table, plots

A cell is one combination: a simulated run in a directory of its own. It is started by the command line that looks after
any detached run. Nothing here shares a process with the trainer.
"""
