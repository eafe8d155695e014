"""What a method's config means: ranks and alphas by layer, defaults, faults named."""

import math
from typing import Any

import pytest

from sdtune import config as configs
from sdtune.errors import ConfigError
from sdtune.methods.lora import Lora


def test_ranks_and_alphas_by_layer() -> None:
    method = Lora(rank=8, alpha=4, rank_pattern={"*.attn2.*": 2, "*.to_k": 16}, alpha_pattern={"unet.*.to_q": 6})
    assert [method.rank_of(f"unet.x.{n}") for n in ("attn1.to_q", "attn2.to_q", "attn2.to_k")] == [8, 2, 16]
    assert method.scale_of("unet.x.attn1.to_q") == 6 / 8 and method.scale_of("unet.x.attn2.to_k") == 4 / 16
    assert Lora(rank=8).scale_of("x") == 1
    assert Lora(rank=8, rslora=True).scale_of("x") == pytest.approx(math.sqrt(8))
    assert Lora(rank=16, alpha=4, rslora=True).scale_of("x") == 1


def test_a_pattern_is_kept_in_a_recipe(tmp_path: Any) -> None:
    config = configs.load(None, ['method.rank_pattern={"*.attn2.*"=4}', "method.text_encoders=[1, 2]"])
    (tmp_path / "c.toml").write_text(configs.to_toml(config))
    assert configs.load(tmp_path / "c.toml") == config
    assert config.method.rank_pattern == {"*.attn2.*": 4}  # type: ignore[union-attr]
    assert config.method.text_encoders == (1, 2)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("method.type=dorra", "did you mean 'dora'"),
        ('method.rank_pattern={"x"=0}', "method.rank_pattern.x: input should be greater than 0"),
        ("method.text_encoders=[0]", "method.text_encoders"),
        ("method.init=pisa", "did you mean 'pissa'"),
        ("method.blok=3", "method.blok: no such key"),
    ],
)
def test_faults_are_named(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        configs.load(None, [override])
