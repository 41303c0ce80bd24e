"""Errors that Draco raises on purpose, and the exit codes of its commands. Any other error is a bug.

DracoError              one line says what, where, and what to do
├── JobError            the job is wrong: every fault at once, nothing was touched
├── OwnCodeError        a job's own code is missing, does not import, or breaks its contract
├── MissingError        a tool, a data set or a credential is missing
├── RefusedError        it could be done, but only on an explicit word from the user
├── NoCapacityError     the cloud has no such machines now, or not at this price
├── NotConfiguredError  the cluster is up but a node is not as it must be; `make cluster-up` again is safe
├── LeftoversError      something is left over that costs money
├── VerifyError         a run that was verified is not what honest workers give, or its record was changed
└── TrainingError       the run failed; what it had done is in its run directory
    ├── DecodeError     what arrived cannot be decoded within the scheme's promise
    ├── WorkerError     workers that were needed did not answer, or answered nothing usable
    ├── LostRankError   a rank of `draco.torch` did not come to a collective: it hangs, or has died
    └── UnrepairedError replicas of `draco.torch` differ, and nothing tells which is right
"""

from collections.abc import Sequence
from enum import IntEnum


class ExitCode(IntEnum):
    """What a command ends with: the only table of exit codes. `draco --help` prints it."""

    meaning: str

    def __new__(cls, code: int, meaning: str) -> "ExitCode":
        """Make a member of a code and what it means."""
        member = int.__new__(cls, code)
        member._value_, member.meaning = code, meaning
        return member

    DONE = 0, "done"
    BUG = 1, "a bug, or a fault of this machine"
    USAGE = 2, "wrong usage, or a wrong job"
    MISSING = 3, "something is missing: a tool, a data set, a credential"
    REFUSED = 4, "refused without an explicit word from the user"
    NO_CAPACITY = 5, "the cloud has no such machines now, or not at this price"
    NOT_CONFIGURED = 6, "a node of the cluster is not as it must be"
    FAILED = 7, "the run failed"
    LOST = 8, "nodes or processes were lost; the run can be resumed"
    LEFTOVERS = 9, "something is left over that costs money"
    WRONG = 10, "a run that was verified is not what honest workers give, or its record was changed"
    INTERRUPTED = 130, "interrupted; a run can be resumed"
    UNREAD = 141, "who read the output has stopped reading, such as head -1"


class DracoError(Exception):
    """Base of every error with a message for the user."""

    exit_code: ExitCode = ExitCode.BUG


class JobError(DracoError, ValueError):
    """The job is wrong. `faults` holds one sentence per fault, each with its path."""

    exit_code = ExitCode.USAGE

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


class OwnCodeError(DracoError, ValueError):
    """A job's own code is missing, does not import, or breaks its contract; says the file and the line."""

    exit_code = ExitCode.USAGE


class MissingError(DracoError):
    """A tool, a data set or a credential is missing."""

    exit_code = ExitCode.MISSING


class RefusedError(DracoError):
    """The command would replace, repeat or cost something; the user has to say that it may."""

    exit_code = ExitCode.REFUSED


class NoCapacityError(DracoError):
    """The cloud has no such machines now, or not at this price."""

    exit_code = ExitCode.NO_CAPACITY


class NotConfiguredError(DracoError):
    """The cluster is up, but a node is not as it must be."""

    exit_code = ExitCode.NOT_CONFIGURED


class LeftoversError(DracoError):
    """Something is left over that costs money."""

    exit_code = ExitCode.LEFTOVERS


class VerifyError(DracoError):
    """A run that was verified is not what honest workers give, or its record was changed."""

    exit_code = ExitCode.WRONG


class TrainingError(DracoError):
    """The run failed."""

    exit_code = ExitCode.FAILED


class DecodeError(TrainingError):
    """What arrived cannot be decoded within the scheme's promise; no gradient is returned."""


class WorkerError(TrainingError):
    """Workers that were needed did not answer in time, or answered nothing usable."""


class LostRankError(TrainingError):
    """A rank did not come to a collective in time, or has died; `ranks` are those, if it can be told."""

    def __init__(self, message: str, ranks: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.ranks = tuple(ranks)


class UnrepairedError(TrainingError):
    """Replicas differ, and nothing tells which of them is right; every rank raises it at the same step."""
