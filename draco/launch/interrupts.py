"""The user's wish to end a command: Ctrl-C (SIGINT) and SIGTERM, and what they do to which command.

train                a first one asks the run to stop after its step, with a checkpoint; a second one kills it (run.py).
                     On a cluster both are passed on to the run's head (cluster/remote.py). Exit code 130, resumable.
draco.run            the same in a script or a notebook, and then a KeyboardInterrupt that names the run
                     (experiment/start.py, experiment/here.py; server.py leaves no checkpoint of half a step)
compare              the same, for every cell that is running (compare/run.py)
cluster up, on AWS   Terraform is left to stop by itself and to save its state (cluster/aws/terraform.py); then 130
cluster interrupt    ends the command; a notice that was given stands, and that is said (cluster/interrupt.py); 130
join                 of rank 0 as of train; the others leave it to the server (cli/join.py, training/process.py)
any other            Python's KeyboardInterrupt ends it with 130 (cli/main.py): it only watched or waited

A rank takes the signal for the run's and puts the file `stop` there (training/process.py). Where it was forked, it is
told by what mpirun started in its place (fork_client.py).
"""

import signal
import threading
from collections.abc import Callable


class Interrupts:
    """Counts the user's wishes to end while it is entered, and calls `answer` with the count and the signal's name.

    Python gives signals to its main thread alone: in another thread nothing is counted.
    """

    def __init__(self, answer: Callable[[int, str], None] = lambda count, name: None) -> None:
        self._answer = answer
        self.count = 0

    def __enter__(self) -> "Interrupts":
        handled = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        self._previous = {number: signal.signal(number, self._handle) for number in handled}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, signum: int, frame: object) -> None:
        del frame
        self.count += 1
        self._answer(self.count, signal.Signals(signum).name)
