"""Tiny captioners of the true classes with random weights, in folders as the Hub has them; and an ONNX file, byte by byte."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BlipConfig,
    BlipForConditionalGeneration,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2VisionConfig,
    PreTrainedTokenizerFast,
)

WORDS = (
    "a", "photo", "of", "red", "blue", "green", "apple", "dog", "cat", "sun", "house", "on", "the", "table", "with", "arafed", "big",
    "small",
)  # fmt: skip
SIDE = 32


def pictures(folder: Path, names: Sequence[str], *, seed: int = 0) -> Path:
    """Pictures of random colours and sizes."""
    rng = np.random.default_rng(seed)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = rng.integers(20, 60, 2)
        Image.fromarray(rng.integers(0, 256, (int(height), int(width), 3), np.uint8)).save(path)
    return folder


# ---- BLIP


def bert_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """One token a word, as BERT's: [CLS] ... [SEP]. Like BLIP's own it does not know the mark of the beginning."""
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = {token: i for i, token in enumerate([*marks, *WORDS])}
    made = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])]
    )
    words = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    words.save_pretrained(folder)
    return words


def blip(folder: Path, *, seed: int = 0) -> Path:
    words = bert_tokenizer(folder)
    size = len(words)
    text = {
        "vocab_size": size + 2, "hidden_size": 16, "encoder_hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64, "projection_dim": 16,
        "bos_token_id": size, "eos_token_id": size + 1, "pad_token_id": 0, "sep_token_id": 3,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": SIDE, "patch_size": 8, "projection_dim": 16,
    }  # fmt: skip
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=16, image_text_hidden_size=16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BlipForConditionalGeneration(config)
        spread(model)
    model.save_pretrained(folder, safe_serialization=True)
    look = {"do_normalize": True, "do_resize": True, "image_processor_type": "BlipImageProcessor", "resample": 3}
    numbers = {
        "image_mean": [0.48, 0.46, 0.41],
        "image_std": [0.27, 0.26, 0.28],
        "size": {"height": SIDE, "width": SIDE},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(look | numbers), encoding="utf-8")
    return folder


def spread(model: torch.nn.Module) -> None:
    """Weights large enough for captions to depend on the picture."""
    with torch.no_grad():
        for value in model.parameters():
            if value.dim() > 1:
                value.normal_(std=0.4)


# ---- Florence-2


def bart_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Bytes and a few words, as BART's: <s> ... </s>, and a place for pictures."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *letters])}
    merges = []
    for word in WORDS:
        parts = ["Ġ", *word]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts[:2] = [parts[0] + parts[1]]
            vocab.setdefault(parts[0], len(vocab))
    made = Tokenizer(models.BPE(vocab, list(dict.fromkeys(merges)), unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<image>", special=True)])
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    words = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    words.save_pretrained(folder)
    return words


def florence2(folder: Path, *, seed: int = 0) -> Path:
    words = bart_tokenizer(folder)
    vision = Florence2VisionConfig(
        depths=(1, 1), patch_size=(7, 3), patch_stride=(4, 2), patch_padding=(3, 1), patch_prenorm=(False, True),
        embed_dim=(8, 16), num_heads=(2, 2), num_groups=(2, 2), window_size=4, projection_dim=16,
        max_temporal_embeddings=5, max_position_embeddings=10, drop_path_rate=0.0,
    )  # fmt: skip
    text = BartConfig(
        vocab_size=len(words), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=256,
        bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    image = words.convert_tokens_to_ids("<image>")
    config = Florence2Config(vision_config=vision.to_dict(), text_config=text.to_dict(), image_token_id=image)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Florence2ForConditionalGeneration(config)
        spread(model)
    model.save_pretrained(folder, safe_serialization=True)
    look = {
        "crop_size": {"height": SIDE, "width": SIDE}, "do_center_crop": False, "do_convert_rgb": None, "do_normalize": True,
        "do_rescale": True, "do_resize": True, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
        "image_processor_type": "CLIPImageProcessor", "image_seq_length": 17, "processor_class": "Florence2Processor",
        "resample": 3, "rescale_factor": 0.00392156862745098, "size": {"height": SIDE, "width": SIDE},
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(look), encoding="utf-8")
    return folder


# ---- a tagger: sigmoid(mean over the picture @ weights + bias), so that what it says of a colour can be told beforehand

TAGS = (("general", 9), ("1girl", 0), ("blue_sky", 0), ("^_^", 0), ("hatsune_miku", 4), ("red_background", 0))


def wd14(
    folder: Path, weights: Sequence[Sequence[float]], bias: Sequence[float], *, side: int = 16, batch: int | None = None
) -> Path:
    """A folder with model.onnx and selected_tags.csv. `weights`: blue, green, red (of 0 to 255) to each of `TAGS`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["tag_id,name,category,count", *(f"{i},{name},{kind},{100 - i}" for i, (name, kind) in enumerate(TAGS))]
    (folder / "selected_tags.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "model.onnx").write_bytes(_onnx(np.array(weights, np.float32), np.array(bias, np.float32), side, batch))
    return folder


def _onnx(weights: np.ndarray, bias: np.ndarray, side: int, batch: int | None) -> bytes:
    """A ModelProto: field numbers are those of onnx.proto3."""
    graph = b"".join(
        [
            _node("ReduceMean", ["x"], "mean", _ints("axes", [1, 2]) + _int("keepdims", 0)),
            _node("MatMul", ["mean", "w"], "scores"),
            _node("Add", ["scores", "b"], "shifted"),
            _node("Sigmoid", ["shifted"], "y"),
            _field(2, b"tagger"),
            _field(5, _tensor("w", weights)),
            _field(5, _tensor("b", bias)),
            _field(11, _value("x", [batch or "n", side, side, 3])),
            _field(12, _value("y", [batch or "n", len(bias)])),
        ]
    )
    return _number(1, 8) + _field(7, graph) + _field(8, _number(2, 13))  # IR 8, opset 13


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _field(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _node(kind: str, inputs: Sequence[str], output: str, attributes: bytes = b"") -> bytes:
    names = b"".join(_field(1, name.encode()) for name in inputs) + _field(2, output.encode())
    return _field(1, names + _field(3, output.encode()) + _field(4, kind.encode()) + attributes)


def _int(name: str, value: int) -> bytes:
    return _field(5, _field(1, name.encode()) + _number(3, value) + _number(20, 2))


def _ints(name: str, values: Sequence[int]) -> bytes:
    return _field(5, _field(1, name.encode()) + b"".join(_number(8, v) for v in values) + _number(20, 7))


def _tensor(name: str, values: np.ndarray) -> bytes:
    dims = b"".join(_number(1, size) for size in values.shape)
    return dims + _number(2, 1) + _field(8, name.encode()) + _field(9, values.tobytes())


def _value(name: str, shape: Sequence[int | str]) -> bytes:
    dims = b"".join(_field(1, _number(1, d) if isinstance(d, int) else _field(2, d.encode())) for d in shape)
    return _field(1, name.encode()) + _field(2, _field(1, _number(1, 1) + _field(2, dims)))
