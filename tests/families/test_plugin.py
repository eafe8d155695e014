"""A family from a plugin: FLUX.1 in one file (examples/plugins/flux.py), against diffusers' own pipeline."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file

import sdtune
from sdtune import config as configs
from sdtune import tuned
from sdtune.config import RunConfig, SampleConfig
from sdtune.errors import ModelError
from sdtune.events import Finished, Sampled, Step, Warned
from sdtune.families import recognise
from sdtune.families.sd3 import Sd3
from sdtune.model import Model
from sdtune.runs import Run
from sdtune.train import train
from tests import tiny
from tests.families.common import Pictures, drawn, pictures, pipeline

PLUGIN = Path(__file__).parents[2] / "examples" / "plugins" / "flux.py"
KINDS = {
    "dev": partial(tiny.flux, use_dynamic_shifting=True, base_image_seq_len=16, max_image_seq_len=256),
    "schnell": partial(tiny.flux, told_guidance=False),
    "static": partial(tiny.flux, shift=3.0),
}
PROMPTS = ("a red dog", "a photo of a blue house")
SETTINGS = (
    "train.steps=4", "train.batch_size=2", "train.validate_every=2", "train.sample_every=4", "train.precision=fp32",
    "train.threads=1", "train.device=cpu", "data.resolution=32", "data.caption_dropout=0.3", "data.validation_share=0.3",
    "optimizer.lr=1e-1", "sample.steps=2", "sample.seeds=[0]", "sample.scheduler=euler", "sample.guidance=1", "sample.width=32",
    "sample.height=32",
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("flux")
    return {kind: tiny.pipeline_folder(make, place / kind) for kind, make in KINDS.items()}


def config_of(path: Path, *overrides: str) -> RunConfig:
    return configs.load(None, [f'plugins=["{PLUGIN}"]', "model.type=flux", f"model.path={path}", *overrides])


def load(path: Path, *overrides: str) -> Model:
    return config_of(path, *overrides).model.load()


def by_flux(pipe: Any, config: SampleConfig, *, told: float = 3.5) -> Pictures:
    """FluxPipeline's pictures. Its guidance_scale is what the transformer is told; true_cfg_scale is ours."""
    drawn = [
        pipe(
            prompt, negative_prompt=config.negative, true_cfg_scale=config.guidance, guidance_scale=told, output_type="np",
            num_inference_steps=config.steps, generator=torch.Generator().manual_seed(seed), height=config.height,
            width=config.width, max_sequence_length=24,
        ).images[0]
        for prompt in config.prompts for seed in config.seeds
    ]  # fmt: skip
    return (np.stack(drawn) * 255).round().astype(np.int16)


@pytest.mark.parametrize("kind", KINDS)
def test_one_prediction_equals_the_transformer_called_as_the_pipeline_calls_it(
    folders: dict[str, Path], kind: str
) -> None:
    model, pipe = load(folders[kind], "model.guidance=2"), pipeline(folders[kind])
    rng = torch.Generator().manual_seed(0)
    x, sigma_B = torch.randn(2, 16, 8, 12, generator=rng), torch.tensor([0.3, 0.9])
    states, pooled, txt_ids = pipe.encode_prompt(list(PROMPTS), None, max_sequence_length=24)
    assert isinstance(pipe.transformer, FluxTransformer2DModel)
    with torch.no_grad():
        theirs = pipe.transformer(
            hidden_states=pipe._pack_latents(x, 2, 16, 8, 12), encoder_hidden_states=states, pooled_projections=pooled,
            timestep=sigma_B * 1000 / 1000, img_ids=pipe._prepare_latent_image_ids(2, 4, 6, "cpu", x.dtype),
            txt_ids=txt_ids, guidance=None if kind == "schnell" else torch.full([2], 2.0),
        ).sample  # fmt: skip
        cond, ids = model.encode_prompts(PROMPTS), model.tokenize(PROMPTS)
        ours = model.denoise(x, sigma_B * 1000, cond)
        anew = model.denoise(x, sigma_B * 1000, type(cond)(cond.states_BLD[:, :0], tokens_BEL=ids))
    torch.testing.assert_close(cond.states_BLD, states)
    torch.testing.assert_close(cond.pooled_BD, pooled)
    torch.testing.assert_close(ours, pipe._unpack_latents(theirs, 16, 24, 2))
    assert torch.equal(ours, anew), "what training a text encoder reads"


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_pictures_equal_diffusers(folders: dict[str, Path], kind: str, guidance: float) -> None:
    """Of two sizes: [dev]'s noise levels follow the size."""
    model, pipe = load(folders[kind]), pipeline(folders[kind])
    for width in (32, 64):
        config = SampleConfig(
            prompts=PROMPTS, seeds=(3,), steps=4, scheduler="euler", negative="a cat", guidance=guidance, width=width, height=32,
        )  # fmt: skip
        ours = drawn(model, config)
        assert abs(ours - by_flux(pipe, config)).max() <= 1
        assert ours.std() > 5 and abs(ours[0] - ours[1]).max() > 0


