"""Keys for services: from the environment, or from a file `.env` in the working folder. Never printed, never written."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sdtune.errors import ConfigError

_LINE = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)")


def key(name: str, where_to_get: str, folder: Path | None = None) -> str:
    """The key `name`; the environment goes before the file. Raises ConfigError, which says where to get one."""
    value = os.environ.get(name, "").strip() or read_env((folder or Path.cwd()) / ".env").get(name, "")
    if not value:
        raise ConfigError(f"{name} is not set: get a key at {where_to_get}, then put {name}=... into .env or export it")
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ConfigError(f"{name} holds characters that no key has; copy it again")
    return value


def read_env(path: Path) -> dict[str, str]:
    """The lines KEY=VALUE of a file, quotes around a value taken away; none if there is no such file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError):  # the error's text could hold a part of the file
        raise ConfigError(f"{path}: cannot be read as UTF-8 text") from None
    return {found[1]: _value(found[2].strip()) for found in map(_LINE.fullmatch, text.splitlines()) if found}


def _value(text: str) -> str:
    if text[:1] in ("'", '"') and (end := text.find(text[0], 1)) > 0:
        return text[1:end]
    return re.split(r"\s+#", text, maxsplit=1)[0].strip()
