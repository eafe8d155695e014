"""The data part of a configuration. Imports no torch."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sdtune.data.check.kinds import On
from sdtune.errors import ConfigError
from sdtune.schema import Section, refuse_idle

Fraction = Annotated[float, Field(ge=0, le=1)]
Side = Annotated[int, Field(gt=0)]


Layout = Literal[
    "auto", "imagefolder", "sidecar", "filename", "kohya", "kohya-toml", "kohya-json", "simpletuner", "flickr30k", "unsplash",
    "webdataset",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Source(Section):
    """One of several places that pictures come from."""

    path: str
    """Like `data.path`."""
    layout: Layout = "auto"
    """Like `data.layout`."""
    repeats: Annotated[int, Field(gt=0)] = 1
    """How often an epoch shows each picture of it; what the layout itself says (kohya's 10_name) is multiplied by this."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """What the loss of its pictures counts, 1 being usual."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """Captioned pictures, in whatever layout they lie."""

    path: str = "embedded:comic"
    """Folder of the training pictures; `train/` and `validation/` inside it are recognised. Or a dataset file (kohya's .toml or
    .json), or a pattern of tar files. "embedded:NAME" is a set that comes with sdtune (comic, lineart, pixel, pip)."""
    layout: Layout = "auto"
    """How the folder says which picture has which captions. auto: told by what is there, and said in the run's first lines.
    "imagefolder" (metadata.jsonl, .csv or .parquet), "sidecar" (a.txt or a.caption beside a.png), "filename" (the name is the caption;
    never taken for granted), "kohya" (10_sks dog/: repeats and class tokens), "kohya-toml", "kohya-json" (files of its scripts),
    "simpletuner" (multidatabackend.json), "flickr30k", "unsplash" (photos.tsv000), "webdataset" (tar files)."""
    sources: tuple[Source, ...] = ()
    """Several places instead of `path`, each with `path` and, if wanted, `layout`, `repeats` and `weight`:
    sources = [{ path = "mine", repeats = 4 }, { path = "more", weight = 0.5 }]."""
    roots: tuple[str, ...] = ()
    """Other folders that metadata may point into by absolute paths. Without it nothing outside of the source's own folder is read."""
    validation: str | None = None
    """Folder of held-out pictures. Unset: `validation/` inside `path` if there is one, else `validation_share` of the
    pictures, chosen by a hash of their bytes."""
    validation_share: Fraction = 0.1
    """Share of the pictures kept for validation when there is no validation folder. 0 turns validation off."""
    caption_column: str = "text"
    """Key of the caption in metadata.jsonl or metadata.csv. A list there (several lines in a .txt file) means several
    captions, one drawn at each visit."""
    resolution: Side | Annotated[tuple[Side, ...], Field(min_length=1)] | None = None
    """Side in pixels to train at. Unset: the model's own. Several, such as [512, 768]: an epoch shows each picture once at each."""
    buckets: bool = False
    """Train pictures in frames near their own proportions instead of squares: sides from half to twice the resolution, areas of 90 to
    100 percent of the square's. A batch holds one frame's pictures; over the batches each picture comes equally often."""
    bucket_step: Side | None = None
    """Sides of frames are multiples of it. Unset: an eighth of the resolution, at most 64."""
    enlarge: bool = True
    """Enlarge pictures that are smaller than their frame. false: with `buckets` they get a frame of their own size, if that is at
    least a quarter of the area; otherwise they are left out. Both is told."""
    crop: Literal["center", "random", "squash", "pad"] = "center"
    """How a picture fills its frame (a square without `buckets`): cut its centre, cut at a random place, change its proportions, or
    add `background` at the sides."""
    crops: Annotated[int, Field(gt=0)] = 4
    """With crop = "random": how many different cuts of each picture are cached."""
    flip: bool = False
    """Show each picture mirrored half of the time. Leave it off for faces, text and what has a left and a right."""
    holes: Annotated[int, Field(gt=0)] = 4
    """Inpainting models: so many random holes of each picture are cached, and one is to be filled at each visit; every fourth is the
    whole picture."""
    background: str = "white"
    """Colour behind transparent parts: a name or #rrggbb."""
    mask: Literal["none", "files", "alpha"] = "none"
    """Train on a part of each picture. "files": masks, white where a picture counts, black where not, grey between: a-masklabel.png
    beside a.png, the same name in a folder masks/, a column "mask" of the metadata, or `mask_path`. "alpha": the picture's own
    opacity. A picture without a mask counts in full."""
    mask_path: str | None = None
    """Folder of masks named like the pictures, where they do not lie beside them (kohya's conditioning_data_dir, ai-toolkit's
    mask_path)."""
    mask_floor: Fraction = 0.1
    """What the parts that a mask leaves out still count. Keep 0.02 to 0.1 for backgrounds: at 0 nothing holds the model there, and it
    draws anything around the subject; the higher, the more of them is learned. 0 is for small things such as a watermark."""
    mask_normalize: bool = True
    """Divide a picture's loss by the mean of its mask: a small subject counts as much as a large one or a picture without a mask."""
    caption_prefix: str = ""
    """Put before every caption, for example a trigger word. With it, pictures without a caption get it alone."""
    caption_suffix: str = ""
    """Put behind every caption."""
    caption_dropout: Fraction = 0.1
    """Share of visits with an empty caption; guidance at sampling needs some."""
    class_prompt: str | None = None
    """Prior preservation (DreamBooth, arXiv:2208.12242): for each picture of yours one of this prompt is shown, for example "a photo of
    a dog", so that the model keeps what the word meant. Unset: none."""
    class_path: str | None = None
    """Folder of such class pictures; their own captions are not read. Unset: the base model draws them once, into the cache."""
    class_count: Annotated[int, Field(gt=0)] = 100
    """How many class pictures the base model draws."""
    prior_weight: Annotated[float, Field(ge=0)] = 1.0
    """What a class picture's loss counts, one of yours counting 1."""
    on_bad: Literal["fail", "skip"] = "fail"
    """What to do with pictures that cannot be read and captions that are missing: stop before training, or leave them
    out and say so. The short way for all kinds that `on` leaves unset."""
    on: On = field(default_factory=On)
    """What to do about each kind of finding by itself; `sdtune data check` lists what there is."""
    max_pixels: Annotated[int, Field(gt=0, le=178_956_970)] = 178_956_970
    """Larger pictures are refused before they are decoded (decompression bombs)."""
    cache_dtype: Literal["fp32", "fp16"] = "fp32"
    """How the encoded pictures and captions are kept. "fp16" takes half the disk; the latents' error is far below the noise that the
    VAE itself adds to them."""
    cache: str | None = None
    """Folder of the encoded pictures and captions. Unset: $SDTUNE_CACHE, else `sdtune` in the user's cache folder."""

    def __post_init__(self) -> None:
        masked = ("files", "alpha")
        uses = {
            "mask_path": ("mask", ("files",)),
            "mask_floor": ("mask", masked),
            "mask_normalize": ("mask", masked),
        }
        refuse_idle(self, "data", uses)
        if self.bucket_step and not self.buckets:
            raise ConfigError("data.bucket_step: has an effect only with data.buckets=true")
        if self.sources and (self.path, self.layout) != (DataConfig.path, DataConfig.layout):
            raise ConfigError("data.path: data.sources names the places; remove one of the two")

    def places(self) -> tuple[Source, ...]:
        """Where the pictures come from: `sources`, or `path` as the only one."""
        return self.sources or (Source(path=self.path, layout=self.layout),)

    @property
    def label(self) -> str:
        """What to call the data in messages."""
        return ", ".join(source.path for source in self.places())

    def cache_folder(self) -> Path:
        """`cache`, else $SDTUNE_CACHE, else `sdtune` in $XDG_CACHE_HOME or ~/.cache. Not created here."""
        if chosen := self.cache or os.environ.get("SDTUNE_CACHE"):
            return Path(chosen).expanduser().absolute()
        xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))  # a relative path counts as unset (XDG base directories)
        return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "sdtune"
