"""Dockerfile, compose.yaml and the unit of docs/deploying.md against what is there: nothing here needs a container engine."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = (ROOT / "compose.yaml").read_text(encoding="utf-8")


def instructions() -> list[tuple[str, str]]:
    """(FROM, python:...), in order; lines that go on are one."""
    text = re.sub(r"\\\n\s*", " ", re.sub(r"(?m)^#.*\n", "", DOCKERFILE))
    return [(name, rest) for line in text.splitlines() if line.strip() for name, _, rest in [line.partition(" ")]]


def of(name: str) -> list[str]:
    return [rest for found, rest in instructions() if found == name]


def copied() -> list[str]:
    """What is copied from the repository."""
    return [word for rest in of("COPY") if not rest.startswith("--from") for word in rest.split()[:-1]]


def ignored(path: str) -> bool:
    """By .dockerignore: the last line that fits decides."""
    out = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!").removeprefix("**/")
            parts = (path, path.split("/")[0], *(path.split("/") if "**/" in line else ()))
            out = (not line.startswith("!")) if any(fnmatch(part, pattern) for part in parts) else out
    return out


def compose() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    found: dict[str, Any] = yaml.safe_load(COMPOSE)
    return found


def service() -> dict[str, Any]:
    found: dict[str, Any] = compose()["services"]["sdtune"]
    return found


def options() -> set[str]:
    done = subprocess.run(
        [sys.executable, "-m", "sdtune", "serve", "--help"], capture_output=True, text=True, check=True,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"},
    )  # fmt: skip
    return set(re.findall(r"--[a-z-]+", done.stdout))


# ---- the image


def test_what_is_copied_is_there_and_is_let_through() -> None:
    assert len(copied()) >= 7
    for path in copied():
        assert (ROOT / path).exists() and not ignored(path), path


@pytest.mark.parametrize(
    "path",
    [".git/config", "token", "runs/a/config.toml", "served/queue.sqlite", ".env", "src/sdtune/__pycache__/a.pyc"],
)
def test_nothing_else_gets_to_the_builder(path: str) -> None:
    assert ignored(path)


def test_what_the_package_is_made_of_is_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    wanted = [
        *wheel,
        project["project"]["readme"],
        *project["project"]["license-files"],
        "constraints.txt",
        "pyproject.toml",
    ]
    assert {path.split("/")[0] for path in wanted} <= set(copied())


def test_bases_are_named_and_none_is_the_latest() -> None:
    bases = [rest.split()[0].replace("${PYTHON}", of("ARG")[0].partition("=")[2]) for rest in of("FROM")]
    assert bases and all(re.fullmatch(r"python:3\.\d+-slim-[a-z]+", base) for base in bases)
    assert "latest" not in DOCKERFILE and "latest" not in service()["image"]


def test_it_runs_as_a_user_without_rights() -> None:
    last = [name for name, _ in instructions()]
    assert (
        of("USER") == ["sdtune"]
        and last.index("USER") > last.index("RUN")
        and last.index("USER") < last.index("ENTRYPOINT")
    )


def test_every_installation_keeps_to_the_tested_set() -> None:
    installs = [rest for rest in of("RUN") if "pip install" in rest]
    assert len(installs) == 2 and all("--constraint constraints.txt" in rest for rest in installs)
    assert "TORCH_INDEX" in installs[0] and "://" not in DOCKERFILE.replace("http://127.0.0.1", "")


def test_no_secret_is_in_a_layer() -> None:
    told = " ".join(of("ARG") + of("ENV") + of("COPY"))
    assert not re.search(r"token|password|secret", told, re.IGNORECASE)


def test_what_is_started_is_something_that_serve_takes() -> None:
    known = options()
    for words in (json.loads(of("CMD")[0]), service()["command"]):
        assert words[0] == "serve" and {w for w in words if w.startswith("--")} <= known
        assert words[words.index("--port") + 1] == of("EXPOSE")[0]
    assert json.loads(of("ENTRYPOINT")[0]) == ["sdtune"]


def test_both_ask_for_its_health_in_the_same_way_and_at_a_page_that_is_there() -> None:
    told = json.loads(of("HEALTHCHECK")[0].partition("CMD ")[2])
    assert service()["healthcheck"]["test"] == ["CMD", *told] and "/livez" in told[-1]


def test_compose_gives_no_more_than_is_needed() -> None:
    told = service()
    assert told["read_only"] and told["cap_drop"] == ["ALL"] and told["ports"] == ["127.0.0.1:7860:7860"]
    words = told["command"]
    assert words[words.index("--token-file") + 1] == "/run/secrets/" + told["secrets"][0]
    assert set(compose()["secrets"]) == set(told["secrets"])
    volumes = {volume.split(":")[1] for volume in told["volumes"]}
    assert volumes == set(json.loads(of("VOLUME")[0]))


# ---- the unit


def unit() -> str:
    found = re.search(r"```ini\n(.*?)```", (ROOT / "docs" / "deploying.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found[1]


def test_the_units_command_is_one_that_serve_takes() -> None:
    words = shlex.split(re.findall(r"(?m)^ExecStart=(.*)$", unit())[0])
    assert words[1] == "serve" and {w for w in words if w.startswith("--")} <= options()
    drain, stop = float(words[words.index("--drain") + 1]), float(re.findall(r"(?m)^TimeoutStopSec=(\d+)$", unit())[0])
    assert stop > drain


def test_systemd_has_nothing_to_say_about_it(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("needs systemd-analyze")
    file = tmp_path / "sdtune.service"
    text = re.sub(r"ExecStart=\S+", f"ExecStart={sys.executable}", unit())  # it asks for a program that is there
    file.write_text(text, encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False)
    told = [line for line in done.stderr.splitlines() if "sdtune.service" in line]
    assert told == [], done.stderr


# ---- the same steps by hand


@pytest.mark.slow
def test_the_package_can_be_made_of_what_is_copied(tmp_path: Path) -> None:
    """As the Dockerfile does, but for the packages, which are those of these tests."""
    context, venv = tmp_path / "src", tmp_path / "venv"
    for path in copied():
        if (ROOT / path).is_dir():
            shutil.copytree(ROOT / path, context / path, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        else:
            context.mkdir(exist_ok=True)
            shutil.copy(ROOT / path, context / path)
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    (site,) = venv.glob("lib/python3*/site-packages")
    (here,) = [p for p in sys.path if p.endswith("site-packages")][:1]
    (site / "tested.pth").write_text(here, encoding="utf-8")
    pip = [
        str(venv / "bin" / "pip"),
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "--disable-pip-version-check",
        "--ignore-installed",
    ]
    done = subprocess.run([*pip, str(context)], capture_output=True, text=True, check=False)
    if "hatchling" in done.stderr and "No module" in done.stderr:
        pytest.skip("needs hatchling")
    assert done.returncode == 0, done.stderr
    where = [str(venv / "bin" / "python"), "-c", "import sdtune; print(sdtune.__file__)"]
    elsewhere = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    told = subprocess.run(where, capture_output=True, text=True, cwd=tmp_path, check=True, env=elsewhere)
    assert str(venv) in told.stdout
    serve_as_the_image_does(tmp_path, venv)


def serve_as_the_image_does(folder: Path, venv: Path) -> None:
    """Its CMD in an empty folder: refused without a token, healthy with one, and ended by SIGTERM as it should be."""
    import time

    command = [str(venv / "bin" / "sdtune"), *json.loads(of("CMD")[0])]
    command[command.index("--port") + 1] = "17860"
    work, environment = (
        folder / "work",
        {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "SDTUNE_TOKEN")},
    )
    for name in ("runs", "data", "served", "cache"):
        (work / name).mkdir(parents=True)
    refused = subprocess.run(
        command, cwd=work, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert refused.returncode == 2 and "token" in refused.stderr
    environment |= {"SDTUNE_TOKEN": "x" * 32, "SDTUNE_CACHE": str(work / "cache" / "sdtune")}
    process = subprocess.Popen(command, cwd=work, env=environment, stderr=subprocess.DEVNULL)
    try:
        health = json.loads(of("HEALTHCHECK")[0].partition("CMD ")[2])
        health[-1] = health[-1].replace(":7860", ":17860")
        for _ in range(120):
            if subprocess.run(health, env=environment, capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.5)
        else:
            raise AssertionError("it never was healthy")
    finally:
        process.terminate()
        assert process.wait(60) == 143
