"""Every adapter layer: equal to peft's or LyCORIS', an exact inverse, exact at strength 0, equal when merged."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from sdtune.errors import ConfigError
from sdtune.methods import adapters, low_rank, products, targets
from sdtune.methods.adapters import Adapter


class Net(nn.Module):
    """Names as in a U-Net's transformer block and residual block."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        block = nn.Module()
        block.to_q, block.to_k = nn.Linear(12, 12, bias=False), nn.Linear(12, 12)
        self.attn1, self.conv1 = block, nn.Conv2d(4, 12, 3, stride=2, padding=1)
        self.proj_in = nn.Conv2d(12, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.proj_in(self.conv1(x)).flatten(2).transpose(1, 2)
        q, k = self.attn1.get_submodule("to_q"), self.attn1.get_submodule("to_k")
        out: Tensor = torch.tanh(q(h)) * k(h)
        return out


LAYERS = ("attn1.to_q", "attn1.to_k", "conv1", "proj_in")
X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
Kind = Callable[..., Adapter]


def lora(base: nn.Module, dropout: float = 0.0) -> Adapter:
    return low_rank.LowRank(base, rank=4, scale=2.0, dropout=dropout)


def pissa(base: nn.Module, dropout: float = 0.0) -> Adapter:
    return low_rank.LowRank(base, rank=4, scale=2.0, dropout=dropout, init="pissa")


def olora(base: nn.Module, dropout: float = 0.0) -> Adapter:
    return low_rank.LowRank(base, rank=4, scale=2.0, dropout=dropout, init="olora")


def dora(base: nn.Module, dropout: float = 0.0) -> Adapter:
    return low_rank.Dora(base, rank=4, scale=2.0, dropout=dropout)


def loha(base: nn.Module, dropout: float = 0.0) -> Adapter:
    return products.Hadamard(base, rank=3, scale=2.0, dropout=dropout)


def lokr(base: nn.Module, dropout: float = 0.0) -> Adapter:
    return products.Kronecker(base, first=(2, 2), rank=None, scale=1.0, dropout=dropout)


def lokr_thin(base: nn.Module, dropout: float = 0.0) -> Adapter:
    return products.Kronecker(base, first=(2, 2), rank=2, scale=1.5, dropout=dropout)


def oft(base: nn.Module, dropout: float = 0.0) -> Adapter:
    return products.Orthogonal(base, block=3, dropout=dropout)


KINDS = (lora, pissa, olora, dora, loha, lokr, lokr_thin, oft)
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)


def ours(net: Net, kind: Kind = lora, *, dropout: float = 0.0, seed: int = 1) -> dict[str, nn.Parameter]:
    net.requires_grad_(False)
    made = {f"unet.{n}": kind(net.get_submodule(n), dropout) for n in LAYERS}
    return adapters.attach({"unet": net}, made, seed=seed)


def strength(net: Net, value: float) -> None:
    adapters.set_strength({"unet": net}, value)


def move(net: Net) -> None:
    """Stand in for a training."""
    rng = torch.Generator().manual_seed(5)
    for _, adapter in adapters.adapters_of({"unet": net}):
        for p in adapter.parameters(recurse=False):
            p.data += torch.randn(p.shape, generator=rng) * 0.1


