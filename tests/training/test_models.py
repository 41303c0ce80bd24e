"""Models: sizes, shapes, explicit randomness, dropout segments, flat views and BatchNorm statistics."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from draco.models import MODELS, batch_norm, build_model, model_fault, model_size
from draco.models.dropout import SeededDropout, set_dropout
from draco.models.flat import flatten
from draco.models.pooling import MaxPool2x2, replace_pooling
from draco.sampling import generator

IMAGE = (3, 32, 32)
# Parameters and BatchNorm statistics with 10 classes. Those of lenet and fc on (1, 28, 28) and of the ResNets on
# (3, 32, 32) are as published for the original Draco and for kuangliu's CIFAR models. VGG's are computed below.
SIZES = {
    "lenet": (431_080, 0),
    "fc": (1_033_510, 0),
    "resnet18": (11_173_962, 9_600),
    "resnet34": (21_282_122, 17_024),
    "resnet50": (23_520_842, 53_120),
    "resnet101": (42_512_970, 105_344),
    "resnet152": (58_156_618, 151_424),
}
VGG_WIDTHS = {
    "vgg11": (64, 128, 256, 256, 512, 512, 512, 512),
    "vgg13": (64, 64, 128, 128, 256, 256, 512, 512, 512, 512),
    "vgg16": (64, 64, 128, 128, *3 * (256,), *6 * (512,)),
    "vgg19": (64, 64, 128, 128, *4 * (256,), *8 * (512,)),
}


def vgg_size(name: str) -> tuple[int, int]:
    """The obvious twin: 3x3 convolutions with bias, two values a channel for BatchNorm, 512-512-512-10 behind."""
    widths = VGG_WIDTHS[name.removesuffix("_bn")]
    convolutions = sum(9 * a * b + b for a, b in zip((3, *widths), widths, strict=False))
    statistics = 2 * sum(widths) if name.endswith("_bn") else 0
    return convolutions + statistics + 2 * (512 * 512 + 512) + 512 * 10 + 10, statistics


def native_shape(name: str) -> tuple[int, int, int]:
    return (1, 28, 28) if name in ("lenet", "fc") else IMAGE


def run_once(model: nn.Module, shape: tuple[int, int, int], rows: int = 2) -> Tensor:
    set_dropout(model, [(rows, generator(1, "dropout"))])
    return model(torch.rand(rows, *shape, generator=generator(1, "images")))


class TwoDropouts(nn.Module):
    """Elementwise around its dropout layers, so that equal masks mean equal bits; the first one sees a 3-d tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(SeededDropout(0.3), nn.Tanh(), nn.Flatten(), SeededDropout(0.5), SeededDropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.parametrize("name", MODELS)
def test_models_have_the_published_sizes_and_give_logits(name: str) -> None:
    shape = native_shape(name)
    model = build_model(name, shape, 10, 7)
    size = (sum(parameter.numel() for parameter in model.parameters()), batch_norm.statistics_size(model))
    assert size == (SIZES[name] if name in SIZES else vgg_size(name))
    assert model_size(name, shape, 10) == size
    assert model_size(name, (2, *shape[1:]), 7) != size
    assert MODELS[name].batch_norm == batch_norm.has_batch_statistics(model)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert model.training
    model.eval()
    with torch.no_grad():
        logits = run_once(model, shape)
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", ["lenet", "fc", "resnet18", "vgg11"])
def test_the_smallest_images_with_other_channels_and_classes_train_on_one_sample(name: str) -> None:
    smallest = MODELS[name].smallest
    shape = (2, smallest, smallest + 3)
    assert model_fault(name, shape) is None
    logits = run_once(build_model(name, shape, 7, 7), shape, rows=1)
    assert logits.shape == (1, 7)
    assert logits.isfinite().all()
    logits.sum().backward()


@pytest.mark.parametrize("name", [name for name in MODELS if MODELS[name].smallest > 1])
def test_smaller_images_are_refused_with_one_sentence(name: str) -> None:
    smallest = MODELS[name].smallest
    fault = model_fault(name, (3, 64, smallest - 1))
    assert fault == f"{name} needs images of at least {smallest}x{smallest} pixels, got 64x{smallest - 1}"
    with pytest.raises(ValueError, match="at least"):
        build_model(name, (3, 64, smallest - 1), 10, 7)


def test_unknown_models_impossible_channels_and_no_classes_are_refused() -> None:
    assert "no model 'alexnet'; the models are lenet, fc" in str(model_fault("alexnet", IMAGE))
    assert model_fault("fc", (0, 8, 8)) == "images need at least 1 channel, got 0"
    with pytest.raises(ValueError, match="at least 1 class"):
        build_model("fc", (1, 8, 8), 0, 7)


def test_lenet_is_the_original_layer_by_layer() -> None:
    model = build_model("lenet", (1, 28, 28), 10, 7)
    first, second, hidden, last = [m for m in model if isinstance(m, nn.Conv2d | nn.Linear)]
    x = torch.rand(3, 1, 28, 28, generator=generator(0))
    y = nn.functional.relu(nn.functional.max_pool2d(first(x), 2, 2))
    y = nn.functional.relu(nn.functional.max_pool2d(second(y), 2, 2))
    assert torch.equal(model(x), last(hidden(y.view(-1, 4 * 4 * 50))))


@pytest.mark.parametrize("name", ["lenet", "fc", "resnet18", "vgg11_bn"])
def test_weights_depend_on_the_seed_alone_and_leave_global_randomness_untouched(name: str) -> None:
    shape = native_shape(name)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build_model(name, shape, 10, 7).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = build_model(name, shape, 10, 7).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    other = build_model(name, shape, 10, 8).state_dict()
    weight = next(key for key in first if key.endswith("weight"))
    assert not torch.equal(first[weight], other[weight])


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "vgg11_bn"])
def test_no_weight_is_left_uninitialised(name: str) -> None:
    # Each tensor must be what its layer's rule gives: constant, or spread as the fan says.
    for module in build_model(name, IMAGE, 10, 7).modules():
        if isinstance(module, nn.Conv2d):
            deviation = (2 / (module.out_channels * module.kernel_size[0] * module.kernel_size[1])) ** 0.5
            assert abs(module.weight.std().item() / deviation - 1) < 0.1
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            assert 0.9 * bound < module.weight.abs().max() <= bound
            assert module.bias.abs().max() <= bound
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert not module.bias.any()
            assert not module.running_mean.any()
            assert (module.running_var == 1).all()
            assert module.num_batches_tracked == 0


