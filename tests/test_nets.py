"""The energy nets: one number a sample, no coupling in a batch, the paper's layers, spectral norm without traces."""

import math

import pytest
import torch
from problems import assert_mean
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from ebmlib.core import energy_and_grad
from ebmlib.nets.blocks import ResBlock, TimeEmbedding, parameter_count, sinusoidal
from ebmlib.nets.conv import ConvNet
from ebmlib.nets.growing import GrowingNet
from ebmlib.nets.mlp import MLP, TimeMLP
from ebmlib.nets.wideresnet import TimeWideResNet, cascade

# name: (net, shape of a sample); the multipliers include a stage that widens and one that does not
NETS = {
    "mlp": (lambda: MLP(2, 16, 3), (2,)),
    "spectral mlp": (lambda: MLP(3, 16, 2, spectral=True), (3,)),
    "time mlp": (lambda: TimeMLP(2, 16, (1, 2), gain=2.0), (2,)),
    "plain time mlp": (lambda: TimeMLP(5, 8, (1, 2), blocks=2, spectral=False), (5,)),
    "resnet": (lambda: TimeWideResNet(3, 8, (1, 2), 2), (3, 8, 8)),
    "dense resnet": (lambda: TimeWideResNet(1, 8, (1, 2, 2), 1, head="dense", spectral=False), (1, 8, 12)),
    "convnet": (lambda: ConvNet(3, 16, 4, (1, 2, 3)), (3, 16, 16)),
    "growing": (lambda: GrowingNet(16, 3, 2), (3, 16, 16)),
    "grown": (lambda: half_grown(GrowingNet(4, 1, 2, spectral=False, padding="circular")), (1, 8, 8)),
}


def half_grown(net: GrowingNet) -> GrowingNet:
    """One stage on, in the middle of the fade."""
    net = net.grow()
    net.beta = 0.4
    return net


TIMED = [name for name in NETS if "time" in name or "resnet" in name]


def assert_same(value: torch.Tensor, truth: torch.Tensor) -> None:
    """Equal up to the order in which sums are taken, which depends on the batch and the layout."""
    rtol, atol = (1e-9, 1e-9) if truth.dtype == torch.float64 else (1e-4, 1e-4)
    torch.testing.assert_close(value, truth, rtol=rtol, atol=atol)


def build(name: str, device, dtype) -> nn.Module:
    """The net in evaluation mode, its channel factors set away from 0 so that every layer counts."""
    torch.manual_seed(3)
    net = NETS[name][0]()
    with torch.no_grad():
        for key, p in net.named_parameters():
            if key.endswith("factor"):
                p.normal_()
    return net.to(device, dtype).eval()


def inputs(name: str, n: int, device, dtype, rng) -> tuple[torch.Tensor, ...]:
    """(x,) or (x, t) for a net."""
    x = torch.randn(n, *NETS[name][1], generator=rng(n), device=device, dtype=dtype)
    return (x, torch.arange(n, device=device) % 6) if name in TIMED else (x,)


# -- energies --


@pytest.mark.parametrize("name", NETS)
def test_samples_of_a_batch_do_not_touch_each_other(name, device, dtype, rng):
    net = build(name, device, dtype)
    x, *t = inputs(name, 5, device, dtype, rng)
    value, grad = energy_and_grad(lambda x: net(x, *t), x)
    assert value.shape == (5,)
    assert value.dtype == dtype
    for n in range(5):
        own = [level[n : n + 1] for level in t]
        alone, alone_grad = energy_and_grad(lambda x, own=own: net(x, *own), x[n : n + 1])
        assert_same(alone[0], value[n])
        assert_same(alone_grad[0], grad[n])
    assert grad.flatten(1).abs().amax(1).min() > 1e-4
    assert len(value.unique()) == 5


@pytest.mark.parametrize("name", TIMED)
def test_at_is_forward_and_embeds_the_level_once(name, device, dtype, rng):
    net = build(name, device, dtype)
    x, t = inputs(name, 6, device, dtype, rng)
    calls = []
    handle = net.embed.register_forward_hook(lambda *_: calls.append(1))
    energy = net.at(t)
    first = energy(x)
    assert torch.equal(energy(x), first)
    assert len(calls) == 1
    handle.remove()
    assert torch.equal(first, net(x, t))


