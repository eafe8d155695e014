"""Encoders in memory: pictures, and prompts where there is a text side, to vectors. Which there are: registry.py.

All compute in float32. An encoder's `fingerprint` names its weights, what it is shown and its arithmetic; features of
equal fingerprints compare, others do not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdtune.errors import EvaluationError
from sdtune.metrics import aesthetic, lpips, torchfile
from sdtune.metrics.looks import Pixels
from sdtune.metrics.open_clip import to_transformers
from sdtune.metrics.places import check, locate, spec_of
from sdtune.metrics.registry import Spec
from sdtune.metrics.vectors import unit

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sdtune.metrics.features import Scorer

Array = NDArray[np.float64]

FORMAT = 1
"""To be raised with anything that changes what comes out of the same weights."""
TEXTS = 64
"""Prompts that are encoded at once."""


class Known:
    """What is known of loaded weights: where they are from, and what a result must say of them."""

    look: str
    """What is done to a picture before it is seen, in words."""

    def __init__(self, spec: Spec, device: str, sha256: Mapping[str, str]) -> None:
        self.spec, self.name, self.device, self.sha256 = spec, spec.name, device, dict(sha256)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights, of what is shown, and of the arithmetic."""
        parts = [FORMAT, self.spec.kind, sorted(self.sha256.values()), self.look, "float32"]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def record(self) -> dict[str, Any]:
        """What a result must say for others to compare with it."""
        return {
            "encoder": self.name, "title": self.spec.title, "source": self.spec.source, "licence": self.spec.licence,
            "sha256": self.sha256, "look": self.look, "precision": "float32", "fingerprint": self.fingerprint,
        }  # fmt: skip


class Encoder(Known, ABC):
    """A network for pictures. `prepare` may run in threads, `encode` keeps the device busy."""

    def __init__(self, spec: Spec, device: str, sha256: Mapping[str, str]) -> None:
        super().__init__(spec, device, sha256)
        self.look = spec.look.words if spec.look else "in its own size"

    @abstractmethod
    def prepare(self, image: Image.Image) -> Pixels:
        """What the network sees of an RGB picture."""

    @abstractmethod
    def encode(self, pictures: Sequence[Pixels]) -> Array:
        """Features of the prepared pictures, (B, D): as published, of unit length for CLIP and SSCD alone."""

    def texts(self, prompts: Sequence[str]) -> Array:
        """Embeddings of unit length in the space of the pictures', (N, D). Raises EvaluationError where there is no text side."""
        raise EvaluationError(f"{self.name}: has no text side; take clip-l14 or clip-b32")


class NetEncoder(Encoder):
    """A module that takes (B, 3, H, W) and gives (B, D)."""

    def __init__(self, spec: Spec, device: str, sha256: Mapping[str, str], net: nn.Module) -> None:
        super().__init__(spec, device, sha256)
        self.net = net.to(device).float().eval().requires_grad_(False)

    def prepare(self, image: Image.Image) -> Pixels:
        assert self.spec.look
        return self.spec.look(image)

    def encode(self, pictures: Sequence[Pixels]) -> Array:
        import torch

        with torch.inference_mode():
            found: Tensor = self._run(torch.from_numpy(np.stack(pictures)).to(self.device))
        return np.asarray(found.double().cpu().numpy())

    def _run(self, pixels_B3HW: Tensor) -> Tensor:
        found: Tensor = self.net(pixels_B3HW)
        return found


class TokenEncoder(NetEncoder):
    """A vision transformer: its class token after the last norm."""

    def _run(self, pixels_B3HW: Tensor) -> Tensor:
        found: Tensor = self.net(pixel_values=pixels_B3HW).last_hidden_state[:, 0]
        return found


class ClipEncoder(NetEncoder):
    """CLIP in transformers' classes. Embeddings have unit length."""

    def __init__(self, spec: Spec, device: str, sha256: Mapping[str, str], net: Any, tokenizer: Any) -> None:
        super().__init__(spec, device, sha256, net)
        self.clip, self.tokenizer = net, tokenizer
        self.logit_scale = float(net.logit_scale.exp())
        """Learnt: what a cosine is multiplied by before softmax."""

    def encode(self, pictures: Sequence[Pixels]) -> Array:
        return unit(super().encode(pictures))

    def texts(self, prompts: Sequence[str]) -> Array:
        import torch

        found = []
        with torch.inference_mode():
            for start in range(0, len(prompts), TEXTS):
                asked = list(prompts[start : start + TEXTS])
                tokens = self.tokenizer(asked, padding=True, truncation=True, max_length=77, return_tensors="pt")
                ids = tokens["input_ids"].to(self.device)  # attention is causal: what pads the end changes nothing
                pooled = self.clip.text_model(input_ids=ids).pooler_output
                found.append(self.clip.text_projection(pooled).double().cpu().numpy())
        return unit(np.concatenate(found))

    def _run(self, pixels_B3HW: Tensor) -> Tensor:
        pooled = self.clip.vision_model(pixel_values=pixels_B3HW).pooler_output
        found: Tensor = self.clip.visual_projection(pooled)
        return found


