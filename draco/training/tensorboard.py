"""The TensorBoard files of a run, an option: the figures of events.jsonl for those who watch them there."""

from pathlib import Path
from typing import Any

from draco.training.evaluate import Evaluation


class Board:
    """Writes a run's figures into its folder `tensorboard`; needs the package of that name."""

    def __init__(self, run: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(run / "tensorboard"))

    def step(self, event: dict[str, Any]) -> None:
        """Write one step's loss, learning rate, suspects, seconds by part and bytes."""
        figures = {name: event[name] for name in ("loss", "lr", "bytes_received")}
        figures["suspects"] = len(event["suspects"])
        figures |= {f"seconds/{part}": seconds for part, seconds in event["seconds"].items()}
        for name, value in figures.items():
            self._writer.add_scalar(name, value, event["step"])

    def evaluation(self, step: int, result: Evaluation) -> None:
        """Write the quality of the model after `step`."""
        for name in ("top1", "top5", "loss"):
            self._writer.add_scalar(f"test/{name}", getattr(result, name), step)

    def close(self) -> None:
        """Flush the files."""
        self._writer.close()