@pytest.mark.parametrize("name", NETS)
def test_every_parameter_takes_a_gradient(name, device, dtype, rng):
    net = build(name, device, dtype)
    x, *t = inputs(name, 6, device, dtype, rng)
    (net(x, *t) ** 2).sum().backward()
    assert [key for key, p in net.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


# Table 2: kernel, stride and filters of every convolution, and the inputs of the last layer
TABLE_2 = {
    "MNIST": ((1, 32, 32, (1, 2, 2, 2)), [(3, 1, 32), (4, 2, 64), (4, 2, 64), (4, 2, 64)], 64 * 4 * 4),
    "CIFAR-10": ((3, 32, 64, (1, 2, 4, 8)), [(3, 1, 64), (4, 2, 128), (4, 2, 256), (4, 2, 512)], 512 * 4 * 4),
    "CelebA": ((3, 64, 32, (1, 2, 4, 8, 16)), [(3, 1, 32), *((4, 2, 2**n) for n in (6, 7, 8, 9))], 512 * 4 * 4),
}


@pytest.mark.parametrize("name", TABLE_2)
def test_convnet_is_the_self_adversarial_papers_table(name):
    given, layers, flat = TABLE_2[name]
    net = ConvNet(*given)
    assert [(layer.kernel_size[0], layer.stride[0], layer.out_channels) for layer in net.body] == layers
    assert net.head.in_features == flat


def test_convnet_is_its_layers(device, dtype, rng):
    net = build("convnet", device, dtype)
    (x,) = inputs("convnet", 3, device, dtype, rng)
    h = x
    for n, layer in enumerate(net.body):
        h = F.conv2d(h, layer.weight, layer.bias, 1 if n == 0 else 2, 1)
        h = h * torch.sigmoid(h)
    assert_same(net(x), h.reshape(3, -1) @ net.head.weight[0] + net.head.bias)


def test_mlp_is_its_layers(device, dtype, rng):
    net = build("mlp", device, dtype)
    (x,) = inputs("mlp", 7, device, dtype, rng)
    h = x
    for layer in net.layers[:3]:
        h = h @ layer.weight.T + layer.bias
        h = h * torch.sigmoid(h)
    assert_same(net(x), (h @ net.layers[3].weight.T + net.layers[3].bias)[:, 0])
    assert parameter_count(net) == (2 * 16 + 16) + 2 * (16 * 16 + 16) + (16 + 1)


def conv(x, layer, **kw):
    return F.conv2d(x, layer.weight, layer.bias, **kw)


def mean4(h):
    return (h[..., ::2, ::2] + h[..., 1::2, ::2] + h[..., ::2, 1::2] + h[..., 1::2, 1::2]) / 4


def reference_embedding(embed: TimeEmbedding, t: torch.Tensor) -> torch.Tensor:
    h = sinusoidal(t, embed.dim).to(embed.first.weight.dtype)
    h = F.leaky_relu(F.linear(h, embed.first.weight, embed.first.bias), 0.2)
    return F.linear(h, embed.second.weight, embed.second.bias)


def reference_block(block: ResBlock, x: torch.Tensor, temb: torch.Tensor, layer, act) -> torch.Tensor:
    """Table 4e: activation, layer, + dense(leaky(temb)), activation, layer with its channel scale, + input."""
    pad = {"padding": 1} if layer is F.conv2d else {}
    column = lambda v: v.reshape(*v.shape, *[1] * (x.ndim - 2))
    h = layer(act(x), block.first.weight, block.first.bias, **pad)
    h = h + column(F.linear(F.leaky_relu(temb, 0.2), block.time.weight, block.time.bias))
    h = layer(act(h), block.second.weight, block.second.bias, **pad) * column(block.scale.factor[None])
    straight = isinstance(block.shortcut, nn.Identity)
    return h + (x if straight else layer(x, block.shortcut.weight, block.shortcut.bias))


@pytest.mark.parametrize("how", ["gain", "steep"])
def test_units_of_the_first_layer_turn_all_over_the_box(how, device):
    """A unit is 0 at a uniform point of the box: |b| <= factor box |w|_1, of variance (factor box)^2 |w|^2 / 3."""
    torch.manual_seed(4)
    box, factor, shape = 2.5, 3.0, {"width": 20_000, "depth": 1}
    net = MLP(gain=factor, box=box, **shape) if how == "gain" else MLP.spread(box, factor, **shape)
    layer = net.to(device).layers[0]
    weight, bias = factor * layer.weight.detach().double(), layer.bias.detach().double()
    if how == "steep":  # the factor is in the weights themselves
        weight = weight / factor
        assert_mean(weight.flatten() ** 2, factor**2 / 6, se=0.01)  # PyTorch's are uniform, of variance 1 / (3 dim)
    assert (bias.abs() <= box * weight.abs().sum(1) * (1 + 1e-6)).all()
    ratio = bias.square() / (box**2 * weight.square().sum(1) / 3)
    assert_mean(ratio, 1.0, se=0.01)


@pytest.mark.parametrize("name", ["time mlp", "plain time mlp"])
def test_time_mlp_is_its_layers(name, device, dtype, rng):
    net = build(name, device, dtype)
    x, t = inputs(name, 6, device, dtype, rng)
    temb = reference_embedding(net.embed, t)
    h = F.linear((2.0 if name == "time mlp" else 1.0) * x, net.stem.weight, net.stem.bias)
    for block in net.body:
        h = reference_block(block, h, temb, F.linear, F.silu)
    assert_same(net(x, t), F.linear(F.silu(h), net.head.weight, net.head.bias)[:, 0])
    assert [b.second.weight.shape[0] for b in net.body] == ([16, 32] if name == "time mlp" else [8, 8, 16, 16])


@pytest.mark.parametrize("name", ["resnet", "dense resnet"])
def test_the_resnet_is_table_4(name, device, dtype, rng):
    net = build(name, device, dtype)
    x, t = inputs(name, 6, device, dtype, rng)
    temb = reference_embedding(net.embed, t)
    h = conv(x, net.stem, padding=1)
    for n, stage in enumerate(net.stages):
        h = mean4(h) if n else h
        for block in stage:
            h = reference_block(block, h, temb, F.conv2d, lambda x: F.leaky_relu(x, 0.2))
    features = h.clamp(min=0).sum((2, 3))  # ReLU, then a sum over space, not a mean
    if name == "resnet":
        weight = F.linear(F.leaky_relu(temb, 0.2), net.head.weight, net.head.bias)
        truth = (features * weight).sum(1)
    else:
        truth = F.linear(features, net.head.weight, net.head.bias)[:, 0]
    assert_same(net(x, t), truth)


def test_a_cascade_has_a_net_for_the_smallest_images_and_one_for_each_doubling():
    shape = {"width": 8, "multipliers": (1, 2), "blocks": 1}
    nets = cascade(3, 3, stem=2, **shape)
    assert [tuple(net.stem.weight.shape) for net in nets] == [(8, 3, 4, 4), (8, 12, 3, 3), (8, 12, 3, 3)]
    assert all(any("parametrizations" in name for name in net.state_dict()) for net in nets)


def test_the_paper_s_net_has_the_paper_s_widths():
    with torch.device("meta"):
        net = TimeWideResNet(spectral=False)  # the power iteration needs real numbers
    assert [len(stage) for stage in net.stages] == [5] * 4
    assert [stage[-1].second.weight.shape[0] for stage in net.stages] == [128, 256, 256, 256]


# -- the growing net of CF-EBM --


def scramble(module: nn.Module) -> None:
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p))


