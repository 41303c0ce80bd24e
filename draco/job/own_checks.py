"""The checks of what a job names by path: that it can be loaded, and takes the options that it is given.

Here, and nowhere before, a user's own code is imported. A job without paths comes through untouched.
"""

from __future__ import annotations

from collections.abc import Iterator

from draco.errors import OwnCodeError
from draco.job.fault import Fault
from draco.job.fields import SECTIONS, STAND_INS, Job
from draco.job.messages import legal_values, show
from draco.job.own_section import OwnSection, option_faults
from draco.job.unions import Section


def check_own(job: Job) -> tuple[Job, list[Fault], set[str]]:
    """Return a job of what can be used, the faults of what cannot, and the paths that a stand-in was put in for."""
    faults: list[Fault] = []
    instead: dict[str, object] = {}
    for key, part in SECTIONS.items():
        if found := list(_faults(getattr(job, key))):
            faults += [Fault(f"{key}.{below}", message) for below, message in found]
            name = part.default or STAND_INS[key]["name"]
            instead[key] = part.kinds[name].model_validate({"name": name})
    wrong = {*instead}
    found_in_pre = [(step, list(_faults(step))) for step in job.aggregator.pre]
    for step, found in found_in_pre:
        faults += [Fault("aggregator.pre", f"{step.name}: {below}: {message}") for below, message in found]
    right = tuple(step for step, found in found_in_pre if not found)
    if len(right) < len(found_in_pre):
        wrong.add("aggregator.pre")
        instead.setdefault("aggregator", job.aggregator.model_copy(update={"pre": right}))
    return job.model_copy(update=instead) if instead else job, faults, wrong


def _faults(section: Section) -> Iterator[tuple[str, str]]:
    """Yield (key in the section, what is wrong) of a user's own code; nothing of ours."""
    if not isinstance(section, OwnSection):
        return
    try:
        found = list(option_faults(section))
    except OwnCodeError as error:
        yield "name", str(error)
        return
    for option, schema, message in found:
        legal = "" if schema is None else f" {legal_values('', schema)}"
        got = f", got {show(section.options[option])}" if legal and option in section.options else ""
        yield f"options.{option}", f"{message}{legal}{got}"
