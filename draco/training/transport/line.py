"""The server's end of one worker's connection: it sends as far as the worker takes, and receives what it asked for.

A message is a head of 16 bytes, its tag and its length, and then that many bytes. The server reads the head into memory
of its own, and of the rest no more than was asked for, to where it wants it. So a worker can write whatever it likes: a
head that names another message, or too long a one, ends its connection. Nothing is ever received that was not asked
for, as TCP lets the sender wait.
"""

import socket
import struct
from collections import deque

from draco.training.transport.contract import ENDED, TOO_LONG, UNASKED

HEAD = struct.Struct("<QQ")
GREETING, TASK, MODEL, REPLY, JOB, MOMENTA, ENCLOSED = 1, 2, 3, 4, 5, 6, 7
_SCRAP = memoryview(bytearray(1 << 16))  # where late answers are read to


class Line:
    """One worker as the server sees it."""

    def __init__(self, rank: int, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.rank, self.connection = rank, connection
        self.owes = 0  # tag of the message that it is to send next; 0: none
        self.gone = ""
        self.expelled = ""  # why
        self._asked = False  # it was given a task, which it may not have taken
        self._unsent: deque[memoryview] = deque()
        self._head = bytearray()  # of the message that is coming
        self._left = -1  # bytes of it yet to come; -1: its head is not whole

    @property
    def open(self) -> bool:
        """Whether anything may come of it or go to it."""
        return not (self.gone or self.expelled)

    @property
    def sending(self) -> bool:
        """Whether it has not taken all that it was given."""
        return self.open and bool(self._unsent)

    @property
    def ready(self) -> bool:
        """Whether it can take a task."""
        return self.open and not self.owes and not (self._asked and self._unsent)

    def give(self, tag: int, content: memoryview, owes: int = 0) -> None:
        """Have a message sent, after those before it; `owes`: what it is to be answered by. The content must stay."""
        if self.open:
            self._asked = tag == TASK or (self._asked and tag in (MODEL, ENCLOSED))
            self._unsent.append(memoryview(HEAD.pack(tag, content.nbytes)))
            if content.nbytes:
                self._unsent.append(content.cast("B"))
            self.owes = owes or self.owes
            self.send()

    def send(self) -> None:
        """Send as much as the worker takes now."""
        try:
            while self._unsent:
                sent = self.connection.send(self._unsent[0])
                if sent == self._unsent[0].nbytes:
                    self._unsent.popleft()
                else:
                    self._unsent[0] = self._unsent[0][sent:]
        except BlockingIOError:
            return
        except OSError:
            self._end(gone=ENDED)

    def receive(self, into: memoryview | None, largest: int) -> int | str | None:
        """Take what has come of the message that it owes; return its length, or why it is refused; None: neither yet.

        Args:
            into: where it goes; None: it is late, and thrown away.
            largest: bytes that it may have.
        """
        try:
            while self._left < 0:
                more = self.connection.recv(HEAD.size - len(self._head))
                if not more:
                    return self._end(gone=ENDED)
                self._head += more
                if not self.owes:
                    return self._end(expelled=UNASKED)
                if len(self._head) == HEAD.size:
                    tag, self._left = HEAD.unpack(self._head)
                    if tag != self.owes or self._left > largest:
                        return self._end(expelled=UNASKED if tag != self.owes else TOO_LONG)
            size = HEAD.unpack(self._head)[1]
            while self._left:
                place = _SCRAP[: self._left] if into is None else into[size - self._left : size]
                count = self.connection.recv_into(place)
                if not count:
                    return self._end(gone=ENDED)
                self._left -= count
        except BlockingIOError:
            return None
        except OSError:
            return self._end(gone=ENDED)
        self.owes, self._left = 0, -1
        self._head.clear()
        return int(size)

    def _end(self, *, gone: str = "", expelled: str = "") -> str | None:
        """Close the connection; return why what has come is refused, if it is."""
        self.gone, self.expelled = gone, expelled
        self.connection.close()
        self._unsent.clear()
        return expelled or None
