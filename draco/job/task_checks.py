"""Does what is trained go together with its data, and with when and by what it is evaluated?"""

from collections.abc import Iterator

from draco.data.datasets import DATASETS
from draco.job.fault import Fault
from draco.job.fields import Job
from draco.job.messages import show
from draco.job.sections import BUILT_IN_LOGGERS, DataSection
from draco.metrics import MODES
from draco.models import MODELS, model_fault


def of_task(job: Job) -> Iterator[Fault]:
    """Yield what is given besides a task, or is missing without one."""
    if job.task is None:
        if job.model is None:
            yield Fault("model", f"is missing; must be one of {', '.join(MODELS)}, or give a task", ("task",))
        if job.data.name is None:
            path = "data" if job.data == DataSection() else "data.name"
            yield Fault(
                path, f"is missing; must be one of {', '.join(DATASETS)}, or give a task", ("task", "data.name")
            )
        else:
            yield from _of_data(job, job.data.name)
        return
    given: dict[str, object] = {"model": job.model, "data.name": job.data.name, "data.source": job.data.source}
    given |= {"data.augment": job.data.augment, "data.own": job.data.own or None}
    for path in (path for path, value in given.items() if value is not None):
        yield Fault(path, f"must be left out beside task, which has its own ({job.task.name})", ("task",))


def _of_data(job: Job, name: str) -> Iterator[Fault]:
    """Yield what does not go together in data, model and batch."""
    info = DATASETS[name]
    if job.data.augment and not info.augment:
        yield Fault("data.augment", f"{name} has no augmentation: must be false or left out", ("data.name",))
    if job.data.source is not None and not info.originals:
        yield Fault("data.source", f"{name} has no original files to take: leave it out", ("data.name",))
    if job.data.own and job.data.source is None:
        yield Fault("data.own", "needs data.source, the folder of your files; or leave it out", ("data.source",))
    fault = None if job.model is None else model_fault(job.model, info.shape)
    if fault is not None:
        yield Fault("model", f"{fault} ({name})", ("data.name",))
    if job.batch_size > info.train:
        message = f"must be at most the {info.train} training samples of {name}, got {job.batch_size}"
        yield Fault("batch_size", message, ("data.name",))


def of_evaluation(job: Job) -> Iterator[Fault]:
    """Yield what does not go together in the metrics that the job names, and in when it evaluates."""
    if job.stop_early and not job.eval_every:
        message = f"counts evaluations while training: needs eval_every of 1 or more, got {show(job.eval_every)}"
        yield Fault("stop_early", message, ("eval_every",))
    named = {"checkpoint_keep": (job.checkpoint_keep.metric, job.checkpoint_keep.mode)}
    if job.stop_early:
        named["stop_early"] = job.stop_early.metric, job.stop_early.mode
    for key, (metric, mode) in named.items():
        if metric is None and mode is not None:
            yield Fault(f"{key}.mode", "says what is best of a metric: give metric too, or leave it out")
        elif metric is not None and metric not in MODES:
            if job.task is None:
                message = f"must be one of {', '.join(MODES)} without a task of your own, got {show(metric)}"
                yield Fault(f"{key}.metric", message, ("task",))
            elif mode is None:
                message = f"is missing; must be min or max: whether less or more of {metric} is better"
                yield Fault(f"{key}.mode", message, (f"{key}.metric",))


def of_loggers(job: Job) -> Iterator[Fault]:
    """Yield loggers that are named twice, or are given options that they do not have."""
    for logger in dict.fromkeys(job.loggers):
        if logger.options and logger.name in BUILT_IN_LOGGERS:
            yield Fault("loggers", f"{logger.name} has no options: leave them out")
        if job.loggers.count(logger) > 1:
            yield Fault("loggers", f"{logger.name} is there twice: give it once")