@pytest.mark.parametrize("spectral", [False, True])
def test_the_fade_hears_one_block_at_either_end(spectral, device, dtype, rng):
    torch.manual_seed(0)
    net = GrowingNet(8, 2, 2, spectral).to(device, dtype).grow().eval()
    x = torch.randn(3, 2, 16, 16, generator=rng(0), device=device, dtype=dtype)
    assert net.beta == 0
    values = {}
    for moved in ("nothing", "primal", "fade"):
        if moved != "nothing":
            scramble(net.primal["16"] if moved == "primal" else net.fade)
        for net.beta in (0.0, 0.5, 1.0):
            values[moved, net.beta] = net(x)
    same = lambda a, b: [torch.equal(values[a, beta], values[b, beta]) for beta in (0.0, 0.5, 1.0)]
    assert same("nothing", "primal") == [True, False, False]  # at beta = 0 the energy does not depend on Primal
    assert same("primal", "fade") == [False, False, True]  # at beta = 1 not on Fade


@pytest.mark.parametrize("spectral", [False, True])
def test_growing_keeps_every_trunk_parameter_bit_for_bit(spectral, device, rng):
    torch.manual_seed(0)
    net = GrowingNet(4, 1, 2, spectral).to(device)
    for size in (8, 16, 32):
        before = {key: value.clone() for key, value in net.state_dict().items()}
        x = torch.randn(2, 1, net.size, net.size, generator=rng(0), device=device)
        value = net.eval()(x)
        net.requires_grad_(False)
        fine = net.grow()
        trunk = [key for key in before if not key.startswith(("from_rgb", "fade"))]
        assert len(trunk) >= 6
        after = fine.state_dict()
        assert [key for key in trunk if not torch.equal(after[key], before[key])] == []
        new = {key for key in after if key not in trunk}
        assert new == {key for key in after if key.startswith(("from_rgb", "fade", f"primal.{size}"))}
        key = "from_rgb.conv.bias"
        assert not torch.equal(after[key], before[key])  # a new one, random
        assert all(p.requires_grad for p in fine.parameters())
        assert all(module.training for module in fine.modules())
        scramble(fine)  # the coarse net is a copy of its own, with its old FromRGB
        assert torch.equal(net(x), value)
        fine.beta = 1.0
        net = fine


