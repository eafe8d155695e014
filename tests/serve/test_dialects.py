"""Other programs' APIs without a worker: what is refused, and how; what is read from strangers. Nothing draws here."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdtune.serve.limits import Limits
from sdtune.serve.queue import Job
from tests.serve.conftest import App, run
from tests.serve.test_guard import refused

Make = Callable[..., App]


def png(
    size: tuple[int, int] = (32, 32), mode: str = "RGB", colour: Any = 128, texts: dict[str, str] | None = None
) -> bytes:
    info = PngInfo()
    for key, text in (texts or {}).items():
        info.add_text(key, text)
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


PICTURE = b64(png())


def ask(app: App, path: str, body: object, end: str = "cancelled", **error: str) -> tuple[httpx.Response, list[Job]]:
    """The answer to a request whose job ends as `end` as soon as it waits, and the jobs."""

    async def work() -> httpx.Response:
        asked = asyncio.create_task(app.client.post(path, json=body, headers={"content-type": "application/json"}))
        while not asked.done():
            for job in app.server.queue.waiting():
                app.server.dispatcher._over(job.id, end, error or None)
            await asyncio.sleep(0.005)
        return await asked

    return run(work()), app.server.queue.jobs()


def wish(app: App, path: str, body: object) -> dict[str, Any]:
    """What would be drawn."""
    answer, jobs = ask(app, path, body)
    refused(answer, 409, "cancelled")
    return jobs[0].wish


def upload(app: App, name: str) -> Image.Image:
    with Image.open(app.server.store.path(name, "upload")) as image:
        image.load()
    return image


# ---- waiting


@pytest.mark.parametrize(
    ("code", "status"),
    [("invalid", 422), ("gone", 404), ("out_of_memory", 507), ("worker_died", 500), ("internal", 500)],
)
def test_a_failed_job_is_an_error_of_the_one_form(make_app: Make, code: str, status: int) -> None:
    for path in ("/generate/", "/v1/images/generations", "/sdapi/v1/txt2img"):
        answer, _ = ask(make_app(), path, {"prompt": "a"}, "failed", code=code, message="so it is")
        assert refused(answer, status, code) == "so it is"
        assert answer.headers["x-should-retry"] == "false"


def test_openais_words_are_in_every_error(make_app: Make) -> None:
    error = run(make_app(token="0123456789abcdef").client.get("/api/models")).json()["error"]
    assert (error["type"], error["param"]) == ("authentication_error", None)
    error = run(make_app().client.post("/v1/images/generations", json={"prompt": "a", "n": 0})).json()["error"]
    assert (error["type"], error["param"], error["field"]) == ("invalid_request_error", "n", "n")


def test_a_full_queue_says_when_to_come_again(make_app: Make) -> None:
    app = make_app(Limits(queue=1))
    run(app.post({"prompt": "a"}))
    for path in ("/generate/", "/v1/images/generations", "/sdapi/v1/txt2img", "/sdapi/v1/img2img"):
        answer = run(
            app.client.post(path, json={"prompt": "a", **({"init_images": [PICTURE]} if "img2img" in path else {})})
        )
        refused(answer, 429, "queue_full")
        assert int(answer.headers["retry-after"]) > 0
    assert app.server.queue.uploads() == []  # refused before the picture was decoded


def test_who_leaves_frees_the_place(make_app: Make) -> None:
    """F40: while it waits."""
    app = make_app()

    async def work() -> None:
        body = json.dumps({"prompt": "a"}).encode()
        there = asyncio.Event()
        sent = list[Any]()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await there.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
        scope = {
            "type": "http", "method": "POST", "path": "/generate/", "raw_path": b"/generate/", "query_string": b"", "headers": headers,
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 7860), "scheme": "http", "http_version": "1.1",
        }  # fmt: skip
        asking = asyncio.create_task(app.app(scope, receive, send))
        while not app.server.queue.waiting():
            await asyncio.sleep(0.005)
        there.set()
        await asking
        await asyncio.sleep(0.05)

    run(work())
    assert [job.state for job in app.server.queue.jobs()] == ["cancelled"]


def test_what_waits_for_an_answer_does_not_wait_for_the_next_start(make_app: Make) -> None:
    app = make_app()

    async def work() -> httpx.Response:
        asked = asyncio.create_task(app.client.post("/generate/", json={"prompt": "a"}))
        while not app.server.queue.waiting():
            await asyncio.sleep(0.005)
        await app.server.dispatcher.drain(0)
        return await asked

    refused(run(work()), 503, "stopping")
    assert [job.state for job in app.server.queue.jobs()] == ["cancelled"]


# ---- POST /generate/


def test_generate_in_our_words(make_app: Make) -> None:
    app = make_app()
    told = wish(app, "/generate/", {"prompt": "a", "steps": 3, "guidance": 2, "seed": 7, "negative": "b"})
    assert (told["kind"], told["model"], told["seeds"], told["steps"], told["guidance"]) == (
        "compare",
        "full",
        [7],
        3,
        2,
    )
    assert told["negative"] == "b"
    told = wish(app, "/generate/", {"prompt": "a", "model": "original", "run": "lora"})
    assert (told["kind"], told["model"]) == ("txt2img", "model")
    assert wish(app, "/generate/", {"prompt": "a", "model": "finetuned", "run": "lora"})["model"] == "lora"


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"run": "../x"}, 404, "run"),
        ({"run": "model"}, 422, "run"),
        ({"model": "tuned"}, 422, "model"),
        ({"seed": 2**80}, 422, "seed"),
        ({"seed": -1}, 422, "seed"),
        ({"steps": 10**9}, 422, "steps"),
        ({"guidance": 1e9}, 422, "guidance"),
        ({"sampler": "x"}, 422, "sampler"),
    ],
)
def test_generate_refuses(make_app: Make, body: dict[str, Any], status: int, field: str) -> None:
    answer = run(make_app().client.post("/generate/", json={"prompt": "a", **body}))
    assert field in refused(answer, status, "not_found" if status == 404 else "invalid", field)


# ---- OpenAI


def test_openais_fields_become_ours(make_app: Make) -> None:
    told = wish(
        make_app(),
        "/v1/images/generations",
        {
            "prompt": "a", "model": "model", "n": 3, "size": "64x32", "seed": 5, "steps": 7, "guidance_scale": 2, "negative_prompt": "b",
            "lora": [{"id": "lora", "weight": 0.5}], "scheduler": "ddim", "strength": 0.5, "quality": "hd", "style": "vivid",
            "user": "me", "moderation": "low", "background": "auto", "output_format": "webp", "output_compression": 50,
        },
    )  # fmt: skip
    assert told["seeds"] == [5, 6, 7] and (told["width"], told["height"]) == (64, 32)
    assert (told["steps"], told["guidance"], told["negative"], told["scheduler"]) == (7, 2, "b", "ddim")
    assert told["adapters"] == [{"id": "lora", "strength": 0.5}] and told["strength"] == 0.5


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"n": 1000}, 422, "n"),
        ({"n": 10**12}, 422, "n"),
        ({"size": "big"}, 422, "size"),
        ({"size": "99999x99999"}, 422, "size"),
        ({"size": "33x32"}, 422, "size"),
        ({"size": "2048x2048"}, 422, "size"),
        ({"background": "transparent"}, 422, "background"),
        ({"output_format": "gif"}, 422, "output_format"),
        ({"output_format": "jpeg", "response_format": "url"}, 422, "output_format"),
        ({"output_compression": 101}, 422, "output_compression"),
        ({"partial_images": 1}, 422, "partial_images"),
        ({"stream": True, "response_format": "url"}, 422, "response_format"),
        ({"guidance": 1, "guidance_scale": 1}, 422, "guidance_scale"),
        ({"guidance_scale": 1e6}, 422, "guidance"),
        ({"lora": [{"id": "../../x"}]}, 404, "lora"),
        ({"lora": "../x"}, 422, "lora"),
        ({"lora": "/etc/passwd"}, 422, "lora"),
        ({"lora": [{"id": "http://x/y", "weight": 1}]}, 404, "lora"),
        ({"model": "dall-e-3"}, 404, "model"),
        ({"scheduler": "x"}, 422, "scheduler"),
        ({"image": "http://x"}, 422, "image"),
        ({"seed": 2**53 - 2, "n": 5}, 422, "seed"),
    ],
)
def test_openais_fields_that_cannot_be_meant(make_app: Make, body: dict[str, Any], status: int, field: str) -> None:
    answer = run(make_app().client.post("/v1/images/generations", json={"prompt": "a", **body}))
    refused(answer, status, "not_found" if status == 404 else "invalid", field)


def edit(app: App, files: list[tuple[str, bytes]], **fields: str) -> httpx.Response:
    sent = [(key, ("a.png", data, "image/png")) for key, data in files]
    answer: httpx.Response = run(app.client.post("/v1/images/edits", data={"prompt": "a", **fields}, files=sent))
    return answer


def test_an_edit_refuses(make_app: Make) -> None:
    app, image = make_app(), png()
    refused(edit(app, [("image", image), ("image", image)]), 422, "invalid", "image")
    refused(edit(app, [("image[]", image), ("image[]", image)]), 422, "invalid", "image")
    refused(edit(app, [("mask", image)]), 422, "invalid", "image")
    refused(edit(app, [("image", b"no picture")]), 422, "picture", "image")
    refused(edit(app, [("image", image), ("mask", png())]), 422, "picture", "mask")  # nothing of it is transparent
    refused(edit(app, [("image", image), ("mask", png((16, 16), "RGBA", (0, 0, 0, 0)))]), 422, "picture", "mask")
    refused(edit(app, [("image", image)], n="99"), 422, "invalid", "n")
    refused(edit(app, [("image", image)], lora="nonsense"), 422, "invalid", "lora")
    refused(edit(app, [("image", image)], nonsense="1"), 422, "invalid", "nonsense")
    refused(edit(app, [("image", image), ("prompt", image)]), 422, "invalid", "prompt")
    answer = run(app.client.post("/v1/images/edits", json={"prompt": "a"}))
    refused(answer, 415, "media_type", "Content-Type")
    headers = {"content-type": "multipart/form-data; boundary=x"}
    refused(run(app.client.post("/v1/images/edits", content=b"--y nonsense", headers=headers)), 400, "invalid_form")
    refused(
        run(app.client.post("/v1/images/edits", content=b"x", headers={"content-type": "multipart/form-data"})),
        400,
        "invalid_form",
    )
    assert app.server.queue.jobs() == []


@pytest.mark.parametrize(
    ("files", "kind", "strength"),
    [
        ([("image", png())], "img2img", 0.75),
        ([("image[]", png()), ("mask", png(mode="RGBA", colour=(0, 0, 0, 0)))], "inpaint", 1.0),
        ([("image", png(mode="RGBA", colour=(9, 9, 9, 0)))], "inpaint", 1.0),
    ],
)
def test_what_is_transparent_is_painted_anew(
    make_app: Make, files: list[tuple[str, bytes]], kind: str, strength: float
) -> None:
    app = make_app()

    async def work() -> None:
        sent = [(key, ("a.png", data, "image/png")) for key, data in files]
        fields = {"prompt": "a", "n": "2", "lora": '[{"id": "lora"}]', "model": "model"}
        asked = asyncio.create_task(app.client.post("/v1/images/edits", data=fields, files=sent))
        while not asked.done():
            for job in app.server.queue.waiting():
                app.server.dispatcher.cancel(job)
            await asyncio.sleep(0.005)
        refused(await asked, 409, "cancelled")

    run(work())
    told = app.server.queue.jobs()[0].wish
    assert (told["kind"], told["denoising_strength"], len(told["seeds"])) == (kind, strength, 2)
    if kind == "inpaint":
        mask = upload(app, told["mask"])
        assert mask.getextrema() == (255, 255)


# ---- AUTOMATIC1111


def test_a_web_uis_fields_become_ours(make_app: Make) -> None:
    body = {
        "prompt": "a (red:1.2) apple <lora:lora:0.5>", "negative_prompt": "b", "seed": 5, "sampler_name": "DPM++ 2M", "scheduler": "Karras",
        "batch_size": 2, "n_iter": 2, "steps": 7, "cfg_scale": 3, "width": 64, "height": 32,
        "override_settings": {"sd_model_checkpoint": "model"},
    }  # fmt: skip
    told = wish(make_app(), "/sdapi/v1/txt2img", body)
    assert told["prompt"] == "a (red:1.2) apple" and told["prompt_weights"] and told["negative"] == "b"
    assert told["adapters"] == [{"id": "lora", "strength": 0.5}] and told["model"] == "model"
    assert told["seeds"] == [5, 6, 7, 8] and told["scheduler"] == "dpm++2m-karras"
    assert (told["steps"], told["guidance"], told["width"], told["height"]) == (7, 3, 64, 32)


def test_fields_that_clients_always_send(make_app: Make) -> None:
    """SillyTavern's kind: all of them, with what is off."""
    body = {
        "url": "http://127.0.0.1:7860", "auth": "", "prompt": "a", "negative_prompt": "b", "sampler_name": "Euler a",
        "scheduler": "automatic", "steps": 20, "cfg_scale": 7, "width": 64, "height": 64, "restore_faces": False, "enable_hr": False,
        "hr_upscaler": "Latent", "hr_scale": 1.5, "hr_additional_modules": [], "denoising_strength": 0.7, "hr_second_pass_steps": 0,
        "seed": -1, "clip_skip": 1, "save_images": True, "send_images": True, "do_not_save_grid": False, "do_not_save_samples": False,
        "override_settings": {"CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic", "forge_additional_modules": []},
        "override_settings_restore_afterwards": True,
    }  # fmt: skip
    assert wish(make_app(), "/sdapi/v1/txt2img", body)["scheduler"] == "euler-a"


