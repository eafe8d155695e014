"""One file per model family: load, encode, denoise, decode."""

from typing import Annotated

from pydantic import Field

from sdtune.families.recognition import recognise as recognise
from sdtune.families.sd1 import Sd1
from sdtune.families.sd2 import Sd2
from sdtune.families.sd3 import Sd3
from sdtune.families.sdxl import Sdxl

Family = Annotated[Sd1 | Sd2 | Sdxl | Sd3, Field(discriminator="type")]
