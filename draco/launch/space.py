"""The space that runs will take on the disk: said before they start, and refused where it is not there."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.filesize import decimal

from draco.errors import MissingError
from draco.job import Job
from draco.job.sections import CheckpointKeepSection
from draco.job.space import space
from draco.runs import directory as run_directory


def require(root: Path, jobs: Sequence[tuple[Job, Path | None]]) -> str:
    """Return in a sentence what the runs of the jobs take, each in its directory where it has one already.

    What a job's own task takes is known to its server only, which looks for itself (training/room.py).

    Raises:
        MissingError: there is less on the disk of `root`.
    """
    known = [(need, run) for job, run in jobs if (need := space(_as_begun(job, run))) is not None]
    if not known:
        return f"disk: {decimal(shutil.disk_usage(_existing(root)).free)} is free"
    needs = [need for need, _ in known]
    there = [_taken(run) if run else 0 for _, run in known]
    more = sum(max(need.whole - taken, 0) for need, taken in zip(needs, there, strict=True))
    each = decimal(max((need.each for need in needs), default=0))
    count, events = sum(need.checkpoints for need in needs), decimal(sum(need.events for need in needs))
    checkpoints = f"{count} checkpoint{'s' if count > 1 else ''}"
    held = f", of which {decimal(sum(there))} is there already" if any(there) else ""
    free = shutil.disk_usage(_existing(root)).free
    said = f"disk: up to {checkpoints} of {each} and {events} of events{held}; {decimal(free)} is free"
    if free < more:
        raise MissingError(
            f"{root}: {decimal(more)} is needed, and {decimal(free)} is free ({said}): free some, keep fewer "
            "checkpoints (checkpoint_keep), or keep runs on another disk with --runs DIR"
        )
    return said


def _as_begun(job: Job, run: Path | None) -> Job:
    """Return the job as its run takes it: one that an earlier version began keeps every checkpoint."""
    if run is None or not (run / "job.yaml").exists() or run_directory.job_says(run, "checkpoint_keep"):
        return job
    return job.model_copy(update={"checkpoint_keep": CheckpointKeepSection(name="all")})


def _taken(run: Path) -> int:
    """Return the bytes that a run's checkpoints and events take now."""
    files = [run / "events.jsonl", *(run / "checkpoints").glob("step-*")]
    return sum(path.stat().st_size for path in files if path.is_file())


def _existing(path: Path) -> Path:
    """Return the folder itself, or the nearest above it that is there."""
    path = path.absolute()
    return next((each for each in (path, *path.parents) if each.is_dir()), Path("/"))
