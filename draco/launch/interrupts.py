"""The user's wish to end a command: Ctrl-C (SIGINT) and SIGTERM, and what they do to which command.

train                a first one asks the run to stop after its step, with a checkpoint; a second one kills it (run.py).
                     On a cluster both are passed on to the run's head (cluster/remote.py). Exit code 130, resumable.
compare              the same, for every cell that is running (compare/run.py)
cluster up, on AWS   Terraform is left to stop by itself and to save its state (cluster/aws/terraform.py); then 130
cluster interrupt    ends the command; a notice that was given stands, and that is said (cluster/interrupt.py); 130
any other            Python's KeyboardInterrupt ends it with 130 (cli/main.py): it only watched or waited

A rank takes the signal for the run's and puts the file `stop` there (training/process.py). Where it was forked, it is
told by what mpirun started in its place (fork_client.py).
"""

import signal
from collections.abc import Callable


class Interrupts:
    """Counts the user's wishes to end while it is entered, and calls `answer` with the count and the signal's name."""

    def __init__(self, answer: Callable[[int, str], None] = lambda count, name: None) -> None:
        self._answer = answer
        self.count = 0

    def __enter__(self) -> "Interrupts":
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, signum: int, frame: object) -> None:
        del frame
        self.count += 1
        self._answer(self.count, signal.Signals(signum).name)
