"""The encoders and the metrics: what each is, what it needs, and where it comes from. Facts only; imports no torch.

A revision or SHA-256 stands here only where it is publicly known. Where it is None, the SHA-256 of what was loaded is written
into the result instead. Sizes marked `about` are rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sdtune.metrics.looks import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, Look

Kind = Literal[
    "shipped",
    "inception",
    "clip",
    "dinov2",
    "vit",
    "sscd",
    "lpips-alex",
    "lpips-vgg",
    "hpsv2",
    "imagereward",
    "aesthetic",
]
VOCABULARY = ("vocab.json", "merges.txt")
WORDPIECES = "vocab.txt"
CLIP_L14, CLIP_L14_REVISION = "openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41"


@dataclass(frozen=True)
class Hub:
    """Files of a Hub repository. Of each tuple in `files` one is enough, the first that is there."""

    repo: str
    files: tuple[tuple[str, ...], ...]
    revision: str | None = None
    sha256: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Web:
    """A file at an address."""

    url: str
    name: str
    sha256: str | None = None
    """All 64 digits, or the first ones: torch's files carry eight in their names."""


@dataclass(frozen=True)
class Spec:
    """An encoder. `home/name/` may hold all its files; those of the Hub may also lie in its local cache."""

    name: str
    title: str
    kind: Kind
    parts: tuple[Hub | Web, ...]
    size_mb: int
    """What is downloaded, about."""
    licence: str
    look: Look | None
    """None: pictures are shown in their own size."""
    dimension: int
    """Of the features; 0: it gives distances of pairs, or scores, and no features."""
    note: str = ""

    @property
    def source(self) -> str:
        """Where the weights are published."""
        return ", ".join(p.repo if isinstance(p, Hub) else p.url for p in self.parts) or "comes with sdtune"


def _clip(side: int) -> Look:
    return Look(side, "crop", "bicubic", CLIP_MEAN, CLIP_STD)


