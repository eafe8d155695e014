"""One file per training method: what becomes trainable, how it is merged, how it is taken off again."""

from typing import Annotated

from pydantic import Field

from sdtune.methods.dora import Dora
from sdtune.methods.full import Full
from sdtune.methods.loha import Loha
from sdtune.methods.lokr import Lokr
from sdtune.methods.lora import Lora
from sdtune.methods.oft import Oft
from sdtune.methods.qlora import Qlora
from sdtune.methods.student import Student
from sdtune.methods.textual_inversion import TextualInversion

Method = Annotated[
    Full | Lora | Dora | Qlora | Loha | Lokr | Oft | TextualInversion | Student, Field(discriminator="type")
]
