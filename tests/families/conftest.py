from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests import tiny


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model of a kind, made once. "sd1" is `tiny.sd1_folder`."""
    models = tmp_path_factory.mktemp("models")

    @cache
    def folder(kind: str) -> Path:
        return tiny.sd1_folder(models / kind) if kind == "sd1" else tiny.family_folder(kind, models / kind)

    return folder
