"""A fault of a job: the key that it is about, and what is wrong there."""

from typing import NamedTuple

from draco.job.fields import Job
from draco.job.own_section import OwnSection

SIZES = ("workers", "scheme.name", "scheme.adversaries", "scheme.redundancy")  # what a scheme's sizes follow from


class Fault(NamedTuple):
    """One thing that is wrong with a job."""

    path: str
    message: str
    about: tuple[str, ...] = ()  # the other fields that it takes into account


def option_path(job: Job, key: str, option: str) -> str:
    """Return where an option of a section's entry stands; those of a user's own code stand in `options`."""
    section = getattr(job, key)
    own = isinstance(section, OwnSection) and option not in type(section).model_fields
    return f"{key}.options.{option}" if own else f"{key}.{option}"
