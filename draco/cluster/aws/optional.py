"""Questions to AWS whose answer helps but is not needed: prices on demand, placement scores, quotas."""

from collections.abc import Callable
from typing import TypeVar

from botocore.exceptions import ClientError

from draco.cluster.aws import account
from draco.errors import DracoError

Answer = TypeVar("Answer")
_NO_ANSWER_AT_ALL = account.EXPIRED | account.UNKNOWN | account.THROTTLED


def ask(what: str, question: Callable[[], Answer]) -> Answer | None:
    """Return AWS's answer, or None where it refuses this one question: not permitted, not in this region, too often.

    Raises:
        DracoError: AWS answers nothing at all: the credentials or the connection are at fault, or it is too busy.
    """
    try:
        with account.speaking(what):
            return question()
    except DracoError as error:
        if (
            isinstance(error.__cause__, ClientError)
            and error.__cause__.response["Error"]["Code"] not in _NO_ANSWER_AT_ALL
        ):
            return None
        raise
