"""Optimisers and learning-rate schedules: what turns gradients into steps."""

from typing import Annotated

from pydantic import Field

from sdtune.optim.kinds import Adafactor, AdamW, AdamW8bit, AdamWScheduleFree, Lion, Muon, Prodigy, ProdigyScheduleFree

Optimizer = Annotated[
    AdamW | AdamW8bit | Adafactor | Lion | Prodigy | AdamWScheduleFree | ProdigyScheduleFree | Muon,
    Field(discriminator="type"),
]