def test_the_model_that_draws_is_named_with_its_strength(make_app: Make) -> None:
    body = {"prompt": "a <lora:lora:0.5>", "override_settings": {"sd_model_checkpoint": "lora"}}
    told = wish(make_app(), "/sdapi/v1/txt2img", body)
    assert (told["model"], told["strength"], told["adapters"]) == ("lora", 0.5, [])


@pytest.mark.parametrize(
    ("name", "schedule", "ours"),
    [
        (None, None, "euler"),
        ("Euler a", "Automatic", "euler-a"),
        ("DPM++ 2M Karras", None, "dpm++2m-karras"),
        ("DPM++ 2M Karras", "Karras", "dpm++2m-karras"),
        ("DPM++ 2M SDE", "karras", "dpm++2m-sde-karras"),
        ("DPM++ 2M", "Uniform", "dpm++2m"),
        ("DPM++ 2M", "automatic", "dpm++2m"),
        ("DDIM", None, "ddim"),
        ("dpm++2m", None, "dpm++2m"),
    ],
)
def test_samplers_by_a_web_uis_names(make_app: Make, name: str | None, schedule: str | None, ours: str) -> None:
    told = wish(make_app(), "/sdapi/v1/txt2img", {"prompt": "a", "sampler_name": name, "scheduler": schedule})
    assert told["scheduler"] == ours


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"enable_hr": True}, 422, "enable_hr"),
        ({"restore_faces": True}, 422, "restore_faces"),
        ({"tiling": True}, 422, "tiling"),
        ({"styles": ["x"]}, 422, "styles"),
        ({"script_name": "x"}, 422, "script_name"),
        ({"alwayson_scripts": {"ControlNet": {}}}, 422, "alwayson_scripts"),
        ({"refiner_checkpoint": "x"}, 422, "refiner_checkpoint"),
        ({"subseed_strength": 0.5}, 422, "subseed_strength"),
        ({"unknown": 1}, 422, "unknown"),
        ({"sampler_name": "LMS"}, 422, "sampler_name"),
        ({"sampler_name": "Euler", "scheduler": "Karras"}, 422, "scheduler"),
        ({"sampler_name": "DPM++ 2M", "scheduler": "Exponential"}, 422, "scheduler"),
        ({"sampler_name": "DPM++ 2M Karras", "scheduler": "Uniform"}, 422, "scheduler"),
        ({"override_settings": {"sd_model_checkpoint": "../x"}}, 404, "sd_model_checkpoint"),
        ({"override_settings": {"sd_model_checkpoint": 7}}, 404, "sd_model_checkpoint"),
        ({"override_settings": {"CLIP_stop_at_last_layers": 2}}, 422, "override_settings.CLIP_stop_at_last_layers"),
        ({"override_settings": {"outdir_samples": "/"}}, 422, "override_settings.outdir_samples"),
        ({"prompt": "a <lora:../x:1>"}, 404, "prompt"),
        ({"prompt": "a <lora:/etc/passwd:1>"}, 404, "prompt"),
        ({"prompt": "a <lora:lora:high>"}, 422, "prompt"),
        ({"prompt": "a <lora:lora:1e99>"}, 422, "prompt"),
        ({"prompt": "a <hypernet:x:1>"}, 422, "prompt"),
        ({"prompt": "[a:b:0.5]"}, 422, "prompt"),
        ({"negative_prompt": "[a|b]"}, 422, "negative_prompt"),
        ({"prompt": ""}, 422, "prompt"),
        ({"batch_size": 10**9, "n_iter": 10**9}, 422, "batch_size"),
        ({"cfg_scale": 1000}, 422, "cfg_scale"),
        ({"steps": 10**9}, 422, "steps"),
        ({"width": 100000}, 422, "width"),
        ({"seed": 2**80}, 422, "seed"),
        ({"seed": -2}, 422, "seed"),
    ],
)
def test_a_web_uis_fields_that_cannot_be_meant(make_app: Make, body: dict[str, Any], status: int, field: str) -> None:
    body = {"prompt": "a", "override_settings": {"sd_model_checkpoint": "model"}, **body}
    answer = run(make_app().client.post("/sdapi/v1/txt2img", json=body))
    message = refused(answer, status, "not_found" if status == 404 else "invalid", field)
    assert field in message or status == 404


