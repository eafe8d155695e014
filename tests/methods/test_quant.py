"""Quantised frozen weights: how near, how small, what a backward pass keeps, which layers."""

import builtins
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdtune import config as configs
from sdtune.errors import ConfigError
from sdtune.methods import quant
from sdtune.methods.low_rank import Dora, LowRank
from sdtune.methods.quant import QuantConv2d, QuantLinear
from tests import tiny

SCHEMES = ("nf4", "int8", "fp8")
LAYERS = (nn.Linear(64, 96), nn.Linear(64, 96, bias=False), nn.Conv2d(32, 48, 3, stride=2, padding=1))


def packed(layer: nn.Module, scheme: Any, double: bool = False) -> QuantLinear | QuantConv2d:
    root = nn.Sequential(layer).requires_grad_(False)
    assert quant.quantise(root, scheme, double=double) == ["0"]
    found = root[0]
    assert isinstance(found, QuantLinear | QuantConv2d)
    return found


def inputs(layer: nn.Module) -> Tensor:
    shape = (2, 32, 8, 8) if isinstance(layer, nn.Conv2d) else (2, 7, 64)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.mark.parametrize(("scheme", "error"), [("nf4", 0.12), ("int8", 0.01), ("fp8", 0.04)])
@pytest.mark.parametrize("layer", LAYERS, ids=["linear", "no bias", "conv"])
def test_it_is_near_and_computes_with_what_it_holds(layer: nn.Module, scheme: str, error: float) -> None:
    own = layer.weight.detach().clone()  # type: ignore[operator]
    quantised = packed(layer, scheme)
    weight = quantised.weight
    assert float((weight - own).norm() / own.norm()) < error and not torch.equal(weight, own)
    x = inputs(layer)
    reference = type(layer).__new__(type(layer))
    reference.__dict__.update(
        layer.__dict__ | {"_parameters": {"weight": nn.Parameter(weight, False), "bias": layer.bias}}
    )
    a, b = quantised(x), reference(x)
    torch.testing.assert_close(a, b)
    (ga,), (gb,) = (torch.autograd.grad(y.square().sum(), x) for y in (a, b))
    torch.testing.assert_close(ga, gb, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("scheme", "double", "most"), [("nf4", False, 0.60), ("nf4", True, 0.53), ("int8", False, 1.1), ("fp8", False, 1.1)]
)
def test_it_is_small(scheme: Any, double: bool, most: float) -> None:
    unet = tiny.unet()
    sizes = {name: p.numel() for name, p in unet.named_parameters()}
    names = quant.quantise(unet, scheme, double=double)
    parameters = sum(sizes[f"{name}.weight"] for name in names)
    held = sum(unet.get_submodule(name).packed.nbytes for name in names)
    assert parameters > 0.6 * sum(sizes.values())
    assert 0.5 < held / parameters <= most
    assert not [n for n, p in unet.named_parameters() if n.removesuffix(".weight") in names], "the original is gone"


def test_small_layers_stay() -> None:
    root = nn.ModuleDict({"small": nn.Linear(32, 32), "odd": nn.Linear(67, 67), "large": nn.Linear(64, 64)})
    assert quant.quantise(root, "int8") == ["large"]


def test_first_last_embedding_and_small_layers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quant, "SMALL", 1)
    unet = tiny.unet()
    names = set(quant.quantise(unet, "int8"))
    rest = {n for n, m in unet.named_modules() if type(m) in (nn.Linear, nn.Conv2d)}
    assert {"conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"} <= rest
    assert "mid_block.attentions.0.proj_out" in names and "mid_block.resnets.0.conv1" in names
    assert not any("norm" in n or "embed" in n for n in names)


@pytest.mark.parametrize("kind", [LowRank, Dora])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("layer", LAYERS, ids=["linear", "no bias", "conv"])
def test_no_backward_pass_keeps_a_weight(layer: nn.Module, scheme: str, kind: type[LowRank]) -> None:
    adapter = kind(packed(layer, scheme), rank=2, scale=1.0)
    with torch.no_grad():
        adapter.initialise(torch.Generator().manual_seed(0))
        adapter.lora_B.add_(0.1)
    kept: list[torch.Size] = []

    def keep(t: Tensor) -> Tensor:
        kept.append(t.shape)
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = adapter(inputs(layer))
    assert kept
    size = layer.weight.numel()  # type: ignore[operator]
    assert not [s for s in kept if s.numel() == size and tuple(s) == tuple(layer.weight.shape)]  # type: ignore[arg-type]
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in adapter.parameters(recurse=False))
    merged = adapter.base.weight + adapter.change()
    x = inputs(layer).detach()
    plain = type(layer).forward
    reference = type(layer).__new__(type(layer))
    reference.__dict__.update(
        layer.__dict__ | {"_parameters": {"weight": nn.Parameter(merged, False), "bias": layer.bias}}
    )
    torch.testing.assert_close(adapter(x), plain(reference, x), rtol=1e-3, atol=1e-4)


def test_adapters_are_in_the_type_that_is_computed_in() -> None:
    for scheme in SCHEMES:
        adapter = LowRank(packed(nn.Linear(64, 96).bfloat16(), scheme), rank=2, scale=1.0)
        assert adapter.lora_A.dtype == torch.bfloat16
        assert adapter(torch.randn(3, 64).bfloat16()).dtype == torch.bfloat16


def test_without_bitsandbytes_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    true_import = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("bitsandbytes"):
            raise ImportError(name)
        return true_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r"nf4 needs bitsandbytes; pip install 'sdtune\[train-extras\]'"):
        packed(nn.Linear(64, 96), "nf4")
    packed(nn.Linear(64, 96), "int8")


@pytest.mark.parametrize("kind", ["loha", "lokr", "oft", "lora", "dora"])
def test_other_methods_have_no_quantised_base(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"method.base: no such key"):
        configs.load(None, [f"method.type={kind}", "method.base=nf4"])


def test_it_is_not_merged_into_quantised_weights() -> None:
    from sdtune.methods.qlora import Qlora

    class Fake:
        denoiser_name, source, parts, unread = "unet", "fake", {"unet": tiny.unet()}, ()
        denoiser = parts["unet"]

    method = Qlora(rank=2, base="int8", targets="transformer")
    method.attach(Fake(), seed=0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="cannot be merged into quantised weights"):
        method.merge(Fake())  # type: ignore[arg-type]
