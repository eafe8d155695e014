"""Is this machine ready? Checks of the environment and, if a recipe is given, of its model and pictures. Uses no network."""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sdtune.console import count, duration, megabytes
from sdtune.errors import SdtuneError
from sdtune.files import free_bytes

if TYPE_CHECKING:
    from sdtune.config import RunConfig

Status = Literal["ok", "note", "warn", "fail"]
FAST_BF16 = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 bf16"}


@dataclass(frozen=True)
class Check:
    """One finding. `remedy` says what to do where `status` is "warn" or "fail"."""

    name: str
    status: Status
    detail: str
    remedy: str = ""


def checks(recipe: str | None = None, overrides: tuple[str, ...] = ()) -> Iterator[Check]:
    """All checks, quick ones first. Never raises: what goes wrong is a finding."""
    for check in (_python, _packages, _device, _cpu, _memory, _disk, _writing, _hub, _embedded):
        yield from _guarded(check)
    if recipe is not None:
        yield from _recipe(recipe, overrides)


def _guarded(check: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    try:
        yield from check()
    except Exception as error:  # a broken installation must not break its own diagnosis
        name = check.__name__.strip("_").replace("_", " ")
        yield Check(
            name,
            "fail",
            f"{type(error).__name__}: {error}",
            "install sdtune again: pip install --force-reinstall sdtune",
        )


def _python() -> Iterator[Check]:
    yield Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _packages() -> Iterator[Check]:
    faults = []
    seen = []
    for name, floor in floors().items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            faults.append((f"{name} is missing", f"{name}>={floor}"))
            continue
        seen.append(f"{name} {found}")
        if _numbers(found) < _numbers(floor):
            faults.append((f"{name} {found} is older than {floor}", f"{name}>={floor}"))
    if faults:
        wanted = " ".join(f"'{want}'" for _, want in faults)
        yield Check("packages", "fail", "; ".join(fault for fault, _ in faults), f"pip install --upgrade {wanted}")
    else:
        main = [
            text for text in seen if text.split()[0] in ("torch", "diffusers", "transformers", "safetensors", "pillow")
        ]
        yield Check("packages", "ok", f"all {len(seen)} at or above their floors ({', '.join(main)})")


def floors() -> dict[str, str]:
    """The lowest versions that sdtune's own metadata allows, by package."""
    found = {}
    for line in metadata.requires("sdtune") or ():
        if "extra ==" not in line and (match := re.match(r"([A-Za-z0-9._-]+)\s*>=\s*([0-9.]+)", line)):
            found[match[1]] = match[2]
    return found


def _numbers(version: str) -> tuple[int, ...]:
    numbers = [int(n) for n in re.findall(r"\d+", version.partition("+")[0])[:3]]
    return tuple(numbers + [0] * (3 - len(numbers)))


def _device() -> Iterator[Check]:
    import torch

    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            free, total = (b / 2**20 for b in torch.cuda.mem_get_info(i))
            bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
            low = free < 6 * 1024
            yield Check(
                "device", "warn" if low else "ok",
                f"cuda:{i} {torch.cuda.get_device_name(i)}, {megabytes(free)} of {megabytes(total)} free, {bf16}",
                "Stable Diffusion 1.5 wants about 6 GB free: close other programs, or use the embedded base" if low else "",
            )  # fmt: skip
    elif torch.backends.mps.is_available():
        yield Check("device", "ok", "mps (Apple GPU)")
    elif shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists():
        kind = "built for the CPU only" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        yield Check(
            "device", "warn", f"an NVIDIA driver is here, but torch {torch.__version__} ({kind}) sees no GPU",
            "install the CUDA build of torch that fits the driver; until then training runs on the CPU",
        )  # fmt: skip
    else:
        yield Check("device", "ok", "cpu: the embedded base trains in minutes; Stable Diffusion 1.5 wants a GPU")


def _cpu() -> Iterator[Check]:
    import psutil
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or usable
    flags = cpu_flags()
    fast = [word for flag, word in FAST_BF16.items() if flag in flags]
    bf16 = f"fast bf16 ({', '.join(fast)})" if fast else "no fast bf16, trains in fp32"
    threads = os.environ.get("OMP_NUM_THREADS")
    detail = f"{usable} usable of {physical} cores, {torch.backends.cpu.get_cpu_capability()}, {bf16}"
    yield Check("cpu", "ok", detail + (f", OMP_NUM_THREADS={threads}" if threads else ""))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 1.5 * usable:
        yield Check(
            "load", "warn", f"{load:.1f} processes want {usable} cores",
            "training slows down far more than its share: stop other work, or set train.threads to the cores that are free",
        )  # fmt: skip


def cpu_flags() -> set[str]:
    """The instruction sets of the CPU, as Linux names them; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return set()
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return set(match[1].split()) if match else set()


def _memory() -> Iterator[Check]:
    import psutil

    memory = psutil.virtual_memory()
    free, total = memory.available / 2**20, memory.total / 2**20
    if (limit := _memory_limit()) is not None and limit < total:
        total, free = limit, min(free, limit)
    low = free < 2048
    remedy = "the embedded base wants about 2 GB: close other programs, or lower train.batch_size and sample.batch_size"
    yield Check(
        "memory", "warn" if low else "ok", f"{megabytes(free)} of {megabytes(total)} free", remedy if low else ""
    )


def _memory_limit() -> float | None:
    """The limit of this process's control group in MB, if there is one."""
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) / 2**20 if text.isdigit() else None