@pytest.mark.parametrize(
    ("body", "status", "code", "field"),
    [
        ({"init_images": []}, 422, "invalid", "init_images"),
        ({"init_images": [PICTURE, PICTURE]}, 422, "invalid", "init_images"),
        ({"init_images": ["http://127.0.0.1:1/a.png"]}, 422, "invalid", "init_images"),
        ({"init_images": ["file:///etc/passwd"]}, 422, "invalid", "init_images"),
        ({"init_images": ["data:image/png,abc"]}, 422, "invalid", "init_images"),
        ({"init_images": ["/etc/passwd"]}, 422, "invalid", "init_images"),
        ({"init_images": [b64(b"no picture")]}, 422, "picture", "init_images"),
        ({"mask": b64(png((16, 16), "L", 255))}, 422, "picture", "mask"),
        ({"mask": b64(png((32, 32), "L", 0))}, 422, "picture", "mask"),
        ({"mask": b64(png((32, 32), "L", 255)), "inpainting_mask_invert": 1}, 422, "picture", "mask"),
        ({"resize_mode": 2}, 422, "invalid", "resize_mode"),
        ({"inpainting_fill": 2}, 422, "invalid", "inpainting_fill"),
        ({"denoising_strength": 0}, 422, "invalid", "denoising_strength"),
        ({"denoising_strength": 2}, 422, "invalid", "denoising_strength"),
        ({"width": 10**6}, 422, "invalid", "width"),
    ],
)
def test_a_web_uis_pictures_that_cannot_be_meant(
    make_app: Make, body: dict[str, Any], status: int, code: str, field: str
) -> None:
    answer = run(make_app().client.post("/sdapi/v1/img2img", json={"prompt": "a", "init_images": [PICTURE], **body}))
    refused(answer, status, code, field)


