"""The transport without MPI: real connections inside this process, and workers that write to them what they like."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta

import pytest
import torch

from draco.errors import MissingError, WorkerError
from draco.training.transport import TOO_LONG, UNASKED, ServerGone, Task, meeting, new_frames
from draco.training.transport.line import GREETING, HEAD, REPLY
from draco.training.transport.torch_server import TorchServer
from draco.training.transport.torch_worker import TorchWorker

FRAME = 256
P = 1_500_000  # parameters: more than a connection holds that nobody reads
LIMIT_S = 20


class Cluster:
    """A server, and the workers' ends of its connections."""

    def __init__(self, workers: int) -> None:
        pairs = [socket.socketpair() for _ in range(workers)]
        self.mine, self.ends = ([pair[side] for pair in pairs] for side in (0, 1))
        self.server = TorchServer(self.mine)
        self.threads: list[threading.Thread] = []
        self.frames = new_frames(workers, FRAME)
        self.model = torch.zeros(8)

    def exchange(self, step: int, until: Callable[[dict[int, int | str]], bool] = lambda found: False):
        """Return what came of a step: of all, or until it suffices."""
        found: dict[int, int | str] = {}
        deadline = time.monotonic() + LIMIT_S
        arrivals = self.server.exchange([Task(step, row) for row in range(len(self.ends))], self.model, self.frames)
        for arrival in arrivals:
            assert time.monotonic() < deadline, found
            if arrival:
                found[arrival[0]] = arrival[1]
            elif until(found):
                break
        arrivals.close()
        return found

    def answering(self, rank: int) -> None:
        """Have an honest worker that answers each task with a frame full of 10 * step + row."""

        def work() -> None:
            side, model = TorchWorker(self.ends[rank - 1]), torch.empty(self.model.numel())
            with contextlib.suppress(ServerGone):
                for task in side.tasks(model):
                    assert torch.equal(model, self.model)
                    side.reply(torch.full((FRAME,), 10 * task.step + task.row, dtype=torch.uint8), FRAME)

        self.threads.append(threading.Thread(target=work))
        self.threads[-1].start()

    def writing(self, rank: int, content: bytes, *, ends: bool = False) -> None:
        """Have a worker take one task and write something, and end if it is to."""

        def work() -> None:
            next(TorchWorker(self.ends[rank - 1]).tasks(torch.empty(self.model.numel())))
            self.ends[rank - 1].sendall(content)
            if ends:
                self.ends[rank - 1].close()

        self.threads.append(threading.Thread(target=work))
        self.threads[-1].start()

    def end(self) -> None:
        """End all."""
        for mine in self.mine:
            mine.close()
        for thread in self.threads:
            thread.join()
        for theirs in self.ends:
            theirs.close()


@pytest.fixture
def cluster() -> Iterator[Callable[[int], Cluster]]:
    made: list[Cluster] = []

    def make(workers: int) -> Cluster:
        made.append(Cluster(workers))
        return made[-1]

    yield make
    for each in made:
        each.end()


def message(content: bytes, tag: int = REPLY, length: int | None = None) -> bytes:
    return HEAD.pack(tag, len(content) if length is None else length) + content


def test_a_run_from_the_job_to_the_stop(cluster) -> None:
    here = cluster(3)
    here.model = torch.arange(P, dtype=torch.float32)
    seen: dict[int, list[object]] = {1: [], 2: [], 3: []}

    def work(rank: int) -> None:
        side, model, momenta = TorchWorker(here.ends[rank - 1]), torch.empty(P), torch.empty(2, 4)
        seen[rank].append(side.job())
        side.greet(f"I am {rank}".encode())
        side.take_momenta(momenta)
        seen[rank].append(float(momenta.sum()))
        for task in side.tasks(model):
            seen[rank].append((task, torch.equal(model, here.model)))
            side.reply(torch.full((FRAME,), 10 * task.step + task.row, dtype=torch.uint8), FRAME - rank)
        seen[rank].append("stop")

    here.threads = [threading.Thread(target=work, args=(rank,)) for rank in seen]
    for thread in here.threads:
        thread.start()
    here.server.announce("name: a\n")
    assert here.server.greetings(LIMIT_S) == [b"I am 1", b"I am 2", b"I am 3"]
    here.server.hand_momenta([torch.full((2, 4), float(rank)) for rank in seen])
    tasks = {1: Task(1, 2), 2: Task(1, 0, (5, 6), (7, 8, 9, 10)), 3: Task(1, 1)}
    came = [each for each in here.server.exchange(list(tasks.values()), here.model, here.frames) if each]
    assert dict(came) == {rank: FRAME - rank for rank in seen}
    for rank, task in tasks.items():
        assert here.frames[task.row].tolist() == [10 + task.row] * (FRAME - rank) + [0] * rank
    only = [None, Task(2, 1, loads=False), None]
    assert [each for each in here.server.exchange(only, torch.zeros(P), here.frames) if each] == [(2, FRAME - 2)]
    here.server.stop()
    for thread in here.threads:
        thread.join(LIMIT_S)
    second = [(only[1], True)]  # the model that it has is the old one
    assert seen == {
        rank: ["name: a\n", 8.0 * rank, (task, True), *(second if rank == 2 else []), "stop"]
        for rank, task in tasks.items()
    }


