"""ImageReward in memory (arXiv:2304.05977): how much people would like a picture for its prompt, seen together.

It gives no features: a score is of a pair, without bounds, shifted and scaled by two published constants. Only differences at the same
prompt mean something. Computes in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdtune.errors import EvaluationError
from sdtune.metrics.encoders import Known, tensors
from sdtune.metrics.looks import Pixels
from sdtune.metrics.places import check, locate, spec_of
from sdtune.metrics.registry import WORDPIECES, Spec

if TYPE_CHECKING:
    from sdtune.metrics.nets.image_reward import ImageReward

Array = NDArray[np.float64]
LENGTH = 35
"""Tokens that a prompt is filled up or cut to, the first and the last one included."""
MARKS = ("[DEC]", "[ENC]")
"""What BLIP has beside BERT's vocabulary."""
_NEEDED = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Shown(NamedTuple):
    """A picture as the network sees it, and its prompt."""

    pixels: Pixels
    prompt: str


class Rewarding(Known):
    """The network with its tokenizer."""

    def __init__(self, spec: Spec, device: str, sha256: Mapping[str, str], net: ImageReward, tokenizer: Any) -> None:
        super().__init__(spec, device, sha256)
        assert spec.look
        self.shown = spec.look
        self.look = f"{spec.look.words}; prompts filled up or cut to {LENGTH} tokens of BERT's lower-case vocabulary"
        self.net, self.tokenizer = net.to(device).float().eval().requires_grad_(False), tokenizer

    def prepare(self, image: Image.Image, prompt: str) -> Shown:
        return Shown(self.shown(image), prompt)

    def tokens(self, prompts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Numbers of tokens, and 1 where they are the prompt's, both (B, LENGTH)."""
        found = self.tokenizer(list(prompts), padding="max_length", truncation=True, max_length=LENGTH)
        return np.array(found["input_ids"], np.int64), np.array(found["attention_mask"], np.int64)

    def scores(self, pairs: Sequence[Shown]) -> Array:
        """Of prepared pairs, (B,); higher is better."""
        import torch

        ids_BT, mask_BT = self.tokens([pair.prompt for pair in pairs])
        seen = (np.stack([pair.pixels for pair in pairs]), ids_BT, mask_BT)
        with torch.inference_mode():
            found = self.net(*(torch.from_numpy(values).to(self.device) for values in seen))
            return np.asarray(found.double().cpu().numpy())


def load(name: str = "imagereward", at: Path | None = None, device: str = "cpu") -> Rewarding:
    """From the files of `places.locate`. Raises NotHere, and EvaluationError for files that do not fit."""
    from sdtune.metrics.nets.image_reward import filled

    spec, files = spec_of(name), locate(name, at)
    sha256 = check(name, files)
    weights = next(path for file, path in files.items() if file != WORDPIECES)
    net = filled(tensors(weights), weights)
    return Rewarding(spec, device, sha256, net, tokenizer(files[WORDPIECES], net.words))


def tokenizer(path: Path, words: int) -> Any:
    """BERT's, lower case, with BLIP's two marks behind its vocabulary: `words` in all. Raises EvaluationError for another number."""
    from transformers import BertTokenizer

    try:
        said = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # splitlines would split within words
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path}: cannot be read: {error}; fetch it again") from None
    known = {word: number for number, word in enumerate(said)}
    if lacking := [word for word in _NEEDED if word not in known]:
        raise EvaluationError(f"{path}: is no vocabulary of BERT: has no {lacking[0]}; fetch it again")
    if len(known) + len(MARKS) != words:
        raise EvaluationError(
            f"{path}: has {len(known):,} words and the network knows {words - len(MARKS):,}; take the vocab.txt of bert-base-uncased"
        )
    made = BertTokenizer(vocab=known)
    made.add_special_tokens({"additional_special_tokens": list(MARKS)})
    return made
