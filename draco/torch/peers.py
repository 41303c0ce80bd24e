"""The other ranks: who sums with whom, small rows that all exchange, and tensors that one rank sends to another.

Gradients are summed by the user's own backend, a column at a time. All else goes over gloo, from the processors'
memory: it is small or rare, and a rank that does not come is an error there, and not the end of the process.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from draco.errors import LostRankError
from draco.torch.layout import Layout
from draco.torch.measuring import as_bytes

PATIENCE_S = 10.0  # how long a rank that saw a collective fail waits for the others to say that they did, too
POLL_S = 0.05


class Peers:
    """All ranks of the default process group. To make it is a collective call.

    Args:
        layout: groups and columns.
        timeout_s: how long a rank is waited for.
        whole: whether gradients are summed over all ranks, and not over a column.
    """

    _made = 0  # how many there were in this process; all ranks make them in the same order

    def __init__(self, layout: Layout, timeout_s: float, whole: bool) -> None:
        self.rank, self.layout, self.timeout_s = dist.get_rank(), layout, timeout_s
        wait = timedelta(seconds=timeout_s)
        self.control = dist.new_group(backend="gloo", timeout=wait)
        # Of a sum that does not end, the watchdog of nccl ends the process. By then the rows below have told why.
        ranks = [list(range(layout.world))] if whole else layout.columns
        groups = [
            dist.new_group(members, timeout=wait if dist.get_backend() == "gloo" else 2 * wait) for members in ranks
        ]
        self.summing = groups[0 if whole else layout.member_of(self.rank)]
        self.summed = len(ranks[0])
        Peers._made += 1
        self._store = dist.distributed_c10d.PrefixStore(
            f"draco.torch.Guard {Peers._made}", dist.distributed_c10d._get_default_store()
        )
        self.step, self._mark = 0, 0
        self.hosts: list[str] = []
        self._arrive()
        self.hosts = self.texts(socket.gethostname())

    def at(self, step: int, summing: bool) -> None:
        """Tell the others that this rank has come to a step's forward pass, or to its sums; nobody waits."""
        self.step, self._mark = step, 2 * step + summing
        with self.lost():
            self._arrive()

    def meet(self) -> None:
        """Wait until all ranks are here."""
        self.rows([self._mark])

    def rows(self, row: Sequence[int]) -> list[list[int]]:
        """Return every rank's row of int64 numbers, in order of ranks. All rows have the same length.

        Raises:
            LostRankError: a rank did not come.
        """
        mine = torch.tensor(row, dtype=torch.int64)
        found = [torch.empty_like(mine) for _ in range(self.layout.world)]
        with self.lost():
            dist.all_gather(found, mine, group=self.control)
        return [one.tolist() for one in found]

    def texts(self, text: str) -> list[str]:
        """Return every rank's text, in order of ranks."""
        data = text.encode()
        length = max(row[0] for row in self.rows([len(data)]))
        mine = torch.zeros(length + 1, dtype=torch.uint8)
        mine[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else 0
        found = [torch.empty_like(mine) for _ in range(self.layout.world)]
        with self.lost():
            dist.all_gather(found, mine, group=self.control)
        return [bytes(one.tolist()).rstrip(b"\0").decode() for one in found]

    def send(self, tensors: Sequence[Tensor], ranks: Sequence[int]) -> None:
        """Send tensors' bits to other ranks, who call `receive`."""
        with self.lost():
            for tensor in (tensor for tensor in tensors if tensor.numel()):
                data = as_bytes(tensor).cpu()
                for rank in ranks:
                    dist.send(data, rank, group=self.control)

    def receive(self, tensors: Sequence[Tensor], source: int) -> None:
        """Fill tensors with the bits that a rank sends, of the same shapes and dtypes in the same order."""
        with self.lost(), torch.no_grad():
            for tensor in (tensor for tensor in tensors if tensor.numel()):
                data = torch.empty(tensor.numel() * tensor.element_size(), dtype=torch.uint8)
                dist.recv(data, source, group=self.control)
                tensor.copy_(data.view(tensor.dtype).view(tensor.shape))

    def move(self, tensors: Sequence[Tensor], source: int, ranks: Sequence[int]) -> None:
        """Give `ranks` the bits of the tensors of `source`: all ranks call this, and those concerned do something."""
        if self.rank == source:
            self.send(tensors, ranks)
        elif self.rank in ranks:
            self.receive(tensors, source)

    def send_plain(self, value: Any, rank: int) -> None:
        """Send plain values to a rank, as JSON."""
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        self.send([torch.tensor(len(data)), data], [rank])

    def receive_plain(self, source: int) -> Any:
        """Return the plain values that a rank sends."""
        length = torch.tensor(0)
        self.receive([length], source)
        data = torch.empty(int(length), dtype=torch.uint8)
        self.receive([data], source)
        return json.loads(bytes(data.tolist()))

    @contextmanager
    def lost(self) -> Iterator[None]:
        """Make a LostRankError of a collective that fails."""
        try:
            yield
        except RuntimeError as error:
            raise self.lost_error(error) from error

    def lost_error(self, error: BaseException) -> LostRankError:
        """Return what to raise of a collective that failed, with the ranks that did not come to the step, if known."""
        absent = self._absent()
        if absent:
            where = ", ".join(f"{rank} ({self.hosts[rank]})" if self.hosts else str(rank) for rank in absent)
            who = f"rank {where} did not come" if len(absent) == 1 else f"ranks {where} did not come"
        else:
            who = "it cannot be told which rank is missing"
        first = str(error).partition("\n")[0][:200]
        return LostRankError(
            f"step {self.step}: a collective of the guard failed within {self.timeout_s:g} s: {who}; "
            f"look at that process, and start again from the last checkpoint ({first})",
            absent,
        )

    def _arrive(self) -> None:
        """Write into the store where this rank is."""
        self._store.set(f"mark {self.rank}", str(self._mark))

    def _mark_of(self, rank: int) -> int:
        """Return where a rank was last; -1 before its guard was made."""
        key = f"mark {rank}"
        return int(self._store.get(key)) if self._store.check([key]) else -1

    def _absent(self) -> list[int]:
        """Return the ranks that have not come to where this rank is, after some patience; none if the store is lost."""
        end = time.monotonic() + min(PATIENCE_S, self.timeout_s)
        try:
            self._arrive()
            others: Mapping[int, int] = {}
            while time.monotonic() < end:
                others = {rank: self._mark_of(rank) for rank in range(self.layout.world) if rank != self.rank}
                if all(mark >= self._mark for mark in others.values()):
                    break
                time.sleep(POLL_S)
            return [rank for rank, mark in others.items() if mark < self._mark]
        except RuntimeError:
            return []
