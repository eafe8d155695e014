"""LoRA: equal to peft, an exact inverse, exact at strength 0, equal when merged."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from sdtune.errors import ConfigError
from sdtune.families.sd1 import Sd1
from sdtune.methods import adapters
from sdtune.methods.full import Full
from sdtune.methods.lora import TARGETS, Lora
from sdtune.methods.lora_file import read_lora
from sdtune.model import Model
from tests import tiny


class Net(nn.Module):
    """Names as in a U-Net's transformer block and residual block."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        block = nn.Module()
        block.to_q, block.to_k = nn.Linear(12, 12, bias=False), nn.Linear(12, 12)
        self.attn1, self.conv1 = block, nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.proj_in = nn.Conv2d(12, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.proj_in(self.conv1(x)).flatten(2).transpose(1, 2)
        q, k = self.attn1.get_submodule("to_q"), self.attn1.get_submodule("to_k")
        out: Tensor = torch.tanh(q(h)) * k(h)
        return out


LAYERS = ("attn1.to_q", "attn1.to_k", "conv1", "proj_in")


def ours(
    net: Net, *, rank: int = 4, alpha: float = 8.0, dropout: float = 0.0, seed: int = 1
) -> dict[str, nn.Parameter]:
    layers = {n: net.get_submodule(n) for n in LAYERS}
    net.requires_grad_(False)
    return adapters.attach(net, layers, rank=rank, scale=alpha / rank, dropout=dropout, seed=seed)


def randomise_b(net: Net) -> None:
    rng = torch.Generator().manual_seed(5)
    for _, adapter in adapters.adapters_of(net):
        adapter.lora_B.data = torch.randn(adapter.lora_B.shape, generator=rng) * 0.1


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_forward_and_gradients_equal_peft(dropout: float) -> None:
    mine, theirs = Net(), Net()
    parameters = ours(mine, dropout=dropout)
    randomise_b(mine)
    theirs.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=list(LAYERS)), theirs)
    for name, adapter in adapters.adapters_of(mine):
        layer = theirs.get_submodule(name)
        layer.lora_A["default"].weight.data = adapter.lora_A.data.clone()  # type: ignore[index, union-attr]
        layer.lora_B["default"].weight.data = adapter.lora_B.data.clone()  # type: ignore[index, union-attr]
    x = torch.randn(2, 3, 8, 8)
    torch.manual_seed(2)
    a = mine(x)
    torch.manual_seed(2)  # the same inputs are dropped
    b = theirs(x)
    torch.testing.assert_close(a, b)
    a.square().sum().backward()
    b.square().sum().backward()
    for name, p in parameters.items():
        path, _, factor = name.rpartition(".")
        reference = getattr(theirs.get_submodule(path), factor)["default"].weight.grad
        torch.testing.assert_close(p.grad, reference, rtol=1e-4, atol=1e-5)


def test_the_fused_linear_has_the_right_derivatives() -> None:
    rng = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 5), (4, 5), (4,), (2, 5), (4, 2))
    x, W, bias, A, B = (torch.randn(s, generator=rng, dtype=torch.float64) for s in shapes)
    tensors = [x.requires_grad_(), W, bias, A.requires_grad_(), B.requires_grad_()]
    assert torch.autograd.gradcheck(adapters._LowRankLinear.apply, tensors)


def test_training_starts_at_the_base_and_depends_on_the_seed_alone() -> None:
    net, x = Net(), torch.randn(2, 3, 8, 8)
    before = net(x)
    first = {n: p.clone() for n, p in ours(net).items()}
    torch.testing.assert_close(net(x), before, rtol=0, atol=1e-6)
    again = ours(Net())
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert all(bool(p.any()) == n.endswith("lora_A") for n, p in first.items())
    other = ours(Net(), seed=2)
    assert not any(torch.equal(other[n], p) for n, p in first.items() if n.endswith("lora_A"))
    assert not torch.equal(first["attn1.to_q.lora_A"], first["attn1.to_k.lora_A"])
    for p in (p for n, p in first.items() if n.endswith("lora_A")):
        bound = p[0].numel() ** -0.5  # as torch's own Linear and Conv2d
        assert 0.8 * bound < p.abs().max() <= bound


def test_detach_is_an_exact_inverse() -> None:
    net, x = Net(), torch.randn(2, 3, 8, 8)
    modules, state, before = list(net.modules()), copy.deepcopy(net.state_dict()), net(x)
    ours(net)
    randomise_b(net)
    assert not torch.equal(net(x), before)
    adapters.detach(net)
    assert [id(m) for m in net.modules()] == [id(m) for m in modules]
    assert net.state_dict().keys() == state.keys() and all(
        torch.equal(net.state_dict()[k], v) for k, v in state.items()
    )
    assert torch.equal(net(x), before)


def test_strength_zero_is_the_base_bit_by_bit_and_half_is_half() -> None:
    net, x = Net(), torch.randn(2, 3, 8, 8)
    before = net(x)
    ours(net)
    randomise_b(net)
    adapters.set_strength(net, 0.0)
    assert torch.equal(net(x), before)
    diverged = copy.deepcopy(net)
    for _, adapter in adapters.adapters_of(diverged):
        adapter.lora_A.data.fill_(torch.inf)
    assert torch.equal(diverged(x), before)
    adapters.set_strength(net, 0.5)
    half, merged = net(x), copy.deepcopy(net)
    adapters.merge(merged)
    torch.testing.assert_close(merged(x), half)
    assert not any(adapters.adapters_of(merged))