def test_a_picture_is_stretched_to_the_size_or_left(make_app: Make) -> None:
    app = make_app()
    half = Image.new("L", (40, 20))
    half.paste(255, (0, 0, 20, 20))
    file = io.BytesIO()
    half.save(file, "PNG")
    body = {
        "prompt": "a", "init_images": ["data:image/png;base64," + b64(png((40, 20)))], "mask": b64(file.getvalue()), "mask_blur": 0,
        "width": 64, "height": 64, "inpainting_mask_invert": 1,
    }  # fmt: skip
    told = wish(app, "/sdapi/v1/img2img", body)
    assert told["kind"] == "inpaint"
    mask = upload(app, told["mask"])
    assert mask.size == (64, 64) and (mask.getpixel((5, 5)), mask.getpixel((60, 60))) == (0, 255)
    told = wish(app, "/sdapi/v1/img2img", body | {"resize_mode": 1})
    assert upload(app, told["image"]).size == (40, 20)
    blurred = upload(app, wish(app, "/sdapi/v1/img2img", body | {"mask_blur": 4})["mask"])
    assert len(blurred.getcolors() or ()) > 4


def test_the_model_of_later_calls(make_app: Make) -> None:
    app = make_app()
    options = run(app.client.get("/sdapi/v1/options")).json()
    assert options["sd_model_checkpoint"] == "full"
    changed = run(
        app.client.post("/sdapi/v1/options", json=options | {"sd_model_checkpoint": "lora"})
    )  # as Open WebUI sends all
    assert changed.status_code == 200
    assert wish(app, "/sdapi/v1/txt2img", {"prompt": "a"})["model"] == "lora"
    override = {"override_settings": {"sd_model_checkpoint": "model"}}
    assert wish(app, "/sdapi/v1/txt2img", {"prompt": "a", **override})["model"] == "model"
    assert wish(app, "/sdapi/v1/txt2img", {"prompt": "a"})["model"] == "lora"
    wish(app, "/sdapi/v1/txt2img", {"prompt": "a", **override, "override_settings_restore_afterwards": False})
    assert run(app.client.get("/sdapi/v1/options")).json()["sd_model_checkpoint"] == "model"
    for body in ({"sd_model_checkpoint": "../x"}, {"sd_vae": "x"}, {"outdir_samples": "/"}):
        assert run(app.client.post("/sdapi/v1/options", json=body)).status_code in (404, 422)


