"""The dispatch mode that both sides run a computation in: it sees each operation, forward and backward."""

from collections.abc import Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from draco.replay.products import PRODUCTS, Places, places


class ProductMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Hands each product that transcripts have to `product`, and lets all other operations run."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # torch otherwise loads its compiler, for seconds, at the first operation, and passes by it at each further one.
        return False

    def __torch_dispatch__(
        self, op: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = places(op, args) if op in PRODUCTS else None
        if found is None:
            return op(*args, **kwargs) if kwargs else op(*args)
        outputs = self.product(op, args, kwargs or {}, found)
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    def product(self, op: Any, args: Sequence[Any], options: dict[str, Any], found: Places) -> Sequence[Any]:
        """Return the outputs of a product, of which `found` are the places."""
        raise NotImplementedError
