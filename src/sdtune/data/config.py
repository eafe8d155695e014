"""The data part of a configuration. Imports no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sdtune.data.check.kinds import On
from sdtune.errors import ConfigError
from sdtune.files import cache_home
from sdtune.schema import Section, refuse_idle

Fraction = Annotated[float, Field(ge=0, le=1)]
Side = Annotated[int, Field(gt=0)]


Layout = Literal[
    "auto", "imagefolder", "sidecar", "filename", "kohya", "kohya-toml", "kohya-json", "simpletuner", "flickr30k", "unsplash",
    "webdataset", "arrow",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Source(Section):
    """One of several places that pictures come from."""

    path: str
    """Like `data.path`. Cache: only what is new."""
    layout: Layout = "auto"
    """Like `data.layout`. Cache: only what is new."""
    repeats: Annotated[int, Field(gt=0)] = 1
    """How often an epoch shows each picture of it; what the layout itself says (kohya's 10_name) is multiplied by this.
    Cache: kept."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """What the loss of its pictures counts, 1 being usual. Cache: kept."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """Captioned pictures, in whatever layout they lie."""

    path: str = "embedded:comic"
    """Folder of the training pictures; `train/` and `validation/` inside it are recognised. Or a dataset file (kohya's .toml or
    .json), or a pattern of tar or Parquet files. "hf:owner/name" is a dataset of the Hub ("hf:owner/name@revision/folder").
    "embedded:NAME" is a set that comes with sdtune (comic, lineart, pixel, pip). Cache: only what is new."""
    layout: Layout = "auto"
    """How the folder says which picture has which captions. auto: told by what is there, and said in the run's first lines.
    "imagefolder" (metadata.jsonl, .csv or .parquet), "sidecar" (a.txt or a.caption beside a.png), "filename" (the name is the caption;
    never taken for granted), "kohya" (10_sks dog/: repeats and class tokens), "kohya-toml", "kohya-json" (files of its scripts),
    "simpletuner" (multidatabackend.json), "flickr30k", "unsplash" (photos.tsv000), "webdataset" (tar files),
    "arrow" (Hugging Face's datasets: saved to disk, or Parquet files). Cache: only what is new."""
    download: bool = False
    """Fetch a dataset of the Hub (hf:owner/name) that is not in the Hub's local cache. Off: no network is used. Cache: kept."""
    sources: tuple[Source, ...] = ()
    """Several places instead of `path`, each with `path` and, if wanted, `layout`, `repeats` and `weight`:
    sources = [{ path = "mine", repeats = 4 }, { path = "more", weight = 0.5 }]. Cache: only what is new."""
    roots: tuple[str, ...] = ()
    """Other folders that metadata may point into by absolute paths. Without it nothing outside of the source's own folder is read.
    Cache: only what is new."""
    validation: str | None = None
    """Folder of held-out pictures. Unset: `validation/` inside `path` if there is one, else `validation_share` of the
    pictures, chosen by a hash of their bytes. Cache: only what is new."""
    validation_share: Fraction = 0.1
    """Share of the pictures kept for validation when there is no validation folder. 0 turns validation off.
    Cache: only what is new."""
    validation_most: Annotated[int, Field(gt=0)] = 500
    """`validation_share` keeps no more than so many: every validation looks at all of them. Cache: only what is new."""
    caption_column: str = "text"
    """Key of the caption in metadata.jsonl or metadata.csv. A list there (several lines in a .txt file) means several
    captions, one drawn at each visit. Cache: only what is new."""
    resolution: Side | Annotated[tuple[Side, ...], Field(min_length=1)] | None = None
    """Side in pixels to train at. Unset: the model's own. Several, such as [512, 768]: an epoch shows each picture once at each.
    Cache: pictures again."""
    buckets: bool = False
    """Train pictures in frames near their own proportions instead of squares: sides from half to twice the resolution, areas of 90 to
    100 percent of the square's. A batch holds one frame's pictures; over the batches each picture comes equally often.
    Cache: pictures again."""
    bucket_step: Side | None = None
    """Sides of frames are multiples of it. Unset: an eighth of the resolution, at most 64. Cache: pictures again."""
    enlarge: bool = True
    """Enlarge pictures that are smaller than their frame. false: with `buckets` they get a frame of their own size, if that is at
    least a quarter of the area; otherwise they are left out. Both is told. Cache: only what is new."""
    crop: Literal["center", "random", "squash", "pad"] = "center"
    """How a picture fills its frame (a square without `buckets`): cut its centre, cut at a random place, change its proportions, or
    add `background` at the sides. Cache: pictures again."""
    crops: Annotated[int, Field(gt=0)] = 4
    """With crop = "random": how many different cuts of each picture are cached. Cache: pictures again."""
    flip: bool = False
    """Show each picture mirrored half of the time. Leave it off for faces, text and what has a left and a right.
    Cache: only what is new, the mirrored pictures."""
    jitter: Fraction = 0.0
    """Show each picture in other colours, too: at 0.1 its brightness, contrast and saturation are each up to a tenth less or more, and
    its hues turn by up to some 4 degrees. Not for a style, whose colours are part of it. 0: as it is.
    Cache: only what is new, the coloured pictures."""
    jitters: Annotated[int, Field(gt=1)] = 2
    """With jitter: so many differently coloured versions of each picture are cached, the first as it is. Cache: only what is new."""
    holes: Annotated[int, Field(gt=0)] = 4
    """Inpainting models: so many random holes of each picture are cached, and one is to be filled at each visit; every fourth is the
    whole picture. Cache: only what is new."""
    background: str = "white"
    """Colour behind transparent parts: a name or #rrggbb. Cache: pictures again."""
    mask: Literal["none", "files", "alpha"] = "none"
    """Train on a part of each picture. "files": masks, white where a picture counts, black where not, grey between: a-masklabel.png
    beside a.png, the same name in a folder masks/, a column "mask" of the metadata, or `mask_path`. "alpha": the picture's own
    opacity. A picture without a mask counts in full. Cache: only what is new, the masks."""
    mask_path: str | None = None
    """Folder of masks named like the pictures, where they do not lie beside them (kohya's conditioning_data_dir, ai-toolkit's
    mask_path). Cache: only what is new, the masks."""
    mask_floor: Fraction = 0.1
    """What the parts that a mask leaves out still count. Keep 0.02 to 0.1 for backgrounds: at 0 nothing holds the model there, and it
    draws anything around the subject; the higher, the more of them is learned. 0 is for small things such as a watermark. Cache: kept."""
    mask_normalize: bool = True
    """Divide a picture's loss by the mean of its mask: a small subject counts as much as a large one or a picture without a mask.
    Cache: kept."""
    caption_prefix: str = ""
    """Put before every caption, for example a trigger word. With it, pictures without a caption get it alone.
    Cache: captions again."""
    caption_suffix: str = ""
    """Put behind every caption. Cache: captions again."""
    caption_variants: Annotated[int, Field(gt=1)] = 4
    """With `shuffle_tags`, `tag_dropout` or `wildcards`: so many versions of each caption are cached, and one is drawn at each visit. The
    first is the caption in its own order, with every tag and the first choices; validation and previews use it. Cache: only what is new."""
    shuffle_tags: bool = False
    """Captions are tags between commas: show them in different orders, behind the prefix and before the suffix. In a caption, what stands
    before ||| keeps its place, and so does what stands behind a second one; tags with ;;; between them stay together.
    Cache: captions again."""
    keep_tags: Annotated[int, Field(ge=0)] = 0
    """With `shuffle_tags` or `tag_dropout`: the first so many tags of a caption stay in their place and are never left out; ||| in a
    caption says it for that one. Cache: captions again."""
    tag_dropout: Fraction = 0.0
    """Leave out each tag with this chance, in all versions of a caption but the first. Cache: captions again."""
    wildcards: bool = False
    """{red|blue|green} in a caption, prefix or suffix is one of these; braces may lie in braces. Off, they stand for themselves.
    Cache: captions again."""
    caption_chunks: Annotated[int, Field(gt=0)] = 1
    """Read captions in so many chunks of 75 tokens (kohya's max_token_length 150 is 2, 225 is 3). For captions that are longer; each
    chunk more costs the U-Net a little at every step. Not for Stable Diffusion 3. Cache: captions again."""
    caption_dropout: Fraction = 0.1
    """Share of visits with an empty caption; guidance at sampling needs some. Cache: kept."""
    class_prompt: str | None = None
    """Prior preservation (DreamBooth, arXiv:2208.12242): for each picture of yours one of this prompt is shown, for example "a photo of
    a dog", so that the model keeps what the word meant. Unset: none. Cache: class pictures again."""
    class_path: str | None = None
    """Folder of such class pictures; their own captions are not read. Unset: the base model draws them once, into the cache.
    Cache: only what is new."""
    class_count: Annotated[int, Field(gt=0)] = 100
    """How many class pictures the base model draws. Cache: only what is new."""
    prior_weight: Annotated[float, Field(ge=0)] = 1.0
    """What a class picture's loss counts, one of yours counting 1. Cache: kept."""
    on_bad: Literal["fail", "skip"] = "fail"
    """What to do with pictures that cannot be read and captions that are missing: stop before training, or leave them
    out and say so. The short way for all kinds that `on` leaves unset. Cache: kept."""
    on: On = field(default_factory=On)
    """What to do about each kind of finding by itself; `sdtune data check` lists what there is. Cache: kept."""
    max_pixels: Annotated[int, Field(gt=0, le=178_956_970)] = 178_956_970
    """Larger pictures are refused before they are decoded (decompression bombs). Cache: kept."""
    cache_dtype: Literal["fp32", "fp16"] = "fp32"
    """How the encoded pictures and captions are kept. "fp16" takes half the disk; the latents' error is far below the noise that the
    VAE itself adds to them. Cache: all again."""
    cache: str | None = None
    """Folder of the encoded pictures and captions. Unset: $SDTUNE_CACHE, else `sdtune` in the user's cache folder.
    Cache: all again, in that folder."""

    def __post_init__(self) -> None:
        masked = ("files", "alpha")
        uses = {
            "mask_path": ("mask", ("files",)),
            "mask_floor": ("mask", masked),
            "mask_normalize": ("mask", masked),
        }
        refuse_idle(self, "data", uses)
        self._refuse_idle_chance()
        if self.bucket_step and not self.buckets:
            raise ConfigError("data.bucket_step: has an effect only with data.buckets=true")
        if self.sources and (self.path, self.layout) != (DataConfig.path, DataConfig.layout):
            raise ConfigError("data.path: data.sources names the places; remove one of the two")

    def _refuse_idle_chance(self) -> None:
        """Raise ConfigError for a key that says how something is varied which does not vary."""
        tags = self.shuffle_tags or self.tag_dropout > 0
        uses = {
            "jitters": (self.jitter > 0, "data.jitter above 0"),
            "keep_tags": (tags, "data.shuffle_tags or data.tag_dropout"),
            "caption_variants": (tags or self.wildcards, "data.shuffle_tags, data.tag_dropout or data.wildcards"),
        }
        for key, (used, needed) in uses.items():
            if getattr(self, key) != getattr(DataConfig, key) and not used:
                raise ConfigError(f"data.{key}: has an effect only with {needed}")

    @property
    def varies_captions(self) -> bool:
        """Whether a caption has several versions."""
        return self.shuffle_tags or self.tag_dropout > 0 or self.wildcards

    def places(self) -> tuple[Source, ...]:
        """Where the pictures come from: `sources`, or `path` as the only one."""
        return self.sources or (Source(path=self.path, layout=self.layout),)

    @property
    def label(self) -> str:
        """What to call the data in messages."""
        return ", ".join(source.path for source in self.places())

    def cache_folder(self) -> Path:
        """`cache`, else $SDTUNE_CACHE, else `sdtune` in $XDG_CACHE_HOME or ~/.cache. Not created here."""
        return Path(self.cache).expanduser().absolute() if self.cache else cache_home()