WRONG = {
    "another tag": (message(b"x", tag=GREETING), UNASKED),
    "no tag at all": (bytes(range(16)), UNASKED),
    "a byte too many": (message(b"x" * (FRAME + 1)), TOO_LONG),
    "the longest that can be said": (message(b"x", length=2**64 - 1), TOO_LONG),
}


@pytest.mark.parametrize("written", WRONG)
def test_one_that_writes_what_nobody_asked_for_is_refused_from_then_on_and_harms_no_row(cluster, written: str) -> None:
    here = cluster(2)
    here.answering(2)
    raw, why = WRONG[written]
    here.writing(1, raw)
    assert here.exchange(1) == {1: why, 2: FRAME}
    assert here.frames.tolist() == [[0] * FRAME, [11] * FRAME]
    assert here.exchange(2) == {1: why, 2: FRAME}
    assert (here.server.ready(), here.server.gone()) == ({2}, {})
    assert here.mine[0].fileno() < 0


def test_one_that_writes_before_it_is_asked_or_once_more_is_refused(cluster) -> None:
    here = cluster(3)
    here.answering(3)
    here.ends[0].sendall(b"!")
    here.writing(2, 2 * message(b"x" * FRAME))
    assert here.exchange(1) == {1: UNASKED, 2: FRAME, 3: FRAME}
    assert here.exchange(2) == {1: UNASKED, 2: UNASKED, 3: FRAME}
    assert here.frames[1].tolist() == [ord("x")] * FRAME


def test_a_reply_that_is_late_goes_into_no_row_and_its_worker_takes_part_again(cluster) -> None:
    here = cluster(2)
    here.answering(2)
    whole = message(b"x" * FRAME)
    here.writing(1, whole[:100])
    assert here.exchange(1, until=lambda found: 2 in found and bool(here.frames[0].any())) == {2: FRAME}
    assert (here.server.ready(), here.server.held()) == ({2}, {})
    here.frames[0] = 7
    assert here.exchange(2) == {2: FRAME}  # it is not waited for
    here.ends[0].sendall(whole[100:])
    assert here.server.ready() == {1, 2}
    assert here.frames[0].tolist() == [7] * FRAME
    here.writing(1, message(b"y" * FRAME))
    assert here.exchange(3) == {1: FRAME, 2: FRAME}
    assert here.frames[0].tolist() == [ord("y")] * FRAME


def test_a_worker_that_comes_up_late_takes_part_though_its_greeting_is_longer_than_a_reply(cluster) -> None:
    here = cluster(1)
    here.server.announce("a job")
    assert here.server.greetings(0.0) == [b""]
    side = TorchWorker(here.ends[0])
    assert side.job() == "a job"
    assert here.exchange(1) == {}
    side.greet(bytes(FRAME + 1))
    assert here.server.ready() == {1}
    here.answering(1)
    assert here.exchange(2) == {1: FRAME}


def test_one_that_ends_in_the_midst_of_its_reply_is_gone(cluster) -> None:
    here = cluster(2)
    here.answering(2)
    here.writing(1, message(b"x" * FRAME)[:100], ends=True)
    assert here.exchange(1) == {2: FRAME}
    assert (here.server.ready(), here.server.gone()) == ({2}, {1: "its process has ended"})
    assert here.exchange(2) == {2: FRAME}