def test_the_growing_net_is_table_6(device, dtype, rng):
    """FromRGB, Expand, the older Primal, the top with its 4 x 4 convolution, the number: written out."""
    torch.manual_seed(0)
    net = GrowingNet(8, 3, 2, spectral=False).to(device, dtype).grow()
    net.beta = 0.3
    x = torch.randn(5, 3, 16, 16, generator=rng(0), device=device, dtype=dtype)

    def primal(h, block):
        main = F.silu(conv(F.silu(conv(h, block.first, padding=1)), block.second, padding=1, stride=2))
        return (main + mean4(conv(h, block.shortcut))) / 2**0.5

    h = F.silu(conv(x, net.from_rgb.conv, padding=1))
    h = 0.3 * primal(h, net.primal["16"]) + 0.7 * mean4(conv(h, net.fade.conv, padding=1))
    h = primal(h, net.primal["8"])
    h = F.silu(conv(F.silu(conv(h, net.wide, padding=1)), net.last))
    assert_same(net(x), h[:, :, 0, 0] @ net.head.weight[0] + net.head.bias)


def test_the_growing_net_has_the_paper_s_widths():
    net = GrowingNet(256, spectral=False)
    assert [net.features(r) for r in (256, 128, 64, 32, 16, 8, 4)] == [16, 32, 64, 128, 128, 128, 128]
    assert net.from_rgb.conv.weight.shape == (16, 3, 3, 3)
    assert net.primal["256"].second.weight.shape[0] == 32
    assert net.last.weight.shape[2:] == (4, 4)


