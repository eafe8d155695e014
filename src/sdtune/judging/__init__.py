"""How figures become an answer: what is judged (scores), how it is measured (figures), what it means (verdicts)."""

from typing import Literal

Looker = Literal["auto", "shipped", "published"]
"""What looks at pictures: the encoder that comes with sdtune, published ones, or what fits the pictures' size."""