_CLIP_FILES = (("model.safetensors", "pytorch_model.bin"), ("config.json",), *((name,) for name in VOCABULARY))
_VIT_FILES = (("model.safetensors", "pytorch_model.bin"), ("config.json",))
_INCEPTION = Web(
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    "pt_inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)
_LPIPS = (
    "https://github.com/richzhang/PerceptualSimilarity/raw/082bb24f84c091ea94de2867d34c4544f68e0963/lpips/weights/v0.1/"
)
_TORCH = "https://download.pytorch.org/models/"
_TF = (128.0, 128.0, 128.0)

_ALL = (
    Spec("shipped", "the scorer that comes with sdtune", "shipped", (), 0, "Apache-2.0", None, 160,
         "knows drawings at 64 pixels and nothing else"),
    Spec("inception", "Inception v3 of FID, TensorFlow's weights", "inception", (_INCEPTION,), 91, "Apache-2.0",
         Look(299, "squash", "tf1-bilinear", _TF, _TF, scale=1.0), 2048,
         "as in FID's own code and torch-fidelity; the last pooling layer"),
    Spec("inception-clean", "the same, pictures resized as clean-fid does", "inception", (_INCEPTION,), 91, "Apache-2.0",
         Look(299, "squash", "float-bicubic", _TF, _TF, scale=1.0), 2048, "arXiv:2104.11222"),
    Spec("clip-l14-336", "CLIP ViT-L/14 at 336 pixels", "clip",
         (Hub("openai/clip-vit-large-patch14-336", _CLIP_FILES, "ce19dc912ca5cd21c8a653c79e251e808ccabcd1"),), 1710,
         "MIT (OpenAI's repository)", Look(336, "square", "bicubic", CLIP_MEAN, CLIP_STD), 768,
         "cut and resized as CMMD's code does"),
    Spec("clip-l14", "CLIP ViT-L/14", "clip", (Hub(CLIP_L14, _CLIP_FILES, CLIP_L14_REVISION),), 1710,
         "MIT (OpenAI's repository)", _clip(224), 768),
    Spec("clip-b32", "CLIP ViT-B/32", "clip",
         (Hub("openai/clip-vit-base-patch32", _CLIP_FILES, "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268"),), 605,
         "MIT (OpenAI's repository)", _clip(224), 512),
    Spec("dinov2-l14", "DINOv2 ViT-L/14", "dinov2",
         (Hub("facebook/dinov2-large", _VIT_FILES, "47b73eefe95e8d44ec3623f8890bd894b6ea2d6c",
              {"model.safetensors": "399fba97a95f22c36834418bc69373364a99af3a1153da1c0fb31db567c92e23"}),), 1218,
         "Apache-2.0", Look(224, "squash", "bicubic", IMAGENET_MEAN, IMAGENET_STD), 1024,
         "resized as dgm-eval does, which FD-DINOv2 was published with; position embeddings are interpolated by transformers"),
    Spec("dinov2-b14", "DINOv2 ViT-B/14", "dinov2",
         (Hub("facebook/dinov2-base", _VIT_FILES, "f9e44c814b77203eaa57a6bdbbd535f21ede1415"),), 346,
         "Apache-2.0", Look(224, "crop", "bicubic", IMAGENET_MEAN, IMAGENET_STD, shorter=256), 768,
         "resized as its own preprocessor does"),
    Spec("dino-s16", "DINO ViT-S/16", "vit", (Hub("facebook/dino-vits16", _VIT_FILES),), 87,
         "Apache-2.0", Look(224, "crop", "bicubic", IMAGENET_MEAN, IMAGENET_STD, shorter=256), 384,
         "what DreamBooth measured likeness with (arXiv:2208.12242)"),
    Spec("sscd", "SSCD, a ResNet-50 for copies (sscd_disc_mixup)", "sscd",
         (Web("https://dl.fbaipublicfiles.com/sscd-copy-detection/sscd_disc_mixup.torchvision.pt",
              "sscd_disc_mixup.torchvision.pt"),), 98, "see its repository: MIT or CC BY-NC 4.0, by version",
         Look(320, "squash", "bilinear", IMAGENET_MEAN, IMAGENET_STD), 512,
         "the file of weights; the TorchScript one is a program, and none is run"),
    Spec("lpips-alex", "LPIPS 0.1 on AlexNet", "lpips-alex",
         (Web(_TORCH + "alexnet-owt-7be5be79.pth", "alexnet-owt-7be5be79.pth", "7be5be79"),
          Web(_LPIPS + "alex.pth", "alex.pth", "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0")), 233,
         "BSD-2-Clause; AlexNet BSD-3-Clause", None, 0, "the one to report; -vgg is another scale"),
    Spec("lpips-vgg", "LPIPS 0.1 on VGG-16", "lpips-vgg",
         (Web(_TORCH + "vgg16-397923af.pth", "vgg16-397923af.pth", "397923af"),
          Web(_LPIPS + "vgg.pth", "vgg.pth", "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868")), 528,
         "BSD-2-Clause; VGG-16 BSD-3-Clause", None, 0),
    Spec("pickscore", "PickScore v1, CLIP ViT-H/14 on people's choices", "clip",
         (Hub("yuvalkirstain/PickScore_v1", _VIT_FILES), Hub(CLIP_L14, ((VOCABULARY[0],), (VOCABULARY[1],)), CLIP_L14_REVISION)),
         3945, "see its model card", _clip(224), 1024, "arXiv:2305.01569"),
    Spec("hpsv2", "HPS v2.1, CLIP ViT-H/14 on people's choices", "hpsv2",
         (Hub("xswu/HPSv2", (("HPS_v2.1_compressed.pt",),)),
          Hub(CLIP_L14, ((VOCABULARY[0],), (VOCABULARY[1],)), CLIP_L14_REVISION)),
         1970, "Apache-2.0", Look(224, "pad", "float-bicubic", CLIP_MEAN, CLIP_STD), 1024, "arXiv:2306.09341"),
    Spec("imagereward", "ImageReward v1.0, BLIP ViT-L/16 on people's choices", "imagereward",
         (Hub("THUDM/ImageReward", (("ImageReward.pt",),)),
          Hub("google-bert/bert-base-uncased", ((WORDPIECES,),), "86b5e0934494bd15c9632b12f734a8a67f723594",
              {WORDPIECES: "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"})),
         1790, "Apache-2.0", Look(224, "crop-torchvision", "bicubic", CLIP_MEAN, CLIP_STD), 0, "arXiv:2304.05977"),
    Spec("aesthetic", "LAION aesthetic predictor V2 on CLIP ViT-L/14", "aesthetic",
         (Web("https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/sac%2Blogos%2Bava1-l14-linearMSE.pth",
              "sac+logos+ava1-l14-linearMSE.pth", "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0"),), 4,
         "Apache-2.0", None, 0, "on top of clip-l14"),
)  # fmt: skip
ENCODERS: Mapping[str, Spec] = {spec.name: spec for spec in _ALL}


@dataclass(frozen=True)
class Metric:
    """A figure. `needs` so many of `unit` make it evidence; `refused`: below that it is not shown at all unless told."""

    name: str
    answers: str
    encoders: tuple[str, ...]
    """Any of them will do, the usual one first; all that are named with + are needed together."""
    needs: int
    unit: str
    """What is counted, and drawn again: pictures, prompts, or pairs."""
    better: Literal["lower", "higher", ""]
    paper: str
    refused: bool = False
    note: str = ""


METRICS: Mapping[str, Metric] = {
    m.name: m
    for m in (
        Metric("kid", "Does it draw from the same distribution as real pictures?", ("inception", "shipped"), 50, "pictures",
               "lower", "arXiv:1801.01401", note="no bias from the number of pictures"),
        Metric("cmmd", "The same, by CLIP: agrees better with people.", ("clip-l14-336",), 50, "pictures", "lower",
               "arXiv:2401.09603"),
        Metric("fid", "The same, as most papers report it.", ("inception", "inception-clean"), 2048, "pictures", "lower",
               "arXiv:1706.08500", refused=True, note="its bias with few pictures is of the size of its value"),
        Metric("fd-dinov2", "The same, by DINOv2.", ("dinov2-l14",), 2048, "pictures", "lower", "arXiv:2306.04675",
               refused=True),
        Metric("prdc", "Realistic, or varied? Precision and density; recall and coverage.", ("inception", "dinov2-l14"), 1000,
               "pictures", "higher", "arXiv:2002.09797"),
        Metric("lpips", "Does it look like this very picture?", ("lpips-alex", "lpips-vgg"), 20, "pairs", "lower",
               "arXiv:1801.03924",
               note="no accuracy: two good pictures of one caption are far apart; lower may also mean less variety"),
        Metric("clip", "Does the picture show what was asked?", ("clip-l14", "clip-b32"), 50, "prompts", "higher",
               "arXiv:2104.08718"),
        Metric("clip-i", "Does it look like the subject, in all its real pictures?", ("clip-l14", "clip-b32"), 20, "pictures",
               "higher", "arXiv:2208.12242"),
        Metric("dino", "The same, in details?", ("dino-s16", "dinov2-b14", "dinov2-l14"), 20, "pictures", "higher",
               "arXiv:2208.12242"),
        Metric("clip-i-own", "Does it look like its own real picture?", ("clip-l14", "clip-b32"), 20, "pairs", "higher",
               "arXiv:2208.12242, of pairs"),
        Metric("dino-own", "The same, in details?", ("dino-s16", "dinov2-b14", "dinov2-l14"), 20, "pairs", "higher",
               "arXiv:2208.12242, of pairs"),
        Metric("pickscore", "Which would people choose?", ("pickscore",), 100, "prompts", "higher", "arXiv:2305.01569"),
        Metric("hpsv2", "Which would people choose, by another judge?", ("hpsv2",), 100, "prompts", "higher", "arXiv:2306.09341"),
        Metric("imagereward", "The same, by a judge that reads the prompt with the picture?", ("imagereward",), 100,
               "prompts", "higher", "arXiv:2304.05977"),
        Metric("aesthetic", "Is it pretty, to the taste of LAION's raters?", ("clip-l14+aesthetic",), 100, "prompts", "higher",
               "the LAION aesthetic predictor V2", note="general taste: unfit for a style that is meant to be rough"),
        Metric("diversity", "Do the seeds of a prompt differ?", ("lpips-alex", "dinov2-b14", "shipped"), 20, "prompts", "",
               "arXiv:2208.12242"),
        Metric("vendi", "As how many different pictures do these count?", ("dinov2-l14", "inception"), 50, "pictures", "",
               "arXiv:2210.02410"),
        Metric("copies", "Are drawn pictures copies of training pictures?", ("sscd", "dinov2-b14"), 20, "pictures", "lower",
               "arXiv:2212.03860"),
        Metric("drift", "How far have unrelated prompts moved?", ("dinov2-b14", "clip-l14", "shipped"), 50, "prompts", "lower",
               "paired distance to the base's own picture of the same seed"),
    )
}  # fmt: skip


def encoders_of(metric: Metric) -> list[str]:
    """The names of all encoders that it may be taken with."""
    return [name for choice in metric.encoders for name in choice.split("+")]