def test_sinusoidal_embedding_is_the_transformer_s(device):
    t = torch.tensor([0, 1, 5, 999], device=device)
    for dim in (4, 32, 128):
        half = dim // 2
        rates = [10_000 ** (-k / (half - 1)) for k in range(half)]
        truth = [[math.sin(n * r) for r in rates] + [math.cos(n * r) for r in rates] for n in t.tolist()]
        torch.testing.assert_close(sinusoidal(t, dim).cpu().double(), torch.tensor(truth).double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dim", [0, 2])
def test_a_residual_branch_begins_as_nothing(dim, device, dtype, rng):
    torch.manual_seed(0)
    space = (4, 4) if dim else ()
    temb = torch.randn(3, 6, generator=rng(1), device=device, dtype=dtype)
    for inner, outer in [(8, 8), (4, 8)]:
        block = ResBlock(inner, outer, 6, dim).to(device, dtype).eval()
        x = torch.randn(3, inner, *space, generator=rng(2), device=device, dtype=dtype)
        out = block(x, block.shift(temb))
        assert torch.equal(out, block.shortcut(x))
        if inner == outer:
            assert torch.equal(out, x)
        (out**2).sum().backward()
        assert block.scale.factor.grad.abs().min() > 0  # and it leaves nothing at the first update
        assert all(p.grad is None or p.grad.abs().max() == 0 for p in block.second.parameters())


# -- spectral norm --


def spectral_layers(net: nn.Module) -> list[nn.Module]:
    return [m for m in net.modules() if parametrize.is_parametrized(m, "weight")]


@pytest.mark.parametrize(
    ("name", "count"), [("spectral mlp", 3), ("time mlp", 2 + 1 + (3 + 4) + 1), ("resnet", 3 + 4 * 3 + 1 + 1)]
)
def test_the_largest_singular_value_is_one(name, count, device):
    net = build(name, device, torch.float64)
    layers = spectral_layers(net)
    weights = [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert len(layers) == count == len(weights)  # every dense layer and convolution has it
    for layer in layers:
        with torch.no_grad():
            layer.parametrizations.weight.original.mul_(torch.rand((), device=device) + 2)
        layer.train()
        for _ in range(300):
            _ = layer.weight  # each access in train mode is one power iteration
        layer.eval()
        largest = torch.linalg.svdvals(layer.weight.detach().flatten(1))[0]
        assert float(largest) == pytest.approx(1, abs=2e-3)


# -- layouts, precision, bad input --


def test_bfloat16_is_the_same_net_with_fewer_digits(device, rng):
    torch.manual_seed(4)
    fine = TimeWideResNet(3, 16, (1, 2), 1).eval().to(device)
    coarse = TimeWideResNet(3, 16, (1, 2), 1, precision="bfloat16").eval().to(device)
    coarse.load_state_dict(fine.state_dict())
    x = torch.randn(8, 3, 8, 8, generator=rng(5), device=device)
    t = torch.arange(8, device=device) % 6
    (value, grad), (rough, rough_grad) = (energy_and_grad(net.at(t), x) for net in (fine, coarse))
    assert rough.dtype == rough_grad.dtype == torch.float32
    assert 0 < float((rough - value).abs().max()) < 0.05 * float(value.abs().max())
    assert float((rough_grad - grad).norm()) < 0.05 * float(grad.norm())


def test_the_loss_is_never_rounded(device, rng):
    """Training mode, where the loss is taken, computes in float32 at either precision."""
    nets = [TimeWideResNet(3, 16, (1, 2), 1, precision=p).to(device) for p in ("float32", "bfloat16")]
    nets[1].load_state_dict(nets[0].state_dict())
    x = torch.randn(4, 3, 8, 8, generator=rng(5), device=device)
    t = torch.arange(4, device=device)
    assert torch.equal(nets[0](x, t), nets[1](x, t))


BAD = {
    "head": (lambda: TimeWideResNet(width=8, head="linear"), "head = 'linear': allowed are 'time', 'dense'"),
    "precision": (lambda: TimeWideResNet(width=8, precision="half"), "precision = 'half': allowed are 'float32'"),
    "stem": (lambda: TimeWideResNet(width=8, stem=3), "stem = 3: allowed are 1, 2"),
    "a stem's images": (
        lambda: TimeWideResNet(1, 4, (1, 1), 1, stem=2)(torch.zeros(1, 1, 8, 10), torch.zeros(1)),
        "images of 8 x 10: both sides must be divisible by 4",
    ),
    "narrow": (lambda: TimeMLP(width=2), "width = 2: .* even widths of at least 4"),
    "odd": (lambda: TimeMLP(width=5), "width = 5: .* even widths of at least 4"),
    "pooling": (
        lambda: TimeWideResNet(1, 4, (1, 1, 1), 1)(torch.zeros(1, 1, 8, 10), torch.zeros(1)),
        "images of 8 x 10: both sides must be divisible by 4",
    ),
    "strides": (lambda: ConvNet(1, 28), "size = 28: 3 strides of 2 need a multiple of 8"),
    "a convnet's images": (
        lambda: ConvNet(1, 16, 4)(torch.zeros(2, 1, 32, 32)),
        r"images \(1, 16, 16\); got \(1, 32, 32\)",
    ),
    "size 2": (lambda: GrowingNet(2), "size = 2: a growing net allows 4, 8"),
    "size 12": (lambda: GrowingNet(12), "size = 12: a growing net allows 4, 8"),
    "a growing net's images": (lambda: GrowingNet(4, 1, 1)(torch.zeros(1, 1, 8, 8)), r"\(1, 4, 4\); got \(1, 8, 8\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_refused(name):
    call, sentence = BAD[name]
    with pytest.raises(ValueError, match=sentence):
        call()
