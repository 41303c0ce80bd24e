"""Which device a process takes, and whether what poses as a GPU in these tests is one to torch."""

import pytest
import torch
from conftest import JOB

from draco.errors import MissingError
from draco.job import parse
from draco.training import device


@pytest.fixture
def four(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    monkeypatch.setattr(device, "gpus", lambda: 4)
    return gpu


@pytest.mark.parametrize(
    ("environ", "index"),
    [
        ({}, 0),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "3"}, 3),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "4"}, 0),
        ({"LOCAL_RANK": "9", "SLURM_LOCALID": "2"}, 1),
        ({"SLURM_LOCALID": "2"}, 2),
        ({"LOCAL_RANK": "words"}, 0),
    ],
)
def test_a_worker_takes_a_gpu_by_its_place_on_its_node(four: torch.device, environ: dict[str, str], index: int) -> None:
    assert device.of_worker(parse(JOB, "test", ["device=cuda"]), environ) == torch.device(four.type, index)


@pytest.mark.parametrize(
    ("words", "on_gpu"),
    [
        (["device=cuda"], True),
        (["device=cuda", "server_device=cpu"], False),
        (["server_device=cuda"], True),
        ([], False),
    ],
)
def test_the_server_follows_its_workers_unless_told_otherwise(
    gpu: torch.device, words: list[str], on_gpu: bool
) -> None:
    assert (device.of_server(parse(JOB, "test", words), {}).type == gpu.type) is on_gpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_without_a_gpu_only_a_server_that_may_choose_goes_on() -> None:
    assert device.of_server(parse(JOB, "test", ["device=cuda"])).type == "cpu"
    with pytest.raises(MissingError, match="server_device: cuda: torch sees no GPU"):
        device.of_server(parse(JOB, "test", ["server_device=cuda"]))
    with pytest.raises(MissingError, match="device: cuda: torch sees no GPU"):
        device.of_worker(parse(JOB, "test", ["device=cuda"]))


def test_tensors_of_a_gpu_keep_to_themselves(gpu: torch.device) -> None:
    there, here = torch.ones(4, device=gpu), torch.ones(4)
    with pytest.raises(RuntimeError, match="same device"):
        there + here
    with pytest.raises(RuntimeError, match="same device"):
        torch.maximum(there, here, out=there)
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    view = there[1:3]
    view += 1
    assert there.tolist() == [1, 2, 2, 1]
    assert (there / 2 @ there).item() == 5


def test_a_copy_that_is_not_waited_for_comes_late(gpu: torch.device) -> None:
    if gpu.type == "cuda":
        pytest.skip("of the device that poses only: a GPU's copy may be early or late")
    there, here, module = torch.ones(4, device=gpu), torch.zeros(4), device.of_gpus()
    here.copy_(there, non_blocking=True)
    event = module.Event()
    event.record()
    assert here.sum() == 0
    assert not event.query()
    assert event.query()
    assert here.sum() == 4
    source = torch.full((4,), 2.0)
    there.copy_(source, non_blocking=True)
    source.zero_()
    assert there.sum().item() == 0, "what was overwritten before it was read"


def test_a_network_learns_on_it_what_it_learns_on_the_cpu(gpu: torch.device) -> None:
    def learnt(where: torch.device) -> torch.Tensor:
        torch.manual_seed(1)
        layers = [torch.nn.Conv2d(1, 4, 3, bias=False), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten()]
        model = torch.nn.Sequential(*layers, torch.nn.Linear(144, 10))
        images, labels = torch.randn(8, 1, 8, 8), torch.randint(10, (8,))
        model.to(where)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images.to(where)), labels.to(where)).backward()
            optimizer.step()
        return torch.cat([p.detach().cpu().flatten() for p in model.parameters()])

    torch.testing.assert_close(learnt(gpu), learnt(torch.device("cpu")), rtol=1e-4, atol=1e-5)
