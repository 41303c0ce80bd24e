"""The errors Draco raises on purpose; anything else is a bug and shows its traceback.

DracoError           one line says what, where, and what to do; `exit_code` is what the command line ends with
├── JobError         2  the job spec is wrong: every fault at once, nothing was touched
├── MissingError     3  a tool, a data set or a credential is missing
├── RefusedError     4  it could be done, but only on an explicit word from the user
├── NoCapacityError  5  the cloud has no such machines now, or not at this price
├── NotConfiguredError  6  the cluster is up but a node is not as it must be; `make cluster-up` again is safe
├── LeftoversError   9  something is left over that costs money
└── TrainingError    7  the run failed; what it had done is in its run directory
    ├── DecodeError     what arrived cannot be decoded within the scheme's promise
    └── WorkerError     workers that were needed did not answer, or answered nothing usable
"""

from collections.abc import Sequence


class DracoError(Exception):
    """Base of every error with a message for the user."""

    exit_code = 1


class JobError(DracoError, ValueError):
    """The job spec is wrong. `faults` holds one sentence per fault, each with its path."""

    exit_code = 2

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


class MissingError(DracoError):
    """A tool, a data set or a credential is missing."""

    exit_code = 3


class RefusedError(DracoError):
    """The command would replace, repeat or cost something; the user has to say that it may."""

    exit_code = 4


class NoCapacityError(DracoError):
    """The cloud has no such machines now, or not at this price."""

    exit_code = 5


class NotConfiguredError(DracoError):
    """The cluster is up, but a node is not as it must be."""

    exit_code = 6


class LeftoversError(DracoError):
    """Something is left over that costs money."""

    exit_code = 9


class TrainingError(DracoError):
    """The run failed."""

    exit_code = 7


class DecodeError(TrainingError):
    """What arrived cannot be decoded within the scheme's promise; no gradient is returned."""


class WorkerError(TrainingError):
    """Workers that were needed did not answer in time, or answered nothing usable."""
