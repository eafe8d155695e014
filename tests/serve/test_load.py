"""Many at once, on the embedded base: each gets what it would get alone."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.serve.conftest import Live, serving

MANY = 200


def wishes() -> list[dict[str, Any]]:
    """No two alike: prompts, seeds, sizes, samplers, guidance."""
    prompts = ("a red apple", "dog face", "sun", "a sailing boat")
    return [
        {
            "prompt": prompts[i % 4], "seeds": [i], "steps": 2 + i % 2, "guidance": (1.0, 5.0)[i % 2], "previews": i % 3 == 0,
            "scheduler": ("dpm++2m", "euler-a", "ddim")[i % 3], "width": (64, 96)[i % 5 == 0],
        }
        for i in range(MANY)
    ]  # fmt: skip


def answers(live: Live, at_once: int) -> list[str]:
    """The SHA-256 of each answer's file."""

    def draw(wish: dict[str, Any]) -> str:
        (file,) = live.draw(**wish)
        return hashlib.sha256(file).hexdigest()

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(draw, wishes()))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_hundred_at_once_get_what_each_would_get_alone(tmp_path: Path) -> None:
    with serving(Path("embedded"), tmp_path / "many", "--queue", "300", "--workers", "2") as live:
        together = answers(live.ready(), MANY)
    with serving(Path("embedded"), tmp_path / "alone") as live:
        alone = answers(live.ready(), 1)
    assert together == alone
    assert len(set(alone)) == MANY
