"""The launch of a job: its processes, and who looks after them until the run has ended.

plan.py            the table of launchers, and what is run, as values (planned.py): command line, environment, files
mpirun.py torchrun.py slurm.py                  the plan of each launcher; slurm_node.py is run on nodes before
joining.py         the place of a process that somebody else has started, with others; meeting.py: where ranks meet
rank_placement.py  which node hosts which ranks; roster.py: the nodes that a head has
ready.py           what a run on this machine needs before it starts: packages, nodes, data, its directory
preflight.py       the checks before a run; facts.py, round_trip.py and sweep.py are run on the nodes for it
worker_data.py     the job's data set on every node; worker_code.py: its own code there
every_node.py      one question to all nodes by ssh
run.py             one launch: its process from start to end
fork_server.py     imports torch once for all ranks of a node; fork_client.py: how a rank becomes its child
watch.py           when a launch is ended by force; changes.py, notices.py: when at its next step, as nodes come and go
judge.py           what is said of a launch that has ended; decide.py: what follows
supervise.py       the loop over launches; keep.py: who starts it again; settle.py: where nobody does
interrupts.py      what Ctrl-C does to which command
resume.py stop.py logs.py progress.py           a run as its user sees it
head.py follow.py                               a run as an operator elsewhere sees it

A plan is the whole job in one command line. So a dry run prints what would be run, tests compare plans and start
nothing, and launcher and trainer meet only in a command line and a run directory.
"""
