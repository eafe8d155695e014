"""Whether an adapter file can lie on its original, as far as headers tell: before anything is loaded. Imports no torch.

The worker looks again, wholly, when it puts the file on the model.
"""

from __future__ import annotations

import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from sdtune.errors import ModelError
from sdtune.families.places import WEIGHTS, header

Shape = tuple[int, ...]
_PREFIX = re.compile(r"lora_(unet|te\d?)_")
_MARKS = re.compile(
    r"\.(lora_A\.weight|lora_B\.weight|lora_magnitude_vector(\.weight)?|lora_down\.weight|lora_up\.weight|lora_mid\.weight|dora_scale|"
    r"alpha|hada_\w+|lokr_\w+|oft_\w+)$"
)
_DOWN, _UP = (".lora_A.weight", ".lora_down.weight"), (".lora_B.weight", ".lora_up.weight")


def check(file: Path, base: Path, name: str) -> None:
    """Raises ModelError: which file, and why. `base` is the folder of the original, called `name`."""
    shapes = header(file)
    try:
        with safe_open(file, "np") as opened:  # checks that all is where the header says
            about = opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file}: cannot be read as safetensors: {error}") from None
    layers = dict[str, list[tuple[str, Shape]]]()
    for key, shape in shapes.items():
        if found := _MARKS.search(key):
            layers.setdefault(_flat(key[: found.start()]), []).append((found[0], shape))
    if not layers:
        if 0 < len(shapes) <= 2 and all(len(shape) <= 2 for shape in shapes.values()):
            return  # the vectors of a word
        raise ModelError(
            f"{file}: holds no adapter: none of its {len(shapes)} keys is of LoRA, DoRA, LoHa, LoKr or OFT"
        )
    for layer, tensors in layers.items():
        ranks = {shape[0] for end, shape in tensors if end in _DOWN and shape}
        ranks |= {shape[1] for end, shape in tensors if end in _UP and len(shape) > 1}
        if len(ranks) > 1:
            raise ModelError(
                f"{file}: the two matrices of {layer} have ranks {min(ranks)} and {max(ranks)}; it is damaged"
            )
    weights = _weights(base)
    fitting = sum(layer in weights and _fits(tensors, weights[layer]) for layer, tensors in layers.items())
    if weights and fitting < len(layers):
        made = re.search(r'"base": "([^"\\]{1,100})"', about.get("sdtune", ""))
        said = f" (made for {made[1]})" if made else ""
        raise ModelError(
            f"{file}: {fitting} of {len(layers)} adapted layers fit {name}: it was trained on another kind of model{said}"
        )


def _weights(folder: Path) -> dict[str, Shape]:
    """The shape of each layer's weight of a model in diffusers layout, by its flat name; nothing where it lies otherwise."""
    return {
        _flat(f"{part}.{key.removesuffix('.weight')}"): shape
        for part in WEIGHTS
        if part != "vae"
        for file in (folder / part).glob("*.safetensors")
        for key, shape in header(file).items()
        if key.endswith(".weight")
    }


def _flat(layer: str) -> str:
    """One name for a layer, however a file writes it: dots or not, the denoiser's and the text encoders' prefixes."""
    if found := _PREFIX.match(layer):
        number = found[1].removeprefix("te")
        part = "unet" if found[1] == "unet" else f"text_encoder_{number}" if number > "1" else "text_encoder"
        path = layer[found.end() :]
    else:
        part, _, path = layer.partition(".")
        part = "unet" if part == "transformer" else part
    return f"{part}.{path.replace('.', '_').removeprefix('text_model_')}"


def _fits(tensors: list[tuple[str, Shape]], weight: Shape) -> bool:
    """Of LoRA, as much as widths tell."""
    inner = all(len(shape) > 1 and len(weight) > 1 and shape[1] == weight[1] for end, shape in tensors if end in _DOWN)
    return inner and all(bool(shape) and shape[0] == weight[0] for end, shape in tensors if end in _UP)
