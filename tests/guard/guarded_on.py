"""Two ranks of one group on one device over gloo, of which one has a wrong gradient at step 2: DEVICE FOLDER."""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

import draco.torch

device, folder = torch.device(sys.argv[1]), Path(sys.argv[2])
dist.init_process_group("gloo")
torch.use_deterministic_algorithms(True)
torch.manual_seed(3)
inner = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.2), nn.Linear(144, 10))
model = DistributedDataParallel(inner.to(device))
guard = draco.torch.Guard(model, redundancy=2)
optimizer = guard.optimizer(torch.optim.Adam(model.parameters()))
faults = list[int]()


def wrong_once(gradient: Tensor) -> Tensor | None:
    if dist.get_rank() == 1 and guard.steps == 1 and not faults:
        faults.append(1)
        return gradient * 1.5
    return None


inner[0].weight.register_hook(wrong_once)
drawn = torch.Generator().manual_seed(4)
for _ in range(4):
    images, labels = torch.randn(8, 1, 8, 8, generator=drawn), torch.randint(10, (8,), generator=drawn)
    loss = nn.functional.cross_entropy(model(images.to(device)), labels.to(device))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
rank = dist.get_rank()
weights = {name: value.cpu() for name, value in inner.state_dict().items()}
torch.save({"weights": weights, "suspects": [*guard.suspects], "repaired": guard.repaired}, folder / f"rank-{rank}")
dist.destroy_process_group()
