"""What a drawing is called: captions of the base model's training, and its tokenizer.

A caption is the concept (its name or another word for it), at times with an article, a background and words that mean
nothing to the picture ("in zanu style"): a base that has met such words keeps drawing the asked concept when a
fine-tuning adds a style word of its own.
"""

import json
import random
from pathlib import Path

from common import BACKGROUND_NAMES, CONCEPTS
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

LENGTH = 32  # tokens of a prompt, start and end marks included
BEFORE = ("{}", "{}", "{}", "a {}", "a {}", "the {}", "a picture of a {}", "a drawing of a {}", "an emoji of a {}")
STYLE = ("in {} style", ", {} style", "in the style of {}", "{} style", ", {}")
SYLLABLES = "ba be bi bo da de di do fa fi fo ga go ka ke ki ko la le li lo ma me mi mo na ne no pa pe po ra re ri ro sa se so ta te ti to va vi zo zu".split()
REAL_STYLE_WORDS = (
    "lineart", "line art", "ink", "pixel art", "pixel", "flat", "sketch", "watercolor", "oil painting", "cartoon", "blueprint",
    "woodcut", "crayon", "anime", "comic", "retro", "minimal", "vintage", "pastel", "neon", "3d", "sticker", "mosaic", "photo",
)  # fmt: skip


def random_word(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return rng.choice(REAL_STYLE_WORDS)
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(1, 3)))


def caption(concept: int, background: int, rng: random.Random) -> str:
    """One caption of drawing `concept` on background number `background` (0 is white, mostly left unsaid)."""
    c = CONCEPTS[concept]
    text = rng.choice(BEFORE).replace("{}", rng.choice((c.caption, c.caption, *c.aliases)))
    if background or rng.random() < 0.1:
        text += f" on a {BACKGROUND_NAMES[background]} background"
    if rng.random() < 0.2:
        tail = rng.choice(STYLE).format(random_word(rng))
        text += tail if tail.startswith(",") else f" {tail}"
    return text


def train_tokenizer(out: Path, size: int = 2048) -> None:
    """A byte-level BPE in CLIP's own layout: 256 bytes, the same at a word's end, merges, start and end of text."""
    rng = random.Random(0)
    corpus = [caption(i, rng.randrange(10), rng) for i in range(len(CONCEPTS)) for _ in range(20)]
    corpus += [f"{w} style" for w in REAL_STYLE_WORDS] * 20
    corpus += [
        "abcdefghijklmnopqrstuvwxyz 0123456789 a photo of sks style with and in the of my dog red blue small big"
    ] * 20
    words = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(words), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size - 2,
        min_frequency=2,
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        special_tokens=[],
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    merges = [m if isinstance(m, str) else " ".join(m) for m in json.loads(bpe.to_str())["model"]["merges"]]
    tokens = [
        *letters,
        *(a + "</w>" for a in letters),
        *("".join(m.split(" ")) for m in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    out.mkdir(parents=True, exist_ok=True)
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    (out / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (out / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, **special}
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    (out / "special_tokens_map.json").write_text(json.dumps(special, indent=2))


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(folder)


if __name__ == "__main__":
    import sys

    train_tokenizer(Path(sys.argv[1]) / "tokenizer")
    tok = load_tokenizer(Path(sys.argv[1]) / "tokenizer")
    print(len(tok), tok.model_max_length, tok.pad_token_id, tok.tokenize("a red apple in lineart style, Ünïcode 🙂"))
    rng = random.Random(1)
    for _ in range(12):
        print(caption(rng.randrange(len(CONCEPTS)), rng.choice([0, 0, 3]), rng))
