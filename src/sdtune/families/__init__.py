"""One file per model family: load, encode, denoise, decode."""

import logging
from typing import Annotated

from pydantic import Field

from sdtune.families.recognition import BuiltIn
from sdtune.families.recognition import recognise as recognise

# diffusers imports bitsandbytes wherever it is installed, which on a CPU with bf16 then warns that it misses a package, at every start.
# Nothing here needs that package.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

Family = Annotated[BuiltIn, Field(discriminator="type")]
