"""The simulated transport: workers are plain calls inside the server's process."""

from collections.abc import Callable, Generator, Sequence

from torch import Tensor

from draco.training.transport.contract import Arrival, Task


class Simulated:
    """n workers inside this process, called one after the other."""

    concurrent = False

    def __init__(
        self,
        workers: Sequence[Callable[[Task, Tensor, Tensor], int | None]],
        greetings: Sequence[bytes],
        momenta: Sequence[Tensor] = (),
    ) -> None:
        """Take one `(task, model, frame) -> length` per worker, and the momenta (rows, p) that each keeps.

        No length: it sends nothing.
        """
        self.workers = len(workers)
        self._momenta = momenta
        self._workers = workers
        self._greetings = list(greetings)

    def greetings(self, timeout_s: float) -> list[bytes]:
        """See ServerTransport."""
        del timeout_s
        return self._greetings

    def hand_momenta(self, momenta: Sequence[Tensor]) -> None:
        """See ServerTransport."""
        for own, given in zip(self._momenta, momenta, strict=True):
            own.copy_(given)

    def exchange(self, tasks: Sequence[Task | None], model: Tensor, frames: Tensor) -> Generator[Arrival]:
        """See ServerTransport; nothing is waited for."""
        for worker, (reply, task) in enumerate(zip(self._workers, tasks, strict=True), start=1):
            length = None if task is None else reply(task, model, frames[task.row])
            if length is not None:
                assert task is not None
                yield worker, length

    def ready(self) -> set[int]:
        """See ServerTransport."""
        return {*range(1, self.workers + 1)}

    def gone(self) -> dict[int, str]:
        """See ServerTransport."""
        return {}

    def held(self) -> dict[int, int]:
        """See ServerTransport."""
        return {}

    def stop(self) -> None:
        """See ServerTransport."""