def test_batch_statistics_are_found_from_the_model() -> None:
    assert not batch_norm.has_batch_statistics(build_model("lenet", (1, 28, 28), 10, 7))
    assert not batch_norm.has_batch_statistics(build_model("vgg11", IMAGE, 10, 7))
    model = build_model("vgg11_bn", IMAGE, 10, 7)
    assert batch_norm.has_batch_statistics(model)
    assert batch_norm.has_batch_statistics(model.eval())  # the answer is about training
    model.train()
    for layer in batch_norm.batch_norm_layers(model):
        layer.eval()
    assert not batch_norm.has_batch_statistics(model)  # frozen: every layer uses its running statistics
    assert batch_norm.has_batch_statistics(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False).eval()).train())


@pytest.mark.parametrize("name", ["lenet", "vgg11", "vgg11_bn"])
def test_has_batch_statistics_tells_whether_samples_influence_each_other(name: str) -> None:
    shape = native_shape(name)
    model = build_model(name, shape, 10, 7)
    for module in model.modules():
        if isinstance(module, SeededDropout):
            module.p = 0.0
    x = torch.rand(4, *shape, generator=generator(2))
    changed = x.clone()
    changed[1:] = 1 - changed[1:]
    with torch.no_grad():
        influenced = not torch.allclose(model(x)[0], model(changed)[0], rtol=1e-4, atol=1e-5)
    assert influenced == batch_norm.has_batch_statistics(model)