def test_no_list_tells_a_place(make_app: Make, named: Any) -> None:
    app = make_app()
    for name in (
        "sd-models",
        "loras",
        "samplers",
        "schedulers",
        "upscalers",
        "sd-vae",
        "embeddings",
        "cmd-flags",
        "scripts",
        "memory",
    ):
        answer = run(app.client.get(f"/sdapi/v1/{name}"))
        assert answer.status_code == 200 and str(named.parent) not in answer.text
    models = run(app.client.get("/sdapi/v1/sd-models")).json()
    assert [m["title"] for m in models] == ["full", "lora", "model"] and models[0]["filename"] == "full"
    refused(run(app.client.get("/sdapi/v1/server-status")), 404, "not_found")


# ---- F44: a stranger's picture


def text_of(app: App, data: bytes) -> httpx.Response:
    answer: httpx.Response = run(app.client.post("/sdapi/v1/png-info", json={"image": b64(data)}))
    return answer


def test_a_web_uis_text_is_told(make_app: Make) -> None:
    text = 'a <b>cat</b>\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x768, Note: "a, b"'
    told = text_of(make_app(), png(texts={"parameters": text})).json()
    assert told["info"] == text
    assert told["parameters"]["Prompt"] == "a <b>cat</b>" and told["parameters"]["Note"] == "a, b"
    assert (told["parameters"]["Size-1"], told["parameters"]["Size-2"]) == ("512", "768")


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "{" * 50_000,
        '{"a":' * 20_000,
        'Steps: "' * 9_000,
        "a: b, " * 15_000,
        "\n" * 90_000,
        "x" * 10**6,
    ],
)
def test_a_hostile_text_is_shown_or_refused_and_quickly(make_app: Make, text: str) -> None:
    began = time.process_time()
    for key in ("parameters", "sdtune"):
        answer = text_of(make_app(), png(texts={key: text}))
        assert answer.status_code == (200 if len(text) <= 100_000 else 422)
        assert answer.headers["content-type"] == "application/json"
    assert time.process_time() - began < 2


