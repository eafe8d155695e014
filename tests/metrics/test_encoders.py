"""Encoders from files to vectors: against the models themselves, and against a forward that is written out here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sdtune.errors import EvaluationError
from sdtune.metrics import encoders, lpips, open_clip
from sdtune.metrics.nets import trunks
from sdtune.metrics.nets.inception import Inception
from sdtune.metrics.nets.resnet import Sscd
from sdtune.metrics.places import NotHere
from sdtune.metrics.registry import ENCODERS, METRICS, encoders_of
from tests.metrics import tiny_encoders as tiny


def pictures(count: int, side: int = 64) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (side, side + i, 3), np.uint8)) for i in range(count)]


def seen(encoder: encoders.Encoder, images: list[Image.Image]) -> NDArray[np.float64]:
    found = encoder.encode([encoder.prepare(im) for im in images])
    assert found.dtype == np.float64
    return found


# ---- the registry


def test_every_encoder_of_a_metric_is_known() -> None:
    assert {name for metric in METRICS.values() for name in encoders_of(metric)} == set(ENCODERS)


def test_facts_are_whole() -> None:
    for name, spec in ENCODERS.items():
        assert spec.name == name and spec.title and spec.licence
        assert (spec.size_mb > 0) == bool(spec.parts), name
        assert spec.source


# ---- models of transformers


def test_clip_is_transformers_own(tmp_path: Path) -> None:
    model = tiny.clip(tmp_path)
    encoder = encoders.load("clip-b32", tmp_path)
    images = pictures(3)
    with torch.inference_mode():
        pixels = torch.from_numpy(np.stack([encoder.prepare(im) for im in images]))
        expected = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    assert np.allclose(seen(encoder, images), F.normalize(expected).numpy(), atol=1e-6)


def test_clip_reads_prompts_alike_however_they_are_batched(tmp_path: Path) -> None:
    model = tiny.clip(tmp_path)
    encoder = encoders.load("clip-b32", tmp_path)
    assert isinstance(encoder, encoders.ClipEncoder)
    prompts = ["a cat", "a very long sentence about a dog that runs along the beach", ""]
    together = encoder.texts(prompts)
    assert np.allclose(together, np.concatenate([encoder.texts([p]) for p in prompts]), atol=1e-6)
    ids = encoder.tokenizer(prompts[0], return_tensors="pt").input_ids
    with torch.inference_mode():
        expected = model.text_projection(model.text_model(input_ids=ids).pooler_output)
    assert np.allclose(together[0], F.normalize(expected)[0].numpy(), atol=1e-6)
    assert encoder.logit_scale == pytest.approx(float(model.logit_scale.detach().exp()))
    assert len(encoder.texts(["a word " * 200])) == 1  # longer than the encoder reads


def test_a_pickled_clip_gives_the_same(tmp_path: Path) -> None:
    tiny.clip(tmp_path / "a")
    tiny.clip(tmp_path / "b")
    folder = tmp_path / "b/clip-b32"
    weights = {k: v.half() if "proj" in k else v for k, v in load_file(folder / "model.safetensors").items()}
    weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]  # old files have it
    tiny.torch_saved(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    a, b = (encoders.load("clip-b32", tmp_path / where) for where in "ab")
    assert np.allclose(seen(a, pictures(2)), seen(b, pictures(2)), atol=1e-3)
    assert a.fingerprint != b.fingerprint and b.sha256.keys() == {"pytorch_model.bin"}


def test_dinov2_and_dino_give_the_class_token(tmp_path: Path) -> None:
    for name, model in (("dinov2-b14", tiny.dinov2(tmp_path)), ("dino-s16", tiny.dino(tmp_path))):
        encoder = encoders.load(name, tmp_path)
        pixels = torch.from_numpy(np.stack([encoder.prepare(im) for im in pictures(2)]))
        with torch.inference_mode():
            expected = model(pixel_values=pixels).last_hidden_state[:, 0]
        assert np.allclose(seen(encoder, pictures(2)), expected.numpy(), atol=1e-6), name


@pytest.mark.parametrize(
    ("old", "new"),
    [("attention.q_proj", "attention.attention.query"), ("attention.o_proj", "attention.output.dense")],
)
def test_dinov2_in_the_names_it_was_published_in(tmp_path: Path, old: str, new: str) -> None:
    tiny.dinov2(tmp_path)
    before = seen(encoders.load("dinov2-b14", tmp_path), pictures(1))
    file = tmp_path / "dinov2-b14/model.safetensors"
    save_file({k.replace(old, new): v for k, v in load_file(file).items()}, file)
    assert np.array_equal(seen(encoders.load("dinov2-b14", tmp_path), pictures(1)), before)


def test_lacking_weights_are_named(tmp_path: Path) -> None:
    tiny.dinov2(tmp_path)
    file = tmp_path / "dinov2-b14/model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "layernorm" not in k}, file)
    with pytest.raises(EvaluationError, match=r"2 weights of Dinov2Model are missing, such as layernorm.bias"):
        encoders.load("dinov2-b14", tmp_path)


def test_another_model_is_refused(tmp_path: Path) -> None:
    tiny.dinov2(tmp_path, "dino-s16")
    with pytest.raises(EvaluationError, match="of a model of type 'dinov2', not 'vit'"):
        encoders.load("dino-s16", tmp_path)


def test_what_is_not_there_is_said_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        NotHere,
        match=r"clip-l14: its weights are not here \(no model.safetensors or .*--get clip-l14 \(about 1,710 MB\), or copy the files",
    ):
        encoders.load("clip-l14", tmp_path)
    with pytest.raises(EvaluationError, match="clip-x: no such encoder; known: shipped, inception"):
        encoders.load("clip-x", tmp_path)


def test_other_files_than_the_published_are_refused(tmp_path: Path) -> None:
    (tmp_path / "inception").mkdir()
    (tmp_path / "inception/pt_inception-2015-12-05-6726825d.pth").write_bytes(b"something else")
    with pytest.raises(EvaluationError, match=r"is not the published file \(SHA-256 .*, expected 6726825d0af5"):
        encoders.load("inception", tmp_path)


# ---- our own networks


def test_inception_and_sscd_from_their_files(tmp_path: Path) -> None:
    weights: dict[str, Tensor] = {}
    for name, make in (("inception", Inception), ("sscd", Sscd)):
        net = tiny.shaken(make)
        weights = {k.removeprefix("backbone."): v for k, v in net.state_dict().items() if "num_batches" not in k}
        path = tiny.torch_saved(weights, tmp_path / f"{name}.pth")
        spec = ENCODERS[name]
        encoder = encoders.build(spec, {path.name: path}, {path.name: "0" * 64})
        assert isinstance(encoder, encoders.NetEncoder)
        pixels = np.random.default_rng(0).normal(size=(3, 80, 80)).astype(np.float32)
        with torch.inference_mode():
            expected = net(torch.from_numpy(pixels)[None])
        found = encoder.encode([pixels])
        assert found.shape == (1, spec.dimension) and np.array_equal(found, expected.double().numpy())
    weights["fc.weight"] = weights["fc.weight"][:5]
    path = tiny.torch_saved(weights, tmp_path / "sscd.pth")
    with pytest.raises(EvaluationError, match=r"does not fit Sscd: 1 tensors, such as backbone.fc.weight"):
        encoders.build(ENCODERS["sscd"], {path.name: path}, {path.name: ""})


def test_the_shipped_scorer_is_the_same_as_ever() -> None:
    encoder = encoders.load("shipped")
    assert isinstance(encoder, encoders.ShippedEncoder)
    assert np.allclose(seen(encoder, pictures(3)), encoder.scorer.features(pictures(3)), atol=1e-6)
    assert encoder.encode([encoder.prepare(pictures(1)[0])]).shape[1] == encoder.spec.dimension
    with pytest.raises(EvaluationError, match="shipped: has no text side; take clip-l14"):
        encoder.texts(["a cat"])


# ---- LPIPS


def perceptual() -> encoders.Perceptual:
    torch.manual_seed(3)
    trunk = trunks.alexnet()
    weights = [torch.rand(1, c, 1, 1) for c in (64, 192, 384, 256, 256)]
    return encoders.Perceptual(ENCODERS["lpips-alex"], "cpu", {"alex.pth": ""}, trunk, weights)


def test_lpips_is_its_formula() -> None:
    """Written again in numpy, layer by layer and place by place."""
    measure = perceptual()
    a, b = measure.prepare(*pictures(2))
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    total, layers = 0.0, []
    for x in (a, b):
        scaled = (x - shift[:, None, None]) / scale[:, None, None]
        with torch.inference_mode():
            layers.append([f[0].double().numpy() for f in measure.trunk(torch.from_numpy(scaled[None]).float())])
    for one, other, weight in zip(*layers, measure.weights, strict=True):
        for y in range(one.shape[1]):
            for z in range(one.shape[2]):
                p, q = (f[:, y, z] / (np.sqrt((f[:, y, z] ** 2).sum()) + 1e-10) for f in (one, other))
                total += float((weight.flatten().numpy() * (p - q) ** 2).sum()) / (one.shape[1] * one.shape[2])
    assert measure.distances([(a, b)])[0] == pytest.approx(total, rel=1e-4)


def test_lpips_is_symmetric_and_nought_for_equals() -> None:
    measure = perceptual()
    a, b = measure.prepare(*pictures(2))
    there, back, same = measure.distances([(a, b), (b, a), (a, a)])
    assert there == pytest.approx(back, rel=1e-6) and there > 0 and same == 0


def test_lpips_layers_do_not_see_brightness_of_features() -> None:
    """Channels have unit length: features that are twice as large are the same."""
    x = torch.rand(2, 5, 3, 3)
    assert float(lpips.distance([x], [2 * x], [torch.ones(5)]).max()) < 1e-12


def test_lpips_takes_the_second_picture_s_size_and_refuses_tiny_ones() -> None:
    measure = perceptual()
    a, b = measure.prepare(Image.new("RGB", (100, 90)), Image.new("RGB", (64, 48)))
    assert a.shape == b.shape == (3, 48, 64)
    assert a[0, 0, 0] == -1
    with pytest.raises(EvaluationError, match="a picture of 31x40; LPIPS needs 32 pixels"):
        measure.prepare(Image.new("RGB", (64, 64)), Image.new("RGB", (31, 40)))
    assert len(measure.distances([measure.prepare(*[Image.new("RGB", (32, 32), c)] * 2) for c in ("red", "blue")])) == 2


def test_lpips_from_its_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    trunk = trunks.alexnet()
    body = dict(trunk.state_dict()) | {"classifier.1.weight": torch.zeros(2, 2)}
    heads = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate((64, 192, 384, 256, 256))}
    tiny.torch_saved(body, tmp_path / "lpips-alex/alexnet-owt-7be5be79.pth")
    tiny.torch_saved(heads, tmp_path / "lpips-alex/alex.pth")
    with pytest.raises(EvaluationError, match="is not the published file"):
        encoders.load_pairs("lpips-alex", tmp_path)
    monkeypatch.setattr("sdtune.metrics.places.expected_sha256", lambda spec, file: None)
    measure = encoders.load_pairs("lpips-alex", tmp_path)
    assert [w.flatten().tolist() for w in measure.weights] == [v.flatten().tolist() for v in heads.values()]
    tiny.torch_saved(dict(list(heads.items())[:4]), tmp_path / "lpips-alex/alex.pth")
    with pytest.raises(EvaluationError, match=r"has not the weights lin0.model.1.weight to lin4"):
        encoders.load_pairs("lpips-alex", tmp_path)


def test_the_aesthetic_head_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published net, with its names and without its dropout, against ours."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(768, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2), nn.Linear(128, 64), nn.Dropout(0.1),
        nn.Linear(64, 16), nn.Linear(16, 1),
    ).eval()  # fmt: skip
    weights = {f"layers.{k}": v for k, v in net.state_dict().items()}
    tiny.torch_saved(weights, tmp_path / "aesthetic/sac+logos+ava1-l14-linearMSE.pth")
    monkeypatch.setattr("sdtune.metrics.places.expected_sha256", lambda spec, file: None)
    weight, bias, sha256 = encoders.load_head("aesthetic", tmp_path)
    x = F.normalize(torch.randn(4, 768))
    with torch.inference_mode():
        assert np.allclose(x.numpy() @ weight + bias, net(x)[:, 0].numpy(), atol=1e-5)
    assert list(sha256) == ["sac+logos+ava1-l14-linearMSE.pth"]


# ---- open_clip's names

WIDTH, HEADS, LAYERS, VOCABULARY, PATCH, SIDE = 16, 2, 2, 30, 7, 14


def open_clip_weights() -> dict[str, Tensor]:
    """A tiny CLIP in the names and forms of HPS_v2.1_compressed.pt."""
    torch.manual_seed(4)
    found: dict[str, Tensor] = {
        "positional_embedding": torch.randn(8, WIDTH), "text_projection": torch.randn(WIDTH, 6),
        "logit_scale": torch.tensor(3.0), "attn_mask": torch.zeros(8, 8), "token_embedding.weight": torch.randn(VOCABULARY, WIDTH),
        "ln_final.weight": torch.rand(WIDTH), "ln_final.bias": torch.randn(WIDTH),
        "visual.class_embedding": torch.randn(WIDTH), "visual.positional_embedding": torch.randn(5, WIDTH),
        "visual.proj": torch.randn(WIDTH, 6), "visual.conv1.weight": torch.randn(WIDTH, 3, PATCH, PATCH),
    }  # fmt: skip
    for norm in ("visual.ln_pre", "visual.ln_post"):
        found |= {f"{norm}.weight": torch.rand(WIDTH), f"{norm}.bias": torch.randn(WIDTH)}
    for side in ("", "visual."):
        for layer in range(LAYERS):
            at = f"{side}transformer.resblocks.{layer}."
            shapes = {
                "attn.in_proj_weight": (3 * WIDTH, WIDTH), "attn.in_proj_bias": (3 * WIDTH,),
                "attn.out_proj.weight": (WIDTH, WIDTH), "attn.out_proj.bias": (WIDTH,), "ln_1.weight": (WIDTH,), "ln_1.bias": (WIDTH,),
                "ln_2.weight": (WIDTH,), "ln_2.bias": (WIDTH,), "mlp.c_fc.weight": (40, WIDTH), "mlp.c_fc.bias": (40,),
                "mlp.c_proj.weight": (WIDTH, 40), "mlp.c_proj.bias": (WIDTH,),
            }  # fmt: skip
            found |= {at + name: 0.3 * torch.randn(shape) for name, shape in shapes.items()}
    return found


def blocks(x: Tensor, w: dict[str, Tensor], side: str, mask: Tensor | None) -> Tensor:
    """Pre-norm transformer blocks with torch's own attention, which has in_proj as open_clip does."""
    for layer in range(LAYERS):
        part = {
            k.partition(f"resblocks.{layer}.")[2]: v
            for k, v in w.items()
            if k.startswith(f"{side}transformer.resblocks.{layer}.")
        }
        attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        attention.load_state_dict({k.removeprefix("attn."): v for k, v in part.items() if k.startswith("attn.")})
        y = F.layer_norm(x, (WIDTH,), part["ln_1.weight"], part["ln_1.bias"])
        x = x + attention(y, y, y, need_weights=False, attn_mask=mask)[0]
        y = F.layer_norm(x, (WIDTH,), part["ln_2.weight"], part["ln_2.bias"])
        y = F.gelu(F.linear(y, part["mlp.c_fc.weight"], part["mlp.c_fc.bias"]))
        x = x + F.linear(y, part["mlp.c_proj.weight"], part["mlp.c_proj.bias"])
    return x


