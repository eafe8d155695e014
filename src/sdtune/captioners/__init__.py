"""Captions for pictures: three kinds of models, one way to write what they say. Importing this package loads no torch.

from sdtune import captioners

for event in captioners.caption("pictures", captioners.CaptionConfig(model=captioners.Wd14(path="tagger"))):
    print(event)
"""

from sdtune.captioners.base import Captioned as Captioned
from sdtune.captioners.base import Event as Event
from sdtune.captioners.base import Finished as Finished
from sdtune.captioners.base import LeftOut as LeftOut
from sdtune.captioners.base import Loaded as Loaded
from sdtune.captioners.base import Opened as Opened
from sdtune.captioners.config import Blip as Blip
from sdtune.captioners.config import CaptionConfig as CaptionConfig
from sdtune.captioners.config import Florence2 as Florence2
from sdtune.captioners.config import Wd14 as Wd14
from sdtune.captioners.config import from_options as from_options
from sdtune.captioners.run import caption as caption
from sdtune.captioners.run import name_of as name_of
from sdtune.captioners.run import pairs as pairs
