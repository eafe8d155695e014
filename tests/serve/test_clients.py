"""The programs that people have, against the real server: OpenAI's client, webuiapi, and plain HTTP."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import webuiapi
from PIL import Image

from sdtune import infotext
from tests import tiny
from tests.serve.conftest import Live
from tests.serve.test_live import by_hand, pixels, png

pytestmark = pytest.mark.slow
OURS = {"seed": 1, "steps": 2}


@pytest.fixture
def client(live: Live) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live.address}/v1", api_key="none", timeout=60)


@pytest.fixture
def webui(live: Live) -> webuiapi.WebUIApi:
    return webuiapi.WebUIApi(baseurl=f"{live.address}/sdapi/v1", sampler="DPM++ 2M", steps=2)


# ---- POST /generate/


def test_generate_gives_both_pictures_of_one_noise(live: Live, runs: Path, tmp_path: Path) -> None:
    told = live.http.post("/generate/", json={"prompt": "a red apple", "run": "lora", **OURS}).json()
    assert told["seed"] == 1 and list(told["images"]) == ["original", "finetuned"]
    drawn = {name: base64.b64decode(image["png"]) for name, image in told["images"].items()}
    assert drawn["finetuned"] == by_hand(runs / "lora", tmp_path / "a.png")  # as `sdtune sample`, byte for byte
    assert np.array_equal(pixels(drawn["original"]), pixels(by_hand(runs.parent / "model", tmp_path / "b.png")))
    assert live.http.get(told["images"]["finetuned"]["href"]).content == drawn["finetuned"]
    for model in ("original", "finetuned"):
        body = {"prompt": "a red apple", "run": "lora", "model": model, **OURS}
        assert list(live.http.post("/generate/", json=body).json()["images"]) == [model]


# ---- OpenAI's client


def test_openai_draws_the_same_bytes(live: Live, client: openai.OpenAI) -> None:
    answer = client.images.generate(prompt="a red apple", model="lora", n=2, size="auto", extra_body=OURS)
    assert answer.data and answer.output_format == "png"
    drawn = [base64.b64decode(image.b64_json or "") for image in answer.data]
    assert drawn == live.draw(model="lora", seeds=[1, 2])


def test_openai_in_other_formats_and_sizes(client: openai.OpenAI) -> None:
    for kind in ("jpeg", "webp"):
        answer = client.images.generate(
            prompt="a red apple",
            model="model",
            size="64x32",
            output_format=kind,
            output_compression=80,
            extra_body=OURS,
        )
        assert answer.data and answer.size == "64x32"
        image = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json or "")))
        assert (image.format, image.size) == (kind.upper(), (64, 32))


def test_openai_by_address(live: Live, client: openai.OpenAI) -> None:
    answer = client.images.generate(prompt="a red apple", model="lora", response_format="url", extra_body=OURS)
    assert answer.data and answer.data[0].url
    assert [httpx.get(answer.data[0].url).content] == live.draw(model="lora", seeds=[1])


def test_openai_with_an_adapter_and_our_words(live: Live, client: openai.OpenAI) -> None:
    ours = {
        **OURS,
        "guidance": 2,
        "negative_prompt": "a dog",
        "scheduler": "ddim",
        "lora": [{"id": "lora", "weight": 0.5}],
    }
    answer = client.images.generate(prompt="a red apple", model="model", extra_body=ours)
    assert answer.data
    wanted = live.draw(
        model="model",
        seeds=[1],
        guidance=2,
        negative="a dog",
        scheduler="ddim",
        adapters=[{"id": "lora", "strength": 0.5}],
    )
    assert [base64.b64decode(answer.data[0].b64_json or "")] == wanted


def test_openai_as_it_comes(live: Live, client: openai.OpenAI) -> None:
    stream = client.images.generate(
        prompt="a red apple", model="lora", n=2, stream=True, partial_images=2, extra_body={"seed": 1, "steps": 30}
    )
    events = list(stream)
    kinds = [event.type for event in events]
    assert kinds.count("image_generation.completed") == 2 and kinds[-1] == "image_generation.completed"
    assert 1 <= kinds.count("image_generation.partial_image") <= 4
    drawn = [base64.b64decode(e.b64_json) for e in events if e.type == "image_generation.completed"]
    assert drawn == live.draw(model="lora", seeds=[1, 2], steps=30)
    shown = next(e for e in events if e.type == "image_generation.partial_image")
    assert Image.open(io.BytesIO(base64.b64decode(shown.b64_json))).format == "JPEG"


def test_openai_paints_anew_what_is_transparent(client: openai.OpenAI) -> None:
    begin = tiny.picture(5)
    mask = Image.new("RGBA", (32, 32), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 16, 32))
    answer = client.images.edit(
        image=png(begin), mask=png(mask), prompt="a red apple", model="lora", size="auto", extra_body=OURS
    )
    assert answer.data
    painted = pixels(base64.b64decode(answer.data[0].b64_json or ""))
    assert np.array_equal(painted[:, 16:], np.asarray(begin)[:, 16:])
    assert not np.array_equal(painted[:, :16], np.asarray(begin)[:, :16])
    stream = client.images.edit(image=[png(begin)], prompt="a red apple", model="lora", stream=True, extra_body=OURS)
    assert [event.type for event in stream] == ["image_edit.completed"]


def test_openais_models_and_errors(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["full", "lora", "model"]
    assert client.models.retrieve("lora").owned_by == "sdtune"
    with pytest.raises(openai.NotFoundError, match="no such model"):
        client.models.retrieve("dall-e-3")
    with pytest.raises(openai.UnprocessableEntityError, match="n: ") as caught:
        client.images.generate(prompt="a", n=1000)
    assert (caught.value.param, caught.value.code, caught.value.type) == ("n", "invalid", "invalid_request_error")
    with pytest.raises(openai.UnprocessableEntityError, match="one picture"):
        client.images.edit(image=[png(tiny.picture(1)), png(tiny.picture(2))], prompt="a")


# ---- webuiapi


def test_webui_draws_the_same_bytes(live: Live, webui: webuiapi.WebUIApi) -> None:
    override = {"sd_model_checkpoint": "lora"}
    answer = webui.txt2img(
        prompt="a (red:1.3) apple",
        negative_prompt="a dog",
        seed=1,
        cfg_scale=5,
        width=32,
        height=32,
        batch_size=2,
        override_settings=override,
    )  # fmt: skip
    files = [base64.b64decode(image) for image in answer.json["images"]]
    wanted = live.draw(
        model="lora",
        prompt="a (red:1.3) apple",
        negative="a dog",
        prompt_weights=True,
        seeds=[1, 2],
        width=32,
        height=32,
    )
    assert files == wanted
    assert answer.info["all_seeds"] == [1, 2] and answer.info["sampler_name"] == "DPM++ 2M"
    assert answer.image.info["parameters"] == answer.info["infotexts"][0]
    assert answer.parameters["prompt"] == "a (red:1.3) apple"


def test_webui_by_chance_and_without_pictures(webui: webuiapi.WebUIApi) -> None:
    seeds = {webui.txt2img(prompt="a", width=32, height=32, send_images=False).info["seed"] for _ in range(2)}
    assert len(seeds) == 2
    assert webui.txt2img(prompt="a", width=32, height=32, send_images=False).images == []


def test_webui_loras_and_samplers(live: Live, webui: webuiapi.WebUIApi) -> None:
    answer = webui.txt2img(
        prompt="a red apple <lora:lora:0.5>", seed=1, cfg_scale=5, width=32, height=32, sampler_name="DPM++ 2M", scheduler="Karras",
        override_settings={"sd_model_checkpoint": "model"},
    )  # fmt: skip
    wanted = live.draw(
        model="model", adapters=[{"id": "lora", "strength": 0.5}], seeds=[1], scheduler="dpm++2m-karras", width=32, height=32,
        prompt_weights=True,
    )  # fmt: skip
    assert [base64.b64decode(image) for image in answer.json["images"]] == wanted


def test_webui_from_a_picture_and_in_a_mask(webui: webuiapi.WebUIApi) -> None:
    begin, mask = tiny.picture(5), Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 16, 32))
    changed = webui.img2img(images=[begin], prompt="a red apple", seed=1, width=32, height=32, denoising_strength=0.6)
    assert changed.image.size == (32, 32)
    painted = webui.img2img(
        images=[begin], mask_image=mask, mask_blur=0, prompt="a red apple", seed=1, width=32, height=32
    )
    assert np.array_equal(np.asarray(painted.image)[:, 16:], np.asarray(begin)[:, 16:])
    assert "inpaint_full_res" in painted.info["notes"][0]
    other = webui.img2img(
        images=[begin],
        mask_image=mask,
        mask_blur=0,
        inpainting_mask_invert=1,
        prompt="a red apple",
        seed=1,
        width=32,
        height=32,
    )
    assert np.array_equal(np.asarray(other.image)[:, :16], np.asarray(begin)[:, :16])
    assert webui.img2img(images=[begin], mask_image=mask, prompt="a", seed=1, width=64, height=32).image.size == (
        64,
        32,
    )


def test_webui_asks_what_there_is(webui: webuiapi.WebUIApi) -> None:
    assert webui.util_get_model_names() == ["full", "lora", "model"]
    assert "Euler a" in webui.util_get_sampler_names() and "karras" in webui.util_get_scheduler_names()
    assert [row["name"] for row in webui.get_loras()] == ["lora"]
    assert webui.get_scripts() == {"txt2img": [], "img2img": []}
    assert webui.get_upscalers()[0]["name"] == "None" and webui.get_memory()["ram"]["total"] > 0
    for ask in (
        webui.get_sd_vae, webui.get_prompt_styles, webui.get_hypernetworks, webui.get_face_restorers, webui.get_realesrgan_models,
        webui.get_latent_upscale_modes, webui.refresh_checkpoints,
    ):  # fmt: skip
        assert not ask()
    assert webui.get_embeddings()["loaded"] == {} and webui.get_cmd_flags() == {}


def test_webui_chooses_a_model(webui: webuiapi.WebUIApi) -> None:
    before = webui.util_get_current_model()
    try:
        webui.util_set_model("lora")
        assert webui.util_get_current_model() == "lora"
        drawn = webui.txt2img(prompt="a", width=32, height=32)
        assert drawn.info["sd_model_name"] == "lora" and "lora@final" in drawn.info["infotexts"][0]
    finally:
        webui.set_options({"sd_model_checkpoint": before})


def test_webui_reads_a_pictures_text(webui: webuiapi.WebUIApi, tmp_path: Path) -> None:
    drawn = webui.txt2img(prompt="a red apple", seed=7, width=32, height=32)
    told = webui.png_info(drawn.image)
    assert told.json["info"] == drawn.info["infotexts"][0]
    assert told.json["parameters"]["Seed"] == "7" and "sdtune" in told.json["items"]
    (tmp_path / "a.png").write_bytes(base64.b64decode(drawn.json["images"][0]))
    assert infotext.read(tmp_path / "a.png").settings["seed"] == 7


def test_webui_is_told_what_is_wrong(webui: webuiapi.WebUIApi) -> None:
    with pytest.raises(RuntimeError, match="enable_hr: is not supported"):
        webui.txt2img(prompt="a", enable_hr=True)
    with pytest.raises(RuntimeError, match="no such adapter"):
        webui.txt2img(prompt="a <lora:unknown:1>", width=32, height=32)
    assert "no such model" in webui.set_options({"sd_model_checkpoint": "x"})["error"]["message"]


@pytest.mark.parametrize("how", ["interrupt", "skip"])
def test_webui_follows_and_interrupts(live: Live, webui: webuiapi.WebUIApi, how: str) -> None:
    idle = webui.get_progress()
    assert idle["progress"] == 0 and idle["state"]["job_count"] == 0
    webui.util_wait_for_ready()
    answers = list[Any]()
    asking = threading.Thread(
        target=lambda: answers.append(webui.txt2img(prompt="a", seed=1, steps=60, batch_size=16, width=32, height=32))
    )
    asking.start()
    told = live.until(lambda: (p := webui.get_progress())["state"]["job_no"] >= 1 and p)
    assert 0 < told["progress"] < 1 and told["state"]["job_count"] == 16 and told["eta_relative"] > 0
    shown = live.until(lambda: webui.get_progress()["current_image"])
    assert Image.open(io.BytesIO(base64.b64decode(shown))).format == "JPEG"
    getattr(webui, how)()
    asking.join(30)
    assert 1 <= len(answers[0].images) < 16 and len(answers[0].info["all_seeds"]) == len(answers[0].images)
    assert webui.get_progress()["state"]["job_count"] == 0


# ---- F40: who goes away


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate/", {}),
        ("/v1/images/generations", {"n": 16}),
        ("/v1/images/generations", {"n": 16, "stream": True, "partial_images": 1}),
        ("/sdapi/v1/txt2img", {"batch_size": 16, "width": 32, "height": 32}),
    ],
)
def test_a_request_that_goes_away_is_cancelled(live: Live, path: str, body: dict[str, Any]) -> None:
    sent = json.dumps({"prompt": "a red apple", "steps": 150, "seed": 1, **body}).encode()
    url = httpx.URL(live.address)
    head = f"POST {path} HTTP/1.1\r\nHost: {url.host}\r\nContent-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n"
    with socket.create_connection((url.host, url.port)) as connection:
        connection.sendall(head.encode() + sent)
        (job,) = live.until(lambda: live.http.get("/api/jobs", params={"state": "running"}).json()["jobs"])
        live.until(lambda: live.job(job["id"])["progress"])
    assert live.over(job["id"])["state"] == "cancelled"
    assert live.draw(model="lora")  # the next one is right
