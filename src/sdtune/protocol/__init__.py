"""Two folders of drawn pictures against the real ones of a test folder: the protocol of many published fine-tunings, with its intervals.

from sdtune import protocol

result = protocol.judge("test", "drawn-by-the-original", "drawn-by-the-tuned", metrics="lpips,kid,clip")
protocol.write(result, Path("report"))

Pictures are paired by name (pairing.py), looked at by published encoders (metrics/), and drawn again in pairs for the intervals
(measures.py). Importing this package loads no torch.
"""

from sdtune.protocol.judging import DEFAULT as DEFAULT
from sdtune.protocol.judging import Choice as Choice
from sdtune.protocol.judging import Result as Result
from sdtune.protocol.judging import choices as choices
from sdtune.protocol.judging import judge as judge
from sdtune.protocol.page import check_folder as check_folder
from sdtune.protocol.page import write as write
from sdtune.protocol.pairing import Item as Item
from sdtune.protocol.pairing import Pairs as Pairs
from sdtune.protocol.pairing import pair as pair
