"""Two folders of drawn pictures against the real ones of a test folder: the protocol of many published fine-tunings, with its intervals.

from sdtune import protocol

result = protocol.judge("test", "drawn-by-the-original", "drawn-by-the-tuned", metrics="lpips,kid,clip")
protocol.write(result, Path("report"))

Figures are asked for by name (choosing.py), pictures are paired by name (pairing.py), looked at by published encoders (looking.py,
metrics/), and drawn again in pairs for the intervals (measures.py). Importing this package loads no torch.
"""

from sdtune.protocol.choosing import DEFAULT as DEFAULT
from sdtune.protocol.choosing import Choice as Choice
from sdtune.protocol.choosing import choices as choices
from sdtune.protocol.judging import check_train as check_train
from sdtune.protocol.judging import judge as judge
from sdtune.protocol.page import check_folder as check_folder
from sdtune.protocol.page import write as write
from sdtune.protocol.pairing import Item as Item
from sdtune.protocol.pairing import Pairs as Pairs
from sdtune.protocol.pairing import pair as pair
from sdtune.protocol.results import Near as Near
from sdtune.protocol.results import Result as Result
