"""The evaluations of a training itself: when one is due, what is recorded of it, and whether it ends the training."""

import math
from pathlib import Path

from draco.errors import OwnCodeError
from draco.metrics import LARGEST
from draco.runs.events import EventLog
from draco.training import evaluate, room, stop_early
from draco.training.build import Built
from draco.training.loggers import Loggers
from draco.training.state import Training


class Appraisal:
    """Evaluates the server's model at the steps that the job says."""

    def __init__(self, built: Built, training: Training, run: Path, log: EventLog, loggers: Loggers) -> None:
        self._built, self._training, self._run, self._log, self._loggers = built, training, run, log, loggers
        self._evaluated = evaluate.of_training(run, training.step)

    def due(self) -> bool:
        """Say whether the model is to be evaluated after the last step that was taken."""
        step, every = self._training.step, self._built.job.eval_every
        if not step or every == 0:
            return False
        return step == self._training.steps or bool(every and step % every == 0)

    def look(self) -> str:
        """Evaluate the model where that is due and not on record; return why the training ends before its last step.

        It is not on record where a run was killed between its checkpoint and the evaluation.

        Raises:
            OwnCodeError: the task has no such metric as the job names.
        """
        if not self.due():
            return ""
        job, step = self._built.job, self._training.step
        if step not in self._evaluated:
            self._evaluate(step)
        if job.stop_early is None or step == self._training.steps:
            return ""
        end = stop_early.verdict(job.stop_early, self._evaluated)
        if end is None:
            return ""
        best = end.best if math.fabs(end.best) <= LARGEST else None  # as no record holds what is no number
        self._log.write("stop_early", step=step, metric=job.stop_early.metric, best=best, best_step=end.best_step)
        return stop_early.sentence(job.stop_early, end, self._training.steps)

    def _evaluate(self, step: int) -> None:
        built, job = self._built, self._built.job
        with room.evaluating(self._training), self._training.evaluated() as model:
            result = evaluate.evaluate_model(
                built.task, model, built.test, job.eval_batch_size, self._training.device, self._log.beat
            )
        if why := stop_early.missing(job, result.metrics):
            raise OwnCodeError(why)
        evaluate.append(self._run, step, result, evaluate.TRAINING)
        self._evaluated[step] = result.metrics
        self._loggers.evaluation(step, result.metrics)