class ShippedEncoder(Encoder):
    """The scorer that comes with sdtune. Features are those of `Scorer.features`; `whole`: with its embeddings beside them."""

    def __init__(self, scorer: Scorer, *, whole: bool = False) -> None:
        spec = spec_of("shipped")
        super().__init__(
            dataclasses.replace(spec, name="shipped-whole") if whole else spec,
            "cpu",
            {"model.safetensors": scorer.fingerprint},
        )
        self.scorer, self.whole = scorer, whole
        self.look = f"to {scorer.side} x {scorer.side}, Pillow box to shrink and bicubic to enlarge; x / 127.5 - 1"

    def prepare(self, image: Image.Image) -> Pixels:
        return self.scorer.prepare(image)

    def encode(self, pictures: Sequence[Pixels]) -> Array:
        rows_BF = self.scorer.look(np.stack(pictures))
        return rows_BF if self.whole else rows_BF[:, : self.scorer.dimension]


class Perceptual(Known):
    """LPIPS with its trunk: distances of pairs."""

    def __init__(
        self, spec: Spec, device: str, sha256: Mapping[str, str], trunk: nn.Module, weights: Sequence[Tensor]
    ) -> None:
        super().__init__(spec, device, sha256)
        self.trunk = trunk.to(device).float().eval().requires_grad_(False)
        self.weights = [w.to(device).float() for w in weights]

    least = 32
    """Pixels of the shorter side below which the trunk has nothing left to look at."""
    look = (
        "both in the size of the second picture (Pillow bicubic); x / 127.5 - 1, then the scaling layer of version 0.1"
    )

    def prepare(self, first: Image.Image, second: Image.Image) -> tuple[Pixels, Pixels]:
        """Both pictures in [-1, 1], (3, H, W), in the size of the second one. Raises EvaluationError for one that is too small."""
        if min(second.size) < self.least:
            raise EvaluationError(
                f"{self.name}: a picture of {second.width}x{second.height}; LPIPS needs {self.least} pixels at least"
            )
        if first.size != second.size:
            first = first.resize(second.size, Image.Resampling.BICUBIC)
        a, b = (np.asarray(im.convert("RGB"), np.float32).transpose(2, 0, 1) / 127.5 - 1 for im in (first, second))
        return np.ascontiguousarray(a), np.ascontiguousarray(b)

    def distances(self, pairs: Sequence[tuple[Pixels, Pixels]]) -> Array:
        """Of prepared pairs of one size, (B,)."""
        import torch

        with torch.inference_mode():
            a, b = (
                self.trunk(lpips.scaled(torch.from_numpy(np.stack(side)).to(self.device)))
                for side in zip(*pairs, strict=True)
            )
            return np.asarray(lpips.distance(a, b, self.weights).double().cpu().numpy())


# ---- from files


def load(name: str, at: Path | None = None, device: str = "cpu") -> Encoder:
    """An encoder from the files of `places.locate`. Raises NotHere, and EvaluationError for files that do not fit."""
    spec = spec_of(name)
    if spec.kind == "shipped":
        from sdtune.metrics.features import Scorer

        return ShippedEncoder(Scorer.load())
    if not spec.dimension:
        by = {"aesthetic": "load_head", "imagereward": "image_reward.load"}.get(spec.kind, "load_pairs")
        raise EvaluationError(f"{name}: gives no features; it is loaded by {by}")
    files = locate(name, at)
    return build(spec, files, check(name, files), device)


def build(spec: Spec, files: Mapping[str, Path], sha256: Mapping[str, str], device: str = "cpu") -> Encoder:
    """The encoder of files that were found and checked already. Raises EvaluationError."""
    weights = next(files[name] for name in sha256)
    match spec.kind:
        case "inception":
            from sdtune.metrics.nets.inception import Inception

            return NetEncoder(spec, device, sha256, _filled(Inception, tensors(weights), weights))
        case "sscd":
            from sdtune.metrics.nets.resnet import Sscd

            return NetEncoder(spec, device, sha256, _filled(Sscd, _under_backbone(tensors(weights)), weights))
        case "dinov2" | "vit":
            return TokenEncoder(spec, device, sha256, _transformer(spec.kind, files["config.json"], weights))
        case "hpsv2":
            net = to_transformers(tensors(weights), weights)
            return ClipEncoder(spec, device, sha256, net, _tokenizer(files))
        case _:
            return ClipEncoder(
                spec, device, sha256, _transformer("clip", files["config.json"], weights), _tokenizer(files)
            )


