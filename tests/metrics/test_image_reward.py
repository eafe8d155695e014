"""ImageReward: its names, its network written down a second time, what it is shown, and files that are none of it."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sdtune.errors import EvaluationError
from sdtune.metrics import cache, encoders, image_reward, panel, torchfile
from sdtune.metrics.looks import CLIP_MEAN, CLIP_STD
from sdtune.metrics.nets.image_reward import MEAN, STD, filled, renamed
from sdtune.metrics.places import locate
from sdtune.metrics.registry import ENCODERS
from tests.metrics import tiny_encoders as tiny

PROMPTS = ("a cat", "two dogs, a hat", "x " * 60, "")


def attended(q_BTD: Tensor, k_BSD: Tensor, v_BSD: Tensor, mask_BS: Tensor | None) -> Tensor:
    """With heads of width 64; torch's own attention."""
    q, k, v = (x.unflatten(2, (-1, 64)).transpose(1, 2) for x in (q_BTD, k_BSD, v_BSD))
    allowed = None if mask_BS is None else mask_BS.bool()[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, allowed).transpose(1, 2).flatten(2)


def scored(w: dict[str, Tensor], pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """ImageReward in plain torch, from weights in the names of its own code."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x: Tensor, name: str, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)

    eye, mouth = "blip.visual_encoder", "blip.text_encoder"
    patch = w[f"{eye}.patch_embed.proj.weight"]
    x = F.conv2d(pixels, patch, w[f"{eye}.patch_embed.proj.bias"], stride=patch.shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([w[f"{eye}.cls_token"].expand(len(x), -1, -1), x], 1) + w[f"{eye}.pos_embed"]
    for layer in range(2):
        block = f"{eye}.blocks.{layer}"
        q, k, v = linear(norm(x, f"{block}.norm1", 1e-6), f"{block}.attn.qkv").chunk(3, -1)
        x = x + linear(attended(q, k, v, None), f"{block}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{block}.norm2", 1e-6), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    x = norm(x, f"{eye}.norm", 1e-6)
    words, places = (w[f"{mouth}.embeddings.{name}_embeddings.weight"] for name in ("word", "position"))
    y = norm(words[ids] + places[: ids.shape[1]], f"{mouth}.embeddings.LayerNorm", 1e-12)
    for layer in range(2):
        for kind, source, allowed in (("attention", None, mask), ("crossattention", x, None)):
            at = f"{mouth}.encoder.layer.{layer}.{kind}"
            looked = y if source is None else source
            q, k, v = (
                linear(y, f"{at}.self.query"),
                linear(looked, f"{at}.self.key"),
                linear(looked, f"{at}.self.value"),
            )
            y = norm(linear(attended(q, k, v, allowed), f"{at}.output.dense") + y, f"{at}.output.LayerNorm", 1e-12)
        at = f"{mouth}.encoder.layer.{layer}"
        more = linear(F.gelu(linear(y, f"{at}.intermediate.dense")), f"{at}.output.dense")
        y = norm(more + y, f"{at}.output.LayerNorm", 1e-12)
    y = y[:, 0]
    for number in (0, 2, 4, 6, 7):
        y = linear(y, f"mlp.layers.{number}")
    return (y[:, 0] - 0.16717362830052426) / 1.0333394966054072


def pictures(count: int, size: tuple[int, int] = (96, 64)) -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)) for _ in range(count)]


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> image_reward.Rewarding:
    tiny.image_reward(tmp_path, monkeypatch)
    return image_reward.load(at=tmp_path)


def test_every_weight_has_its_place_and_every_place_its_weight() -> None:
    weights = tiny.image_reward_weights()
    net = filled(weights, Path("a.pt"))
    found = renamed(weights)
    assert set(found) == set(net.state_dict())
    unused = {k for k in weights if k.startswith(("blip.vision_proj", "blip.text_proj")) or k.endswith("position_ids")}
    assert len(found) == len(weights) - len(unused) and len(unused) == 5
    back = {id(value) for value in found.values()}
    assert {k for k, v in weights.items() if id(v) not in back} == unused


def test_scores_are_its_formula(judge: image_reward.Rewarding) -> None:
    shown = [judge.prepare(image, prompt) for image, prompt in zip(pictures(4), PROMPTS, strict=True)]
    ids, mask = (torch.from_numpy(x) for x in judge.tokens(PROMPTS))
    pixels = torch.from_numpy(np.stack([s.pixels for s in shown]))
    expected = scored(tiny.image_reward_weights(), pixels, ids, mask).double().numpy()
    found = judge.scores(shown)
    assert found.shape == (4,) and np.ptp(found) > 0.1
    assert found == pytest.approx(expected, abs=2e-5)
    swapped = judge.scores([shown[0]._replace(prompt=PROMPTS[1]), shown[1]._replace(prompt=PROMPTS[0])])
    assert np.abs(swapped - found[:2]).min() > 1e-3, "both the picture and the prompt count"
    alone = np.concatenate([judge.scores([s]) for s in shown])
    assert alone == pytest.approx(found, abs=2e-5), "what a prompt is filled up with, and the others, change nothing"


def test_a_score_of_the_mean_reward_is_nought() -> None:
    weights = tiny.image_reward_weights()
    weights["mlp.layers.7.weight"] = torch.zeros(1, 16)
    for reward, score in ((MEAN, 0), (MEAN + STD, 1)):
        weights["mlp.layers.7.bias"] = torch.tensor([reward])
        net = filled(weights, Path("a.pt")).eval()
        with torch.inference_mode():
            found = net(torch.zeros(1, 3, 224, 224), torch.ones(1, 35, dtype=torch.long), torch.ones(1, 35))
        assert found.item() == pytest.approx(score, abs=1e-6)


def test_prompts_are_35_tokens_of_bert(judge: image_reward.Rewarding) -> None:
    ids, mask = judge.tokens((*PROMPTS, "A Çat", "[ENC] a"))
    words = [*tiny.wordpieces(), "[DEC]", "[ENC]"]
    read = [[words[i] for i in row] for row in ids]
    assert ids.shape == mask.shape == (6, 35)
    assert read[0] == ["[CLS]", "a", "c", "##a", "##t", "[SEP]", *["[PAD]"] * 29] and mask[0].sum() == 6
    assert read[2] == ["[CLS]", *["x"] * 33, "[SEP]"] and mask[2].all(), "cut"
    assert read[3][:3] == ["[CLS]", "[SEP]", "[PAD]"]
    assert read[4] == read[0], "small letters without accents"
    assert read[5][:4] == ["[CLS]", "[ENC]", "a", "[SEP]"]


@pytest.mark.parametrize(
    ("size", "cut"), [((227, 224), (2, 0)), ((225, 224), (0, 0)), ((224, 229), (0, 2)), ((224, 224), (0, 0))]
)
def test_it_sees_the_middle_as_torchvision_cuts_it(size: tuple[int, int], cut: tuple[int, int]) -> None:
    """The shorter side is 224 already, so nothing is resized; halves go to the even number, 1.5 to 2 and 2.5 to 2."""
    look = ENCODERS["imagereward"].look
    assert look
    (image,) = pictures(1, size)
    left, top = cut
    middle = np.asarray(image, np.float64)[top : top + 224, left : left + 224] / 255
    assert look(image).transpose(1, 2, 0) == pytest.approx((middle - CLIP_MEAN) / CLIP_STD, abs=1e-6)
    assert "torchvision" in look.words and "bicubic" in look.words


def test_scores_are_kept_by_picture_and_prompt(
    judge: image_reward.Rewarding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pictures(2)
    pairs = [(a, "a cat"), (b, "a cat"), (a, "a dog"), (a, "a cat")]
    first = cache.scores(judge, pairs, folder=tmp_path / "kept")
    assert first[0] == first[3] and len(set(first.tolist())) == 3
    direct = judge.scores([judge.prepare(*pair) for pair in pairs])
    assert first == pytest.approx(direct, abs=1e-5)
    monkeypatch.setattr(judge, "scores", lambda pairs: pytest.fail("looked again"))
    assert np.array_equal(cache.scores(judge, pairs, folder=tmp_path / "kept"), first)
    assert cache.scores(judge, []).shape == (0,)


def test_a_comparison_asks_it_where_it_is_here(judge: image_reward.Rewarding, tmp_path: Path) -> None:
    images, prompts = pictures(3), ["a cat", "a dog", "a cat"]
    (opinion,) = panel.opinions(images, prompts, at=tmp_path)
    assert (opinion.key, opinion.label, opinion.needs) == ("imagereward", "ImageReward", 100)
    assert np.array_equal(opinion.values_N, cache.scores(judge, zip(images, prompts, strict=True)))
    assert opinion.record == judge.record()


def test_a_record_says_what_was_loaded(judge: image_reward.Rewarding, tmp_path: Path) -> None:
    record = judge.record()
    assert list(record["sha256"]) == ["ImageReward.pt"] and "35 tokens" in record["look"]
    assert set(locate("imagereward", tmp_path)) == {"ImageReward.pt", "vocab.txt"}
    with pytest.raises(EvaluationError, match=r"gives no features; it is loaded by image_reward.load"):
        encoders.load("imagereward", tmp_path)


def test_a_state_dict_of_torch_is_read_without_being_run(tmp_path: Path) -> None:
    weights = OrderedDict(tiny.image_reward_weights())
    weights._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]  # as torch's own have
    torch.save(weights, tmp_path / "a.pt")  # noqa: TID251 (the published file has this form)
    found = torchfile.read(tmp_path / "a.pt")
    assert set(found) == set(weights) and set(renamed(found)) == set(renamed(weights))


def test_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tiny.image_reward(tmp_path, monkeypatch)
    file, vocabulary = tmp_path / "imagereward/ImageReward.pt", tmp_path / "imagereward/vocab.txt"
    without = {
        k: v for k, v in weights.items() if k != "blip.text_encoder.encoder.layer.1.crossattention.self.key.bias"
    }
    with pytest.raises(
        EvaluationError,
        match=r"a.pt: is no ImageReward: 1 weights are missing .* such as text.*crossattention.self.key.bias",
    ):
        filled(without, Path("a.pt"))
    strange = weights | {"mlp.layers.2.weight": torch.zeros(7, 1024)}
    for other in ({}, {"model.weight": torch.zeros(3)}, strange):
        with pytest.raises(EvaluationError, match=r"a.pt: is no ImageReward: .*fetch it again"):
            filled(other, Path("a.pt"))
    words = tiny.wordpieces()
    vocabulary.write_text("\n".join(words[:-1]), encoding="utf-8")
    with pytest.raises(
        EvaluationError,
        match=r"vocab.txt: has 57 words and the network knows 58; take the vocab.txt of bert-base-uncased",
    ):
        image_reward.load(at=tmp_path)
    vocabulary.write_text("a\nb\n", encoding="utf-8")
    with pytest.raises(EvaluationError, match=r"vocab.txt: is no vocabulary of BERT: has no \[PAD\]"):
        image_reward.load(at=tmp_path)
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(EvaluationError, match=r"ImageReward.pt: "):
        image_reward.load(at=tmp_path)


def test_another_vocabulary_than_bert_s_is_refused(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        tiny.image_reward(tmp_path, patch)
    with pytest.raises(EvaluationError, match=r"vocab.txt: is not the published file .*expected 07eced375cec"):
        image_reward.load(at=tmp_path)
