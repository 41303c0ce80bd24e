"""The room on the disk for the checkpoints of a job's own task, whose size its server is the first to know."""

import shutil
from pathlib import Path

from rich.filesize import decimal

from draco.errors import MissingError
from draco.job.space import space_of
from draco.models import Size
from draco.training.state import Training


def require(run: Path, training: Training) -> None:
    """Refuse to begin a run that will not fit on its disk.

    Raises:
        MissingError: says what is needed and what is free.
    """
    need = space_of(training.job, training.steps, Size(training.flat.numel(), training.statistics.numel()))
    there = sum(path.stat().st_size for path in (run / "checkpoints").glob("step-*") if path.is_file())
    more, free = max(need.whole - there, 0), shutil.disk_usage(run).free
    said = f"{need.checkpoints} checkpoints of {decimal(need.each)} and {decimal(need.events)} of events"
    if free < more:
        raise MissingError(
            f"{run}: {decimal(more)} is needed, and {decimal(free)} is free ({said}): free "
            "some, keep fewer checkpoints (checkpoint_keep), or keep runs on another disk with --runs DIR"
        )