def load_pairs(name: str, at: Path | None = None, device: str = "cpu") -> Perceptual:
    """`lpips-alex` or `lpips-vgg`. Raises NotHere and EvaluationError."""
    from sdtune.metrics.nets import trunks

    spec = spec_of(name)
    files = locate(name, at)
    sha256 = check(name, files)
    body, heads = (files[part] for part in sha256)
    make = trunks.alexnet if spec.kind == "lpips-alex" else trunks.vgg16
    features = {k: v for k, v in tensors(body).items() if k.startswith("features.")}
    found = tensors(heads)
    names = [f"lin{i}.model.1.weight" for i in range(5)]
    if list(found) != names:
        raise EvaluationError(f"{heads}: has not the weights {names[0]} to {names[-1]} that LPIPS 0.1 has")
    return Perceptual(spec, device, sha256, _filled(make, features, body), [found[n] for n in names])


def load_head(name: str = "aesthetic", at: Path | None = None) -> tuple[Array, float, dict[str, str]]:
    """The aesthetic predictor for `aesthetic.aesthetic`, and the SHA-256 of its file. Raises NotHere and EvaluationError."""
    files = locate(name, at)
    sha256 = check(name, files)
    path = next(iter(files.values()))
    weight, bias = aesthetic.head({k: v.double().numpy() for k, v in tensors(path).items()})
    return weight, bias, sha256


def tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file: safetensors, or torch's, which is read without running it. Raises EvaluationError."""
    if path.suffix != ".safetensors":
        return torchfile.read(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise EvaluationError(f"{path}: cannot be read: {str(error).splitlines()[0]}; fetch it again") from None


def _filled(make: Callable[[], nn.Module], weights: Mapping[str, Tensor], path: Path) -> nn.Module:
    """The net with all of its weights from the file. What batch norms count is not asked for: old files lack it."""
    import torch

    with torch.device("meta"):  # its own random weights would be made for nothing
        net = make()
    own = net.state_dict()
    counted = {k: torch.zeros((), dtype=torch.long) for k in own if k.endswith("num_batches_tracked")}
    lacking = [k for k in own if k not in weights and k not in counted]
    other = [k for k in weights if k in own and weights[k].shape != own[k].shape]
    if lacking or other:
        first = lacking[0] if lacking else other[0]
        raise EvaluationError(
            f"{path}: does not fit {type(net).__name__}: {len(lacking) + len(other)} tensors, such as {first}"
        )
    net.load_state_dict(
        counted | {k: v.float() for k, v in weights.items() if k in own and k not in counted}, assign=True
    )
    return net


def _under_backbone(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k if k.startswith("backbone.") else f"backbone.{k}": v for k, v in weights.items()}


def _transformer(kind: str, config: Path, weights: Path) -> Any:
    """A model of transformers, every weight from the file. Its names may be those of any version of transformers."""
    import transformers

    cls, more = {
        "clip": (transformers.CLIPModel, {}),
        "dinov2": (transformers.Dinov2Model, {}),
        "vit": (transformers.ViTModel, {"add_pooling_layer": False}),
    }[kind]
    try:
        said = json.loads(config.read_text(encoding="utf-8"))
        found = {k: v.float() for k, v in tensors(weights).items() if v.is_floating_point()}
        if said.get("model_type") != kind:
            raise EvaluationError(f"{config}: is of a model of type {said.get('model_type')!r}, not {kind!r}")
        transformers.utils.logging.disable_progress_bar()
        model, report = cls.from_pretrained(
            None, config=cls.config_class(**said), state_dict=found, output_loading_info=True, **more
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        if isinstance(error, EvaluationError):
            raise
        raise EvaluationError(f"{weights}: cannot be read as {cls.__name__}: {str(error).splitlines()[0]}") from None
    if missing := sorted(report["missing_keys"]):
        raise EvaluationError(f"{weights}: {len(missing)} weights of {cls.__name__} are missing, such as {missing[0]}")
    return model


def _tokenizer(files: Mapping[str, Path]) -> Any:
    from transformers import CLIPTokenizer

    folder = files["vocab.json"].parent
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a damaged vocabulary raises a bare Exception
        raise EvaluationError(f"{folder}: its tokenizer cannot be read: {str(error).splitlines()[0]}") from None
