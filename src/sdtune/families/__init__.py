"""One file per model family: load, encode, denoise, decode."""

from typing import Annotated

from pydantic import Field

from sdtune.families.recognition import BuiltIn
from sdtune.families.recognition import recognise as recognise

Family = Annotated[BuiltIn, Field(discriminator="type")]
