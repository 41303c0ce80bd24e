"""What a run leaves behind: its checkpoints, and at its end the last one, the end event and the state.

Whatever brought the end about, the state names a step that is really saved. On a full disk the state is written from
the space that is kept for it (`draco/runs/directory.py`).
"""

from pathlib import Path

from draco import files
from draco.errors import TrainingError
from draco.runs import directory as run_directory
from draco.runs.events import EventLog
from draco.training import checkpoint
from draco.training.chain import Kept
from draco.training.state import Training
from draco.training.thinning import thin


def save_checkpoint(training: Training, run: Path, log: EventLog) -> None:
    """Write a checkpoint of the last whole step, and remove those that the job no longer keeps.

    Raises:
        OSError: it could not be written.
    """
    path = checkpoint.save(run / "checkpoints", training.step, training.contents())
    training.chain.saved(training.step, checkpoint.digest_of(path))
    log.write("checkpoint", step=training.step, file=path.name)
    run_directory.write_status(run, "running", training.step)
    thin(run, training.job.checkpoint_keep, training.job.checkpoint_every)


def record_refusal(run: Path, log: EventLog, message: str) -> None:
    """Record that the job cannot be trained at all: its model or its samples cannot be built.

    Raises:
        OSError: the state could not be written.
    """
    step = _newest_step(run)
    try:
        log.write("end", state="failed", step=step, message=message)
        run_directory.write_status(run, "failed", step, message)
    finally:
        log.close()


def record_end(
    training: Training, run: Path, log: EventLog, state: run_directory.State, message: str, *, save: bool = True
) -> None:
    """Leave a checkpoint of the last whole step, the end event and the state, whatever brought the end about.

    Without `save` no checkpoint is left: what the model holds may be half a step.

    On a full disk the state at least is written, from the space kept for it; it names the step that is really saved.

    Raises:
        TrainingError: not even the state could be written.
    """
    step = training.step
    try:
        if save and (step or not checkpoint.is_begun(run / "checkpoints")):
            save_checkpoint(training, run, log)
        else:  # none could be used: a checkpoint of step 0 beside them would pass for their state
            step = _newest_step(run)
        if save:
            training.chain.settle()
        head = {"chain": training.chain.head} if isinstance(training.chain, Kept) else {}
        log.write("end", state=state, step=step, message=message, **vars(training.ledger), **head)
    except (OSError, RuntimeError) as error:  # the disk is full, or a GPU has failed, which then answers nothing more
        state, message = "failed", message or reason(error, run)
        step = _newest_step(run)
    try:
        run_directory.write_status(run, state, step, message)
    except OSError as error:
        raise TrainingError(run_directory.unrecorded(run, error)) from error
    finally:
        training.chain.close()
        log.close()


def _newest_step(run: Path) -> int:
    newest = checkpoint.newest(run / "checkpoints")
    return checkpoint.step_of(newest) if newest else 0


def reason(error: BaseException, run: Path) -> str:
    """Return why a run failed, in one line."""
    return files.disk_fault(error, run) or "; ".join(str(error).splitlines()) or type(error).__name__