def test_dropout_acts_in_training_only() -> None:
    net, x = Net(), torch.randn(2, 3, 8, 8)
    ours(net, dropout=0.5)
    randomise_b(net)
    assert not torch.equal(net.train()(x), net(x))
    assert torch.equal(net.eval()(x), net(x))
    calm = Net().eval()
    ours(calm, dropout=0.5)
    assert not any(m.training for m in calm.modules()), "an adapter is in the mode of its model"


def test_the_update_is_multiplied_by_alpha_over_rank() -> None:
    assert (Lora(rank=4, alpha=8).scale, Lora(rank=8, alpha=4).scale, Lora(rank=8).scale) == (2.0, 0.5, 1.0)


def test_layers_that_take_no_adapter_are_refused() -> None:
    net = Net()
    net.conv1 = nn.Conv2d(3, 12, 3, groups=3)
    with pytest.raises(ValueError, match="conv1: Conv2d takes no LoRA"):
        ours(net)


def test_a_second_attach_is_refused() -> None:
    net = Net()
    ours(net)
    with pytest.raises(ValueError, match="adapters on this model already"):
        ours(net)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("attention", {"attn1.to_q", "attn1.to_k"}),
        ("all-linear", {"attn1.to_q", "attn1.to_k"}),
        ("many", {"conv1", "proj_in"}),
        ("transformer", {"proj_in"}),
        (("*.to_q", "conv1"), {"attn1.to_q", "conv1"}),
    ],
)
def test_target_sets(targets: str | tuple[str, ...], expected: set[str]) -> None:
    assert Lora(targets=targets).select(Net()).keys() == expected


@pytest.mark.parametrize("targets", ["atention", ("nothing.*",)])
def test_unknown_or_empty_targets_are_refused(targets: str | tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"method.targets"):
        Lora(targets=targets).select(Net())


def test_every_named_set_finds_layers_in_a_real_unet(sd1_unet: Callable[[], nn.Module]) -> None:
    unet = sd1_unet()
    attention = {name.split("attn")[1][2:] for name in Lora(targets="attention").select(unet)}
    assert attention == {"to_q", "to_k", "to_v", "to_out.0"}
    kinds = {type(layer) for layer in Lora(targets="all-linear").select(unet).values()}
    assert kinds == {nn.Linear}
    sizes = {name: len(Lora(targets=name).select(unet)) for name in TARGETS}
    assert sizes["attention"] < sizes["transformer"] < sizes["many"]
    assert sizes["all-linear"] > sizes["attention"]


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Sd1(path=str(tiny.sd1_folder(tmp_path / "model"))).load()


@pytest.mark.parametrize("method", [Lora(rank=2, alpha=3.0, dropout=0.25), Full()])
def test_a_method_trains_what_it_returns_and_takes_it_off(model: Model, method: Lora | Full) -> None:
    unet, before = model.denoiser, copy.deepcopy(model.denoiser.state_dict())
    unet.requires_grad_(True)  # as another method left it
    parameters = method.attach(model, seed=1)
    assert {n for n, p in unet.named_parameters() if p.requires_grad} == parameters.keys() != set()
    for _, adapter in adapters.adapters_of(unet):
        assert (adapter.rank, adapter.scale, adapter.dropout) == (2, 1.5, 0.25)
        adapter.lora_B.data.fill_(0.1)
    method.detach(model)
    assert not any(p.requires_grad for p in unet.parameters())
    assert unet.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[n]) for n, value in unet.state_dict().items())


def test_lora_depends_on_its_seed_and_merges(model: Model) -> None:
    method, before = Lora(rank=2, alpha=3.0), copy.deepcopy(model.denoiser.state_dict())
    first = method.attach(model, seed=1)
    method.detach(model)
    second = method.attach(model, seed=2)
    assert not any(torch.equal(second[n], p) for n, p in first.items() if n.endswith("lora_A"))
    deltas = {}
    for name, adapter in adapters.adapters_of(model.denoiser):
        adapter.lora_B.data.fill_(0.1)
        deltas[f"{name}.weight"] = adapter.delta().detach()
    method.merge(model)
    after = model.denoiser.state_dict()
    assert after.keys() == before.keys(), "no adapter is left"
    for name, value in after.items():
        torch.testing.assert_close(value, before[name] + deltas.get(name, 0.0))


def test_a_file_gives_back_weights_scale_and_what_is_said_about_it(tmp_path: Path) -> None:
    weights = {"a.lora_A": torch.randn(2, 5), "a.lora_B": torch.randn(7, 2)}
    path = Lora(rank=2, alpha=5.0).export(None, weights, tmp_path, "mine", {"steps": 3, "base": "x"})  # type: ignore[arg-type]
    read, scale, about = read_lora(path)
    assert read.keys() == weights.keys() and all(torch.equal(read[n], w) for n, w in weights.items())
    assert (scale, about) == (2.5, {"steps": 3, "base": "x"})
