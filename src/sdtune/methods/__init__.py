"""One file per training method: what becomes trainable, how it is merged, how it is taken off again."""

from typing import Annotated

from pydantic import Field

from sdtune.methods.full import Full
from sdtune.methods.lora import Lora

Method = Annotated[Full | Lora, Field(discriminator="type")]