def _disk() -> Iterator[Check]:
    free = free_bytes(Path("runs")) / 2**20
    status: Status = "fail" if free < 200 else "warn" if free < 2048 else "ok"
    remedy = (
        ""
        if status == "ok"
        else "make room, or write elsewhere with --out; a checkpoint of a full fine-tuning of SD 1.5 takes about 10 GB"
    )
    yield Check("disk", status, f"{megabytes(free)} free for runs/", remedy)


def _writing() -> Iterator[Check]:
    from sdtune.data.config import DataConfig

    places = {"writing": (Path("runs"), "--out"), "cache": (DataConfig().cache_folder(), "data.cache or SDTUNE_CACHE")}
    for name, (wanted, elsewhere) in places.items():
        place = _existing(wanted)
        try:
            with tempfile.TemporaryFile(dir=place):
                yield Check(name, "ok", f"{place.absolute()} can be written to")
        except OSError as error:
            yield Check(
                name, "fail", f"{place.absolute()}: {error.strerror}", f"choose another folder with {elsewhere}"
            )


def _existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    return next(p for p in (path, *path.absolute().parents) if p.is_dir())


def _hub() -> Iterator[Check]:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    models = sorted(p.name.removeprefix("models--").replace("--", "/") for p in cache.glob("models--*"))
    held = f"{len(models)} models" + (
        f" ({', '.join(models[:3])}{', ...' if len(models) > 3 else ''})" if models else ""
    )
    state = (
        "HF_HUB_OFFLINE is set: nothing will be fetched"
        if constants.HF_HUB_OFFLINE
        else "fetches only with model.download=true"
    )
    yield Check("hub cache", "ok", f"{held} in {cache}; {state}")


def _embedded() -> Iterator[Check]:
    from importlib import resources

    base = Path(str(resources.files("sdtune") / "demo" / "base"))
    missing = [part for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler") if not (base / part).is_dir()]
    if missing:
        yield Check(
            "embedded base",
            "fail",
            f"{base} lacks {', '.join(missing)}",
            "install sdtune again",
        )
    else:
        size = sum(p.stat().st_size for p in base.rglob("*") if p.is_file()) / 2**20
        yield Check("embedded base", "ok", f"there, {megabytes(size)}")


# ---- of a recipe


def _recipe(recipe: str, overrides: tuple[str, ...]) -> Iterator[Check]:
    from sdtune import config as configs

    try:
        config = configs.load(recipe, overrides)
    except SdtuneError as error:
        for line in str(error).splitlines():
            yield Check("recipe", "fail", line, "`sdtune keys` lists all keys")
        return
    yield Check("recipe", "ok", f"{recipe}: {config.method.type} on {config.model.path}, {config.train.steps} steps")
    long: dict[str, list[str]] = {}
    yield from _pictures(config, long)
    yield from _model(config, long)


def _pictures(config: RunConfig, long: dict[str, list[str]]) -> Iterator[Check]:
    """Checks the data, and puts into `long` what is said of captions that are cut off, with the captions of these pictures."""
    try:
        from sdtune.data.check.findings import told
        from sdtune.pictures import scan

        splits = scan(config)
    except SdtuneError as error:
        for line in str(error).splitlines():
            yield Check("pictures", "fail", line)
        return
    cut = [fault for fault in splits.warned if fault.kind == "long_caption"]
    theirs = {path for fault in cut for path in fault.pictures}
    captions = [text for e in (*splits.train, *splits.validation) if e.image in theirs for text in e.captions]
    long |= {said: captions for said in told(cut)}  # noqa: C420 (one list for all of them)
    train, held_out = len(splits.train), len(splits.validation)
    yield Check("pictures", "ok", f"{train} to train on, {held_out} held out ({config.data.label})")
    for note in (note for note in splits.notes if note not in long):
        yield Check("pictures", "note", note)
    if held_out < 20:
        yield Check(
            "pictures", "warn", f"{held_out} held-out pictures",
            "below 20 the validation loss says little: add pictures, or raise data.validation_share",
        )  # fmt: skip


CUT_OFF = "what is beyond is not learned: put the important words first"


def _model(config: RunConfig, long: dict[str, list[str]]) -> Iterator[Check]:
    import time

    from sdtune import devices

    began = time.monotonic()
    try:
        device, dtype = devices.choose(config.train)
        model = config.model.load(device=device, dtype=dtype)
        model.chunks = config.data.caption_chunks
        trained = sum(p.numel() for p in config.method.attach(model, seed=config.train.seed).values())
    except SdtuneError as error:
        yield Check("model", "fail", str(error))
        yield from (Check("captions", "warn", said, CUT_OFF) for said in long)
        return
    precision = str(dtype).removeprefix("torch.")
    where = f"{device}, {precision}, loaded in {duration(time.monotonic() - began)}"
    yield Check("model", "ok", f"{model.source}: {config.method.type} trains {count(trained)} parameters; {where}")
    for said, captions in long.items():
        yield Check(
            "captions", "warn", said,
            CUT_OFF + (f", or set data.caption_chunks={model.chunks_for(captions)}" if model.chunkable else ", or shorten them"),
        )  # fmt: skip