# Dropout


def test_dropout_layers_of_torch_are_all_replaced() -> None:
    model = build_model("vgg11", IMAGE, 10, 7)
    assert not [m for m in model.modules() if isinstance(m, nn.Dropout)]
    assert [m.p for m in model.modules() if isinstance(m, SeededDropout)] == [0.5, 0.5]


def test_pooling_layers_of_torch_are_replaced_where_they_pool_2x2_pixels() -> None:
    assert [type(m) for m in build_model("lenet", (1, 28, 28), 10, 7).children()].count(MaxPool2x2) == 2
    others = [nn.MaxPool2d(3), nn.MaxPool2d(2, stride=1), nn.MaxPool2d(2, padding=1), nn.MaxPool2d(2, ceil_mode=True)]
    model = nn.Sequential(*others, nn.Sequential(nn.MaxPool2d(2, 2)))
    replace_pooling(model)
    assert [*model.children()][:4] == others
    assert type(model[4][0]) is MaxPool2x2


@pytest.mark.parametrize("shape", [(3, 5, 9, 7), (2, 33, 4, 6), (1, 2, 2, 2), (4, 1, 6, 6)], ids=str)
@pytest.mark.parametrize("kind", ["normal", "ties", "nan", "infinite"])
def test_pooling_gives_the_bits_and_gradients_of_torchs(shape: tuple[int, ...], kind: str) -> None:
    values = torch.randn(shape, generator=generator(1))
    some = torch.rand(shape, generator=generator(2)) < 0.4
    values = {"ties": values.round(), "nan": values.masked_fill(some, torch.nan)}.get(kind, values)
    if kind == "infinite":
        values = values.masked_fill(some, -torch.inf)

    def pooled(layer: nn.Module) -> list[Tensor]:
        x = values.clone().requires_grad_()
        y = layer(x)
        (slope,) = torch.autograd.grad(y, x, torch.arange(1.0, y.numel() + 1).view_as(y))
        return [y.detach(), slope]

    for ours, theirs in zip(pooled(MaxPool2x2()), pooled(nn.MaxPool2d(2)), strict=True):
        assert ours.numpy().tobytes() == theirs.numpy().tobytes()
        assert ours.stride() == theirs.stride()


def test_partitions_in_one_batch_get_bit_for_bit_the_masks_they_get_alone() -> None:
    model = TwoDropouts()
    sizes = (3, 1, 4)
    x = torch.rand(sum(sizes), 5, 6, generator=generator(3)) + 0.5
    set_dropout(model, [(size, generator(7, "dropout", 1, part)) for part, size in enumerate(sizes)])
    together = model(x).split(sizes)
    for part, piece in enumerate(x.split(sizes)):
        set_dropout(model, [(len(piece), generator(7, "dropout", 1, part))])
        assert torch.equal(model(piece), together[part])
    # and regrouped, as a worker with another assignment would
    set_dropout(model, [(4, generator(7, "dropout", 1, 2)), (3, generator(7, "dropout", 1, 0))])
    assert torch.equal(model(torch.cat([x[4:], x[:3]])), torch.cat([together[2], together[0]]))


def test_masks_of_a_whole_vgg_are_the_same_alone_and_together() -> None:
    model = build_model("vgg11", IMAGE, 10, 7)
    x = torch.rand(4, *IMAGE, generator=generator(3))
    masks: list[Tensor] = []
    for layer in [m for m in model.modules() if isinstance(m, SeededDropout)]:
        layer.register_forward_hook(lambda layer, args, out: masks.append((out != 0) | (args[0] == 0)))
    set_dropout(model, [(3, generator(7, 0)), (1, generator(7, 1))])
    together = model(x)
    set_dropout(model, [(3, generator(7, 0))])
    first = model(x[:3])
    set_dropout(model, [(1, generator(7, 1))])
    second = model(x[3:])
    assert len(masks) == 6
    for layer in range(2):
        assert torch.equal(masks[layer], torch.cat([masks[2 + layer], masks[4 + layer]]))
    torch.testing.assert_close(together, torch.cat([first, second]))