def test_one_that_takes_nothing_delays_neither_the_others_nor_the_end(cluster) -> None:
    here = cluster(2)
    here.model = torch.zeros(P)
    here.answering(2)
    assert here.exchange(1, until=lambda found: 2 in found) == {2: FRAME}
    assert here.exchange(2) == {2: FRAME}
    began = time.monotonic()
    here.server.stop()
    assert time.monotonic() - began < 5


def test_workers_notice_that_the_server_has_ended(cluster) -> None:
    here = cluster(2)
    reader, writer = (TorchWorker(end) for end in here.ends)
    for mine in here.mine:
        mine.close()
    with pytest.raises(ServerGone):
        reader.job()
    with pytest.raises(ServerGone):
        writer.reply(torch.zeros(1 << 24, dtype=torch.uint8), 1 << 24)


def test_momenta_of_another_size_are_refused(cluster) -> None:
    here = cluster(1)
    here.server.hand_momenta([torch.zeros(3)])
    with pytest.raises(WorkerError, match="momenta have 12 bytes, this worker's 16"):
        TorchWorker(here.ends[0]).take_momenta(torch.zeros(4))


# --- Meeting ---------------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as door:
        return int(door.getsockname()[1])


def gathering(environment: Mapping[str, str], workers: int) -> tuple[threading.Thread, list[socket.socket]]:
    found: list[socket.socket] = []
    thread = threading.Thread(target=lambda: found.extend(meeting.gather("a-1", workers, environment)), daemon=True)
    thread.start()
    return thread, found


def test_strangers_other_runs_ranks_and_a_rank_that_is_there_already_are_not_let_in() -> None:
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    thread, found = gathering(environment, 2)
    second = meeting.reach("a-1", 2, environment)
    others = [meeting.reach("b-1", 1, environment), meeting.reach("a-1", 9, environment)]
    others += [meeting.reach("a-1", 2, environment), socket.create_connection(second.getpeername())]
    others[-1].sendall(b"GET / HTTP/1.1\r\n")
    silent = socket.create_connection(second.getpeername())
    for other in others:
        other.settimeout(LIMIT_S)
        assert other.recv(1) == b""
    assert thread.is_alive()
    first = meeting.reach("a-1", 1, environment)
    thread.join(LIMIT_S)
    assert [mine.getpeername() for mine in found] == [first.getsockname(), second.getsockname()]
    with pytest.raises(ConnectionRefusedError):  # nobody listens any more
        socket.create_connection(second.getpeername())
    for each in (*found, *others, first, second, silent):
        each.close()


def test_ranks_of_torchrun_find_each_other_by_the_store_of_its_agent() -> None:
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=LIMIT_S))
    environment = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip
    thread, found = gathering(environment, 1)
    worker = meeting.reach("a-1", 1, environment)
    thread.join(LIMIT_S)
    assert found[0].getpeername() == worker.getsockname()
    found[0].close()
    worker.close()


def test_some_who_do_not_come_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "_ALL_THERE_S", 0.2)
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with pytest.raises(WorkerError, match="ranks 1, 2 have not come within 0 s"):
        meeting.gather("a-1", 2, environment)
    with pytest.raises(WorkerError, match=r"rank 2 has not reached the server at 127\.0\.0\.1"):
        meeting.reach("a-1", 2, environment)


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
        with pytest.raises(MissingError, match=rf"127\.0\.0\.1:{port}: the server cannot listen there"):
            meeting.gather("a-1", 1, {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({"RANK": "2", "WORLD_SIZE": "5"}, (2, 5)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "4"}, (1, 4)),
        ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "6", "RANK": "0", "WORLD_SIZE": "2"}, (3, 6)),
        ({"RANK": "1", "WORLD_SIZE": "3", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, (1, 3)),
    ],
)
def test_the_launcher_says_which_rank_a_process_is(environment: Mapping[str, str], place: tuple[int, int]) -> None:
    assert meeting.rank_and_size(environment) == place


def test_without_a_launcher_a_process_is_no_rank() -> None:
    with pytest.raises(MissingError, match="RANK and WORLD_SIZE are not set"):
        meeting.rank_and_size({"RANK": "1"})
    with pytest.raises(MissingError, match="MASTER_ADDR and MASTER_PORT do not say where the server is"):
        meeting.reach("a-1", 1, {"MASTER_ADDR": "here"})
