"""The command line: `draco COMMAND ...`, or `python -m draco COMMAND ...`.

main.py        dispatch; errors become exit codes, and Ctrl-C too
parser.py      the parser of all commands; each module below adds its own command to it
train.py       draco train, on this machine or on a cluster's head
evaluate.py    draco eval
export.py      draco export
report.py      draco report
compare.py     draco compare
runs.py        draco logs, draco stop
jobs.py        draco validate, draco data; reading a job file
cluster.py     draco cluster up, status, down ...
aws.py         what of `draco cluster` costs money
bench.py       draco bench
internal.py    what Draco starts itself: rank, supervise, follow, head

arguments.py   arguments that several commands share
where.py       this machine or a cluster's head: where a command runs
console.py     where messages go, and questions
screen.py      a console that shows text as text
streams.py     standard streams that are closed, full, or have no reader

Importing any of them imports nothing large: what a command needs is imported when it runs.
"""