def test_dropout_drops_the_given_share_scales_the_rest_and_passes_gradients() -> None:
    layer = SeededDropout(0.25)
    x = torch.ones(100, 100, requires_grad=True)
    set_dropout(layer, [(100, generator(0))])
    y = layer(x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())
    assert y.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert abs((y == 0).float().mean().item() - 0.25) < 0.02


def test_dropout_reads_no_global_randomness_and_refuses_to_run_without_generators() -> None:
    layer = SeededDropout(0.5)
    with pytest.raises(RuntimeError, match="the batch has 2 rows but set_dropout announced 0"):
        layer(torch.ones(2, 3))
    set_dropout(layer, [(2, generator(0))])
    with pytest.raises(RuntimeError, match="the batch has 5 rows but set_dropout announced 2"):
        layer(torch.ones(5, 3))
    before = torch.get_rng_state()
    layer(torch.ones(2, 3))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(layer.eval()(torch.ones(5, 3)), torch.ones(5, 3))
    assert torch.equal(SeededDropout(0.0)(torch.ones(5, 3)), torch.ones(5, 3))


# Flat views


@pytest.mark.parametrize("name", ["lenet", "vgg11_bn"])
def test_the_flat_vector_and_the_parameters_share_memory_in_order(name: str) -> None:
    model = build_model(name, native_shape(name), 10, 7)
    values = [parameter.detach().clone() for parameter in model.parameters()]
    flat = flatten(model)
    assert flat.is_contiguous()
    assert flat.dtype == torch.float32
    assert not flat.requires_grad
    assert torch.equal(flat, torch.cat([value.flatten() for value in values]))
    start = 0
    for parameter in model.parameters():
        assert parameter.data_ptr() == flat.data_ptr() + 4 * start
        assert parameter.is_contiguous()
        start += parameter.numel()
    flat.fill_(0.5)
    assert all((parameter == 0.5).all() for parameter in model.parameters())
    with torch.no_grad():
        next(model.parameters()).fill_(-1)
    assert flat[0] == -1


def test_a_state_dict_round_trips_through_flat_models_and_optimizers_keep_the_views() -> None:
    source, target = build_model("lenet", (1, 28, 28), 10, 7), build_model("lenet", (1, 28, 28), 10, 8)
    flat, other = flatten(source), flatten(target)
    assert not torch.equal(flat, other)
    target.load_state_dict(source.state_dict())
    assert torch.equal(flat, other)
    optimizer = torch.optim.SGD(target.parameters(), lr=0.1, momentum=0.9)
    run_once(target, (1, 28, 28)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(flat, other)
    assert torch.equal(other, torch.cat([parameter.detach().flatten() for parameter in target.parameters()]))


def test_a_deep_copy_has_memory_of_its_own_and_can_be_flattened_again() -> None:
    model = build_model("vgg11", IMAGE, 10, 7)
    flat = flatten(model)
    run_once(model, IMAGE)  # leaves generators in the dropout layers
    twin = copy.deepcopy(model)
    flat.zero_()
    again = flatten(twin)
    assert again.any()
    assert again.data_ptr() == next(twin.parameters()).data_ptr()


def test_flatten_refuses_other_dtypes() -> None:
    with pytest.raises(ValueError, match="float32"):
        flatten(nn.Linear(2, 2).double())
    with pytest.raises(ValueError, match="float32"):
        flatten(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).half()))


# BatchNorm statistics


def small_batch_norm_model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4)
    )


