"""The checks across the keys of a job, whose single keys are right."""

from collections.abc import Iterator

from draco.job import attack_checks, scheme_checks, task_checks, training_checks
from draco.job.doubts import warnings
from draco.job.fault import Fault
from draco.job.fields import SECTIONS, Job
from draco.job.numbers import WITHOUT_MPI
from draco.job.unions import only_with

__all__ = ["Fault", "check", "warnings"]


def check(job: Job) -> list[Fault]:
    """Return what is wrong with a job whose single fields are right."""
    found = list(_of_options(job))
    told = {fault.path for fault in found}
    others = (
        scheme_checks.of_scheme, scheme_checks.of_each_worker, attack_checks.of_attack, training_checks.of_training,
        training_checks.of_realism, training_checks.of_own_code, task_checks.of_task, task_checks.of_evaluation,
        task_checks.of_loggers, _of_launcher, scheme_checks.of_repeating,
    )  # fmt: skip
    return [*found, *(fault for checked in others for fault in checked(job) if fault.path not in told)]


def _of_options(job: Job) -> Iterator[Fault]:
    """Yield the options that were given though another option has a value with which they do not apply."""
    for key in SECTIONS:
        section = getattr(job, key)
        if section is None:
            continue
        for option, field in type(section).model_fields.items():
            needed = only_with(type(section), option)
            if needed is None or getattr(section, option) == field.default:
                continue
            if getattr(section, needed.option) not in needed.values:
                message = f"applies only with {needed.option}: {' or '.join(needed.values)}: leave it out"
                yield Fault(f"{key}.{option}", message, (f"{key}.{needed.option}", f"{key}.name"))


def _of_launcher(job: Job) -> Iterator[Fault]:
    """Yield a transport that the launcher does not set up."""
    if job.launcher in WITHOUT_MPI and job.transport == "mpi":
        yield Fault("transport", f"{job.launcher} sets up no MPI: must be torch, or leave it out", ("launcher",))