def test_it_trains_resumes_travels_and_comes_off(folders: dict[str, Path], tmp_path: Path) -> None:
    data = pictures(tmp_path / "pictures", ["a red dog", "a photo of a cat", "a blue house", "the sun"])
    paths = (f"data.path={data}", f"data.cache={tmp_path / 'cache'}", "method.rank=2", "method.alpha=4")
    config = config_of(folders["dev"], *paths, *SETTINGS)
    straight, broken = Run(tmp_path / "straight"), Run(tmp_path / "broken")
    events = list(train(config, straight))
    losses = [e.loss for e in events if isinstance(e, Step)]
    assert isinstance(events[-1], Finished) and len(set(losses)) == 4 and any(isinstance(e, Sampled) for e in events)
    assert all("did not move" not in e.message for e in events if isinstance(e, Warned))
    assert straight.config() == config
    first = train(config, broken)
    next(e for e in first if isinstance(e, Step) and e.step == 2)
    first.close()  # type: ignore[attr-defined]
    assert [e.loss for e in train(config, broken) if isinstance(e, Step)] == losses[2:]
    one, two = (load_file(next(run.final.glob("*.safetensors"))) for run in (straight, broken))
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)

    sampling = SampleConfig(
        prompts=PROMPTS[:1], seeds=(3,), steps=3, scheduler="euler", guidance=1.0, width=32, height=32
    )
    model = config.model.load()
    before, base = {k: v.clone() for k, v in model.denoiser.state_dict().items()}, drawn(model, sampling)
    attached = tuned.of_run(model, straight)
    ours = drawn(model, sampling)
    assert abs(ours - base).max() > 2
    pipe = pipeline(folders["dev"], next(straight.final.glob("*.safetensors")))
    assert abs(by_flux(pipe, sampling) - ours).max() <= 1, "diffusers loads what was trained"
    attached.set_strength(0)
    assert (drawn(model, sampling) == base).all()
    model = config.model.load()
    params = config.method.attach(model, seed=0)
    for p in params.values():
        p.data.normal_()
    assert abs(drawn(model, sampling) - base).max() > 2
    config.method.detach(model)
    after = model.denoiser.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[k], before[k]) for k in before)


def test_its_folder_is_its_own(folders: dict[str, Path]) -> None:
    folder = folders["dev"]
    assert recognise(str(folder)) is None, "no built-in family claims it"
    says = r"names \['diffusers', 'FluxTransformer2DModel'\] as transformer, of no known family; known: .*plugins and model.type"
    for family in (Sd3(path=str(folder)), configs.load(None, [f"model.path={folder}"]).model):
        with pytest.raises(ModelError, match=says) as error:
            family.load()
        assert "\n" not in str(error.value)
    own = (f'plugins=["{PLUGIN}"]', "model.type=flux", *SETTINGS)
    (picture,) = sdtune.sample(folder, *own, prompts=["a"], seeds=[1])
    assert picture.settings["model"] == "dev"


def test_models_of_others_are_refused_as_everywhere(tmp_path: Path) -> None:
    for kind, title in (("sdxl", "SDXL"), ("sd3", "Stable Diffusion 3.x")):
        with pytest.raises(ModelError, match=rf'is {title}, the recipe says flux; set model.type="{kind}"$'):
            load(tiny.family_folder(kind, tmp_path / kind))


def test_a_single_file_is_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "flux1-dev.safetensors"
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.zeros(1)}, file)
    with pytest.raises(ModelError, match=r"FLUX.1 is read from folders in diffusers layout alone") as error:
        load(file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["transformer", "text_encoder_2", "tokenizer_2"])
def test_a_part_of_another_class_is_one_line(folders: dict[str, Path], tmp_path: Path, part: str) -> None:
    folder = Path(shutil.copytree(folders["dev"], tmp_path / "copy"))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, part: ["os", "system"]}))
    with pytest.raises(ModelError, match=rf"names \['os', 'system'\] as {part}; flux needs \w+$"):
        load(folder)


def test_a_variant_with_further_inputs_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["schnell"], tmp_path / "copy"))
    settings = dict(FluxTransformer2DModel.load_config(folder / "transformer"))
    FluxTransformer2DModel.from_config({**settings, "in_channels": 128}).save_pretrained(folder / "transformer")
    with pytest.raises(ModelError, match="reads 128 channels, not 2 x 2 latents of 16"):
        load(folder)


def test_sizes_fit_the_patches(folders: dict[str, Path], tmp_path: Path) -> None:
    from sdtune.errors import DataError

    data = pictures(tmp_path / "pictures", ["a red dog"])
    run = config_of(folders["dev"], f"data.path={data}", f"data.cache={tmp_path}", *SETTINGS, "data.resolution=34")
    with pytest.raises(DataError, match="34 is no multiple of 4, as this model"):
        list(train(run, Run(tmp_path / "run")))