def test_open_clip_weights_give_what_open_clip_computes() -> None:
    w = open_clip_weights()
    model = open_clip.to_transformers(w, Path("hps.pt"), heads=(HEADS, HEADS)).eval()
    pixels, ids = torch.randn(2, 3, SIDE, SIDE), torch.tensor([[28, 3, 4, 29, 0, 0, 0, 0], [28, 5, 29, 0, 0, 0, 0, 0]])
    with torch.inference_mode():
        x = F.conv2d(pixels, w["visual.conv1.weight"], stride=PATCH).flatten(2).mT
        x = torch.cat([w["visual.class_embedding"].expand(2, 1, -1), x], 1) + w["visual.positional_embedding"]
        x = F.layer_norm(x, (WIDTH,), w["visual.ln_pre.weight"], w["visual.ln_pre.bias"])
        x = blocks(x, w, "visual.", None)[:, 0]
        seen_BE = F.layer_norm(x, (WIDTH,), w["visual.ln_post.weight"], w["visual.ln_post.bias"]) @ w["visual.proj"]
        found = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        assert torch.allclose(found, seen_BE, atol=1e-4)
        causal = torch.full((8, 8), -torch.inf).triu(1)
        t = blocks(w["token_embedding.weight"][ids] + w["positional_embedding"], w, "", causal)
        t = F.layer_norm(t, (WIDTH,), w["ln_final.weight"], w["ln_final.bias"])
        read_BE = t[torch.arange(2), ids.argmax(1)] @ w["text_projection"]
        found = model.text_projection(model.text_model(input_ids=ids).pooler_output)
        assert torch.allclose(found, read_BE, atol=1e-4)
        assert float(model.logit_scale) == 3


def test_heads_of_vit_h14_are_known_from_its_widths() -> None:
    assert (1280 // open_clip.WIDTH_OF_HEADS[0], 1024 // open_clip.WIDTH_OF_HEADS[1]) == (16, 16)


def test_weights_that_are_no_clip_are_refused() -> None:
    w = open_clip_weights()
    del w["visual.proj"]
    with pytest.raises(EvaluationError, match=r"hps.pt: is no CLIP in open_clip's names"):
        open_clip.to_transformers(w, Path("hps.pt"), heads=(2, 2))