def gradients(net: Net, parameters: dict[str, nn.Parameter], y: Tensor) -> dict[str, Tensor]:
    return dict(zip(parameters, torch.autograd.grad(y.square().sum(), list(parameters.values())), strict=True))


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_forward_and_gradients_equal_peft(use_dora: bool) -> None:
    mine, theirs = Net(), Net()
    parameters = ours(mine, dora if use_dora else lora)
    theirs.requires_grad_(False)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(LAYERS), use_dora=use_dora)
    inject_adapter_in_model(config, theirs)
    factors = ("lora_A", "lora_B", "lora_magnitude_vector") if use_dora else ("lora_A", "lora_B")
    reference = {
        f"unet.{n}.{factor}": getattr(theirs.get_submodule(n), factor)["default"].weight
        for n in LAYERS
        for factor in factors
    }
    assert reference.keys() == parameters.keys()
    if use_dora:
        starts = [n for n in reference if n.endswith("vector")]
        assert all(torch.allclose(reference[n], parameters[n]) for n in starts), "the magnitude starts as the length"
    move(mine)
    for n, p in parameters.items():
        assert reference[n].shape == p.shape
        reference[n].data = p.data.clone()
    a, b = mine(X), theirs(X)
    torch.testing.assert_close(a, b)
    got, expected = gradients(mine, parameters, a), gradients(theirs, reference, b)
    for n in parameters:
        torch.testing.assert_close(got[n], expected[n], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_starts_from_the_weight_equal_peft(init: str) -> None:
    mine, theirs = nn.Linear(12, 10), nn.Linear(12, 10)
    theirs.load_state_dict(mine.state_dict())
    adapter = low_rank.LowRank(mine, rank=4, scale=2.0, init=init)  # type: ignore[arg-type]
    with torch.no_grad():
        adapter.initialise(torch.Generator())
    wrapped = nn.Sequential(theirs)
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=8, target_modules=["0"], init_lora_weights=init), wrapped)
    layer = wrapped.get_submodule("0")
    a, b = (getattr(layer, f)["default"].weight for f in ("lora_A", "lora_B"))
    torch.testing.assert_close(b @ a, adapter.lora_B @ adapter.lora_A, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(adapter.lora_A.abs(), a.abs(), rtol=1e-3, atol=1e-4)
    left_over = mine.weight - 2 * adapter.lora_B @ adapter.lora_A
    torch.testing.assert_close(layer.base_layer.weight, left_over, rtol=1e-4, atol=1e-5)  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", [loha, lokr, lokr_thin, oft], ids=lambda k: k.__name__)
def test_forward_and_gradients_equal_lycoris(kind: Kind) -> None:
    from lycoris.modules.diag_oft import DiagOFTModule
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule

    made: dict[Kind, tuple[Any, dict[str, Any]]] = {
        loha: (LohaModule, {"lora_dim": 3, "alpha": 6}),
        lokr: (LokrModule, {"lora_dim": 99, "factor": 2, "full_matrix": True}),
        lokr_thin: (LokrModule, {"lora_dim": 2, "alpha": 3, "factor": 2}),
        oft: (DiagOFTModule, {"lora_dim": 3}),
    }
    for name in LAYERS:
        net = Net()
        base = net.get_submodule(name).requires_grad_(False)
        adapter = kind(base)
        with torch.no_grad():
            adapter.initialise(torch.Generator().manual_seed(0))
            for p in adapter.parameters(recurse=False):
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
        cls, options = made[kind]
        theirs = cls("x", base, **options)
        reference = {n: getattr(theirs, n) for n, _ in adapter.named_parameters(recurse=False)}
        with torch.no_grad():
            for n, p in adapter.named_parameters(recurse=False):
                assert reference[n].shape == p.shape, (name, n)
                reference[n].copy_(p)
        width = (12, 9, 9) if name == "proj_in" else (4, 9, 9) if name == "conv1" else (5, 12)
        x = torch.randn(2, *width, generator=torch.Generator().manual_seed(2))
        a, b = adapter(x), theirs(x)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        a.square().sum().backward()
        b.square().sum().backward()
        for n, p in adapter.named_parameters(recurse=False):
            torch.testing.assert_close(p.grad, reference[n].grad, rtol=1e-3, atol=1e-4)


def test_the_fused_linear_has_the_right_derivatives() -> None:
    rng = torch.Generator().manual_seed(0)
    x, A, B = (torch.randn(s, generator=rng, dtype=torch.float64) for s in ((2, 3, 5), (2, 5), (4, 2)))
    layer = nn.Linear(5, 4).double().requires_grad_(False)
    tensors: Any = (x.requires_grad_(), A.requires_grad_(), B.requires_grad_(), layer, 0.7)
    assert torch.autograd.gradcheck(low_rank.LowRankLinear.apply, tensors)


def test_the_product_of_products_has_the_right_derivatives() -> None:
    rng = torch.Generator().manual_seed(0)
    shapes = ((4, 2), (2, 5)) * 2
    factors: Any = [torch.randn(s, generator=rng, dtype=torch.float64).requires_grad_() for s in shapes]
    inputs: Any = (*factors, 0.7)
    assert torch.autograd.gradcheck(products.HadamardProduct.apply, inputs)


@every_kind
def test_training_starts_at_the_base_and_depends_on_the_seed_alone(kind: Kind) -> None:
    net = Net()
    before = net(X)
    first = {n: p.clone() for n, p in ours(net, kind).items()}
    torch.testing.assert_close(net(X), before, rtol=0, atol=1e-5)
    again, other = ours(Net(), kind), ours(Net(), kind, seed=2)
    assert all(torch.equal(first[n], again[n]) for n in first)
    random = kind not in (pissa, olora, oft)
    assert random == any(not torch.equal(first[n], other[n]) for n in first)


def test_gaussian_start() -> None:
    adapter = low_rank.LowRank(nn.Linear(4000, 3), rank=8, scale=1.0, init="gaussian")
    with torch.no_grad():
        adapter.initialise(torch.Generator().manual_seed(0))
    assert float(adapter.lora_A.detach().std()) == pytest.approx(1 / 8, rel=0.02) and not adapter.lora_B.any()


@every_kind
def test_every_parameter_gets_a_gradient(kind: Kind) -> None:
    net = Net()
    parameters = ours(net, kind)
    move(net)
    assert all(bool(g.any()) for g in gradients(net, parameters, net(X)).values())


@every_kind
def test_detach_is_an_exact_inverse(kind: Kind) -> None:
    net = Net()
    modules, state, before = list(net.modules()), copy.deepcopy(net.state_dict()), net(X)
    ours(net, kind)
    move(net)
    assert not torch.allclose(net(X), before, atol=1e-3)
    adapters.detach({"unet": net})
    assert [id(m) for m in net.modules()] == [id(m) for m in modules]
    assert net.state_dict().keys() == state.keys() and all(
        torch.equal(net.state_dict()[k], v) for k, v in state.items()
    )
    assert torch.equal(net(X), before)


@every_kind
def test_strength_zero_is_the_base_bit_by_bit_and_half_is_half(kind: Kind) -> None:
    net = Net()
    before = net(X)
    ours(net, kind)
    move(net)
    strength(net, 0.0)
    assert torch.equal(net(X), before)
    broken = copy.deepcopy(net)
    for _, adapter in adapters.adapters_of({"unet": broken}):
        next(adapter.parameters(recurse=False)).data.fill_(float("nan"))
    assert torch.equal(broken(X), before), "at 0 the change is not even computed"
    for by in (1.0, 0.5):
        strength(net, by)
        expected, merged = net(X), copy.deepcopy(net)
        changes = {n: a.change() for n, a in adapters.adapters_of({"unet": net})}
        adapters.merge({"unet": merged})
        torch.testing.assert_close(merged(X), expected, rtol=1e-4, atol=1e-5)
        for n, change in changes.items():
            layer = n.removeprefix("unet.")
            base: Any = net.get_submodule(layer).weight
            torch.testing.assert_close(merged.get_submodule(layer).weight, base + by * change)
        assert not any(adapters.adapters_of({"unet": merged}))


@every_kind
def test_dropout_acts_in_training_only(kind: Kind) -> None:
    net = Net()
    ours(net, kind, dropout=0.5)
    move(net)
    assert not torch.equal(net.train()(X), net(X))
    assert torch.equal(net.eval()(X), net(X))
    layer, h = net.train().get_submodule("attn1.to_k"), torch.randn(1, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean = layer(h.expand(4000, -1)).mean(0)
        torch.testing.assert_close(mean, net.eval().get_submodule("attn1.to_k")(h)[0], rtol=0.2, atol=0.1)


@every_kind
def test_parameters_have_the_type_of_the_layer(kind: Kind) -> None:
    net = Net().bfloat16()
    parameters = ours(net, kind)
    move(net)
    assert {p.dtype for p in parameters.values()} == {torch.bfloat16}
    y = net(X.bfloat16())
    assert y.dtype == torch.bfloat16
    reference = Net()
    reference.load_state_dict(Net().bfloat16().float().state_dict())
    ours(reference, kind)
    for (_, a), (_, b) in zip(
        adapters.adapters_of({"unet": reference}), adapters.adapters_of({"unet": net}), strict=True
    ):
        for p, q in zip(a.parameters(recurse=False), b.parameters(recurse=False), strict=True):
            p.data = q.data.float()
        for held, given in zip(a.buffers(recurse=False), b.buffers(recurse=False), strict=True):
            held.copy_(given.float())
    torch.testing.assert_close(y.float(), reference(X), rtol=0.1, atol=0.1)


def test_a_second_attach_is_refused() -> None:
    net = Net()
    ours(net)
    with pytest.raises(ValueError, match="adapters on this model already"):
        adapters.attach({"unet": net}, {}, seed=0)


def test_a_rank_that_a_start_cannot_have_is_refused() -> None:
    adapter = low_rank.LowRank(nn.Linear(4, 3), rank=5, scale=1.0, init="pissa")
    with pytest.raises(ConfigError, match=r"method.rank: 5, but init 'pissa' takes at most 3"), torch.no_grad():
        adapter.initialise(torch.Generator())


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("attention", {"attn1.to_q", "attn1.to_k"}),
        ("all-linear", {"attn1.to_q", "attn1.to_k"}),
        ("many", {"conv1", "proj_in"}),
        (("*.to_q", "conv1"), {"attn1.to_q", "conv1"}),
    ],
)
def test_target_sets(wanted: str | tuple[str, ...], expected: set[str]) -> None:
    assert targets.select(Net(), wanted).keys() == expected


@pytest.mark.parametrize("wanted", ["atention", ("nothing.*",), "style"])
def test_unknown_or_empty_targets_are_refused(wanted: str | tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"method.targets"):
        targets.select(Net(), wanted)


def test_every_named_set_finds_its_layers_in_a_real_unet(sd1_unet: Callable[[], nn.Module]) -> None:
    unet = sd1_unet()
    found = {name: set(targets.select(unet, name)) for name in targets.TARGETS if name not in ("style", "content")}
    assert found["cross-attention"] < found["attention"] < found["transformer"] < found["many"]
    assert found["all-linear"] > found["attention"]
    assert all(".attn2." in name for name in found["cross-attention"])


@pytest.mark.parametrize(
    ("limit", "sizes", "expected"), [(8, (320, 1280), 8), (8, (320, 4), 2), (8, (6, 9), 1), (99, (64,), 8)]
)
def test_divisor(limit: int, sizes: tuple[int, ...], expected: int) -> None:
    assert products.divisor(limit, *sizes) == expected
