"""A transport that plays what it is told, for tests of what a server makes of it."""

from collections.abc import Generator, Iterable, Sequence

from torch import Tensor

from draco.training import wire
from draco.training.transport import Arrival, Task

D = 24  # elements of a reply


class Scripted:
    """A transport that plays events: (seconds, worker) and (seconds, worker, reason); the others say nothing."""

    concurrent = True

    def __init__(self, replies: Tensor, events: Iterable[tuple[float, int] | tuple[float, int, str]]) -> None:
        self.workers, self.replies, self.events, self.now = len(replies), replies, list(events), 0.0
        self.ended: dict[int, str] = {}
        self.left = False

    def exchange(self, tasks: Sequence[Task], model: Tensor, frames: Tensor) -> Generator[Arrival | None]:
        waiting = {*range(1, self.workers + 1)} - {*self.ended}
        try:
            while waiting:
                self.now += 0.25
                for _, worker, *why in [event for event in self.events if event[0] <= self.now]:
                    if worker in waiting:
                        waiting.remove(worker)
                        step, row = tasks[worker - 1][:2]
                        yield worker, why[0] if why else self._write(step, self.replies[row], frames[row])
                yield None
        finally:
            self.left = bool(waiting)

    def _write(self, step: int, reply: Tensor, frame: Tensor) -> int:
        return wire.pack(reply, wire.Wire(D, "float32", "none"), step, wire.Timing(0.0, 0.0), frame)

    def greetings(self, timeout_s: float) -> list[bytes]:
        return [b""] * self.workers

    def gone(self) -> dict[int, str]:
        return self.ended

    def held(self) -> dict[int, int]:
        return {}

    def stop(self) -> None:
        pass
