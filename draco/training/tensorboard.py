"""The TensorBoard files of a run, a logger: the figures of events.jsonl for those who watch them there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from draco.errors import MissingError


class Board:
    """Writes a run's figures into its folder `tensorboard`; needs the package of that name."""

    def __init__(self, run: Path, step: int) -> None:
        """Begin, or go on after `step`: what was written of later steps is shown no more.

        Raises:
            MissingError: the package is missing.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingError(f"{run}: tensorboard: the package is missing; make setup EXTRAS=tensorboard") from error
        self._writer: Any = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1 if step else None)

    def step(self, event: Mapping[str, Any]) -> None:
        """Write one step's loss, learning rate, suspects, seconds by part and bytes; of protocols also their price."""
        figures = {name: event[name] for name in ("loss", "lr", "bytes_received")}
        figures["suspects"] = len(event["suspects"])
        figures |= {name: event[name] for name in ("copies", "redundancy", "standing") if name in event}
        figures |= {f"seconds/{part}": seconds for part, seconds in event["seconds"].items()}
        for name, value in figures.items():
            self._writer.add_scalar(name, value, event["step"])

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the quality of the model after `step`."""
        for name, value in metrics.items():
            self._writer.add_scalar(f"test/{name}", value, step)

    def close(self) -> None:
        """Flush the files."""
        self._writer.close()
