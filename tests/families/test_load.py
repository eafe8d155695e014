"""What is recognised, what is refused, and single files: they hold the same model as the folder they were made from."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import sdtune
from sdtune import inspection
from sdtune.config import SampleConfig
from sdtune.errors import ModelError
from sdtune.families import recognise
from sdtune.families.sd1 import Sd1
from sdtune.families.sd2 import Sd2
from sdtune.families.sd3 import Sd3
from sdtune.families.sdxl import Sdxl
from sdtune.model import Model
from tests import tiny
from tests.families import ldm
from tests.families.common import drawn, load

FAMILIES: dict[str, Any] = {"sd1": Sd1, "sd2": Sd2, "sdxl": Sdxl, "sd3": Sd3}
LAYOUTS = {
    "sd1": "sd1",
    "sd2": "sd2",
    "sdxl": "sdxl",
    "sd3": "sd3",
    "sd3-t5": "sd3-t5",
    "sd1-inpainting": "sd1",
    "sd2-epsilon": "sd2",
    "sd2-inpainting": "sd2",
    "sdxl-inpainting": "sdxl",
    "sdxl-v": "sdxl",
}


@pytest.fixture(scope="module")
def file_of(folder_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    place = tmp_path_factory.mktemp("files")

    def file(kind: str) -> Path:
        path = place / f"{kind}.safetensors"
        return path if path.exists() else ldm.write(folder_of(kind), path, LAYOUTS[kind])

    return file


@pytest.mark.parametrize("kind", ["sd1", *tiny.KINDS])
def test_folders_are_recognised(folder_of: Callable[[str], Path], kind: str) -> None:
    assert recognise(str(folder_of(kind))) == kind.partition("-")[0]


def test_what_is_no_model_is_not_recognised(tmp_path: Path) -> None:
    save_file({"unet.x.lora_A.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "model_index.json").write_text("[]")
    assert recognise("embedded") == "sd1"
    for path in (tmp_path / "lora.safetensors", tmp_path / "text.safetensors", tmp_path, tmp_path / "nowhere"):
        assert recognise(str(path)) is None
    assert recognise("owner/name") is None


@pytest.mark.parametrize("given", FAMILIES)
@pytest.mark.parametrize("said", FAMILIES)
def test_a_model_of_another_family_is_told(
    folder_of: Callable[[str], Path], file_of: Callable[[str], Path], given: str, said: str
) -> None:
    if given == said:
        return
    for path in (folder_of(given), file_of(given)):
        with pytest.raises(ModelError, match=rf'is .*, the recipe says {said}; set model.type="{given}"$') as error:
            FAMILIES[said](path=str(path)).load()
        assert "\n" not in str(error.value)


def assert_same(one: Model, two: Model) -> None:
    config = SampleConfig(prompts=("a red dog",), seeds=(3,), steps=3, scheduler="euler", guidance=3.0)
    assert (drawn(one, config) == drawn(two, config)).all()
    assert torch.equal(one.alphas_T, two.alphas_T) and one.prediction == two.prediction
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(one.encode_images(pixels).mean_BCHW, two.encode_images(pixels).mean_BCHW)
    for name, part in one.parts.items():
        ours, theirs = part.state_dict(), two.parts[name].state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_single_file_is_the_model_of_its_folder(
    folder_of: Callable[[str], Path], file_of: Callable[[str], Path], kind: str
) -> None:
    file, folder = file_of(kind), folder_of(kind)
    assert recognise(str(file)) == kind.partition("-")[0]
    model = load(file, f"model.config={folder}")
    assert_same(model, load(folder))
    assert (model.label, model.source) == (file.name, str(file))


def test_an_inpainting_file_goes_with_the_usual_settings(
    folder_of: Callable[[str], Path], file_of: Callable[[str], Path]
) -> None:
    assert_same(load(file_of("sd1-inpainting"), f"model.config={folder_of('sd1')}"), load(folder_of("sd1-inpainting")))


def test_marks_in_the_file_say_v_prediction(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    """Settings of the usual SDXL (noise prediction) go with the file; `v_pred` and `ztsnr` are what other tools write."""
    settings = folder_of("sdxl")
    plain, marked = tmp_path / "plain.safetensors", tmp_path / "marked.safetensors"
    ldm.write(folder_of("sdxl-v"), plain, "sdxl")
    ldm.write(folder_of("sdxl-v"), marked, "sdxl", v_pred=torch.zeros(0), ztsnr=torch.zeros(0))
    said = load(plain, f"model.config={settings}", "model.prediction=v", "model.zero_snr=true")
    for model in (load(marked, f"model.config={settings}"), said):
        assert (model.prediction, float(model.alphas_T[-1])) == ("v", 0.0)
        torch.testing.assert_close(model.alphas_T, load(folder_of("sdxl-v")).alphas_T)
    assert load(plain, f"model.config={settings}").prediction == "epsilon"


def test_pure_noise_and_noise_prediction_do_not_go_together(folder_of: Callable[[str], Path]) -> None:
    with pytest.raises(ModelError, match=r'the last timestep is pure noise.*set model.prediction="v"'):
        load(folder_of("sdxl"), "model.zero_snr=true")


def test_a_part_that_the_file_lacks_is_taken_from_the_settings(
    folder_of: Callable[[str], Path], file_of: Callable[[str], Path], tmp_path: Path
) -> None:
    short = {k: v for k, v in load_file(file_of("sd3")).items() if not k.startswith("text_encoders.clip_g")}
    save_file(short, tmp_path / "short.safetensors")
    assert_same(load(tmp_path / "short.safetensors", f"model.config={folder_of('sd3')}"), load(folder_of("sd3")))


def test_t5_may_be_left_out(folder_of: Callable[[str], Path]) -> None:
    model = load(folder_of("sd3-t5"), "model.t5=false")
    assert len(model.text_encoders) == 2 and model.encode_prompts(["a"]).states_BLD.shape[1] == tiny.MAX_TOKENS


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model.diffusion_model.out.2.bias": None}, r"unet: it lacks conv_out.bias, which the settings in .* ask for"),
        ({"model.diffusion_model.out.2.bias": torch.zeros(7)}, r"conv_out.bias is \(7,\), the settings in .* \(4,\)"),
        ({"model.diffusion_model.out.2.bias": torch.full((4,), torch.nan)}, "unet: conv_out.bias holds NaN"),
    ],
)
def test_a_damaged_file_is_one_line(
    folder_of: Callable[[str], Path], file_of: Callable[[str], Path], tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    state = {**load_file(file_of("sd1")), **change}
    save_file({k: v for k, v in state.items() if v is not None}, tmp_path / "bad.safetensors")
    with pytest.raises(ModelError, match=says) as error:
        load(tmp_path / "bad.safetensors", f"model.config={folder_of('sd1')}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"hello", "cannot be read as safetensors"),
        (b"", "cannot be read as safetensors"),
        (b"\x02" + bytes(7) + b"{}", "no checkpoint of a known family"),
    ],
)
def test_a_file_that_holds_no_model_is_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=says) as error:
        Sd1(path=str(tmp_path / "x.safetensors")).load()
    assert "\n" not in str(error.value)


def test_a_file_without_settings_says_what_to_do(file_of: Callable[[str], Path]) -> None:
    with pytest.raises(
        ModelError,
        match=r"a single file needs settings.*stabilityai/stable-diffusion-xl-base-1.0.*download=true.*model.config",
    ):
        load(file_of("sdxl"))


def test_the_usual_settings_come_from_the_hub_cache(
    folder_of: Callable[[str], Path], file_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    cached = tmp_path / "models--stabilityai--stable-diffusion-2-1"
    shutil.copytree(folder_of("sd2"), cached / "snapshots" / ("0" * 40), ignore=shutil.ignore_patterns("*.safetensors"))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert_same(load(file_of("sd2")), load(folder_of("sd2")))


def test_a_file_of_a_hub_repository_is_found_in_the_cache(
    folder_of: Callable[[str], Path], file_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    inside = tmp_path / "models--owner--name" / "snapshots" / ("0" * 40) / "v1"
    inside.mkdir(parents=True)
    shutil.copy(file_of("sd1"), inside / "model.safetensors")
    (tmp_path / "models--owner--name" / "refs").mkdir()
    (tmp_path / "models--owner--name" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    path = "owner/name/v1/model.safetensors"
    assert recognise(path) == "sd1"
    model = Sd1(path=path, config=str(folder_of("sd1"))).load()
    assert_same(model, load(folder_of("sd1")))
    assert model.source == model.label == f"{path}@{'0' * 40}"
    with pytest.raises(
        ModelError, match=r"other.safetensors: no such file, nor in the local Hub cache; set model.download"
    ):
        Sd1(path="owner/name/other.safetensors").load()


@pytest.mark.parametrize("kind", ["sdxl", "sd3"])
def test_other_classes_are_refused_before_anything_is_imported(
    folder_of: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    folder = Path(shutil.copytree(folder_of(kind), tmp_path / "copy"))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "text_encoder_2": ["os", "system"]}))
    with pytest.raises(ModelError, match=r"names \['os', 'system'\] as text_encoder_2; .* needs CLIPTextModelWithProj"):
        FAMILIES[kind](path=str(folder)).load()


def test_other_input_channels_are_refused(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folder_of("sd1"), tmp_path / "copy"))
    tiny.unet(in_channels=8).save_pretrained(folder / "unet")  # InstructPix2Pix
    with pytest.raises(ModelError, match=r"has 8 input channels; supported are 4, and 9 for inpainting"):
        Sd1(path=str(folder)).load()


def test_the_refiner_is_refused(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folder_of("sdxl"), tmp_path / "copy"))
    wide = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "use_linear_projection": True}
    tiny.unet(40, projection_class_embeddings_input_dim=24 + 5 * 8, **wide).save_pretrained(folder / "unet")
    with pytest.raises(ModelError, match=r"not told a prompt's vector and six sizes .* this is no SDXL base"):
        Sdxl(path=str(folder)).load()


def test_inspect_and_sample_find_the_family_themselves(
    folder_of: Callable[[str], Path], file_of: Callable[[str], Path]
) -> None:
    report = inspection.inspect(str(folder_of("sd3")))
    assert isinstance(report, inspection.ModelReport) and (report.family, report.prediction) == ("sd3", "flow")
    assert {p.name for p in report.parts} == {"denoiser", "vae", "text_encoder", "text_encoder_2"}
    assert {t.part for t in report.text_targets} == {"text_encoder", "text_encoder_2"}
    settings = ("sample.steps=1", f"model.config={folder_of('sdxl')}", "train.device=cpu", "train.precision=fp32")
    (picture,) = sdtune.sample(file_of("sdxl"), *settings, prompts=["a"], seeds=[1])
    assert picture.settings["model"] == "sdxl.safetensors"


def test_the_fingerprint_knows_every_encoder(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    first = load(folder_of("sdxl")).fingerprint
    folder = Path(shutil.copytree(folder_of("sdxl"), tmp_path / "copy"))
    assert load(folder).fingerprint == first
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "force_zeros_for_empty_prompt": False}))
    assert load(folder).fingerprint != first
    shutil.copy(folder_of("sdxl") / "model_index.json", folder)
    (file,) = (folder / "text_encoder_2").glob("*.safetensors")
    save_file({k: v + 1e-3 for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    assert load(folder).fingerprint != first