def test_what_is_no_png_has_no_text(make_app: Make) -> None:
    app = make_app()
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    assert text_of(app, file.getvalue()).json() == {"info": "", "items": {}, "parameters": {}}
    refused(text_of(app, b"nothing"), 422, "picture", "image")
    refused(text_of(app, png()[:40]), 422, "picture", "image")
    refused(run(app.client.post("/sdapi/v1/png-info", json={"image": "http://127.0.0.1/x"})), 422, "invalid", "image")


# ---- how much


def test_a_body_may_be_as_large_as_its_pictures(make_app: Make) -> None:
    app = make_app(Limits(body=2000, upload=3000))
    big = b64(b"x" * 2500)
    for path, body in (("img2img", {"prompt": "a", "init_images": [big]}), ("png-info", {"image": big})):
        assert run(app.client.post(f"/sdapi/v1/{path}", json=body)).status_code == 422  # read, and no picture
    for path, body in (
        ("img2img", {"prompt": "a", "init_images": [big] * 4}),
        ("png-info", {"image": big * 2}),
        ("txt2img", {"prompt": big}),
    ):
        refused(run(app.client.post(f"/sdapi/v1/{path}", json=body)), 413, "too_large")
    refused(run(app.client.post("/sdapi/v1/png-info", json={"image": b64(b"x" * 3100)})), 413, "too_large", "image")
    refused(edit(app, [("image", b"x" * 3500)]), 413, "too_large", "image")
    refused(edit(app, [("image", b"x" * 9000)]), 413, "too_large")


def test_a_picture_of_too_many_pixels_is_refused(make_app: Make) -> None:
    app = make_app(Limits(upload_pixels=1000))
    refused(
        run(app.client.post("/sdapi/v1/img2img", json={"prompt": "a", "init_images": [PICTURE]})),
        422,
        "picture",
        "init_images",
    )
    refused(edit(app, [("image", png())]), 422, "picture", "image")
