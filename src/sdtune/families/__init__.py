"""One file per model family: load, encode, denoise, decode."""

from typing import Annotated

from pydantic import Field

from sdtune.families.sd1 import Sd1

Family = Annotated[Sd1, Field()]