def test_one_forward_leaves_exactly_the_batch_statistics() -> None:
    model = small_batch_norm_model()
    batch_norm.measure_batch_statistics(model)
    x = torch.rand(5, 2, 4, 4, generator=generator(0))
    out = torch.empty(batch_norm.statistics_size(model))
    for _ in range(2):  # what the buffers held before does not matter
        batch_norm.write_statistics(model, torch.full_like(out, 123.0))
        model(x)
        hidden = model[0](x)
        last = model[4](model[3](model[2](model[1](hidden))))
        assert batch_norm.read_statistics(model, out) is out
        means, variances = out[:3], out[3:6]
        torch.testing.assert_close(means, hidden.mean((0, 2, 3)).detach())
        torch.testing.assert_close(variances, hidden.var((0, 2, 3)).detach())
        torch.testing.assert_close(out[6:10], last.mean(0).detach())
        torch.testing.assert_close(out[10:], last.var(0).detach())


def test_statistics_are_bit_for_bit_independent_of_what_was_there() -> None:
    model = build_model("vgg11_bn", IMAGE, 10, 7)
    batch_norm.measure_batch_statistics(model)
    seen = []
    for old in (0.0, -1e30):
        batch_norm.write_statistics(model, torch.full((batch_norm.statistics_size(model),), old))
        run_once(model, IMAGE)
        seen.append(batch_norm.read_statistics(model, torch.empty(batch_norm.statistics_size(model))))
    assert torch.equal(*seen)


def test_statistics_round_trip_in_module_order() -> None:
    model = small_batch_norm_model()
    values = torch.arange(1.0, 15.0)
    batch_norm.write_statistics(model, values)
    assert model[1].running_mean.tolist() == [1, 2, 3]
    assert model[1].running_var.tolist() == [4, 5, 6]
    assert model[5].running_mean.tolist() == [7, 8, 9, 10]
    assert model[5].running_var.tolist() == [11, 12, 13, 14]
    assert torch.equal(batch_norm.read_statistics(model, torch.empty(14)), values)
    assert [type(layer) for layer in batch_norm.batch_norm_layers(model)] == [nn.BatchNorm2d, nn.BatchNorm1d]


def test_momenta_stand_beside_their_statistics() -> None:
    model = small_batch_norm_model()
    model[5].momentum = 0.25
    expected = torch.tensor([0.1] * 6 + [0.25] * 8)
    assert torch.equal(batch_norm.statistics_momenta(model), expected)
    running = torch.ones(14)
    batch_norm.write_statistics(model, running)
    twin = copy.deepcopy(model)
    batch_norm.measure_batch_statistics(twin)
    x = torch.rand(5, 2, 4, 4, generator=generator(0))
    model(x), twin(x)
    measured = batch_norm.read_statistics(twin, torch.empty(14))
    torch.testing.assert_close(
        batch_norm.read_statistics(model, torch.empty(14)), running + expected * (measured - running)
    )  # what torch keeps is what a server computes from the momenta
    assert batch_norm.statistics_momenta(nn.Linear(1, 1)).shape == (0,)
    model[1].momentum = None
    with pytest.raises(ValueError, match="momentum None"):
        batch_norm.statistics_momenta(model)


def test_models_without_batch_norm_have_an_empty_vector_and_wrong_sizes_are_refused() -> None:
    model = build_model("lenet", (1, 28, 28), 10, 7)
    assert batch_norm.read_statistics(model, torch.empty(0)).shape == (0,)
    batch_norm.write_statistics(model, torch.empty(0))
    batch_norm.measure_batch_statistics(model)
    with pytest.raises(ValueError, match=r"are a vector \(14,\), got \(13,\)"):
        batch_norm.read_statistics(small_batch_norm_model(), torch.empty(13))


def test_the_small_models_are_built_without_importing_torchvision_or_the_compiler() -> None:
    code = (
        "import sys, draco.models as m, draco.data; m.model_fault('lenet', (1, 28, 28)); "
        "assert 'torch._C' not in sys.modules; m.build_model('lenet', (1, 28, 28), 10, 7); "
        "m.build_model('fc', (1, 28, 28), 10, 7); m.model_fault('resnet18', (3, 32, 32)); "
        "print([name for name in ('torchvision', 'torch._dynamo', 'mlxtend', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
