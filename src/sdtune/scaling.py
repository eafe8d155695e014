"""Loss scaling, without which small gradients are zero in fp16: arXiv:1710.03740, section 3.2."""

from __future__ import annotations

import math
from dataclasses import dataclass

MOST = 2.0**16
PATIENCE = 10
"""So many steps in a row may be given up before the run stops."""


@dataclass
class LossScale:
    """The factor on the loss: halved when a gradient is too large for fp16, doubled after many steps without that."""

    value: float = MOST
    good: int = 0
    """Steps since it last changed."""
    bad: int = 0
    """Steps given up in a row."""
    growth_steps: int = 500

    def judge(self, grad_norm: float) -> bool:
        """Whether a step with this gradient may be taken. Sets the scale for the next one."""
        if math.isfinite(grad_norm):
            self.good, self.bad = self.good + 1, 0
            if self.good >= self.growth_steps:
                self.value, self.good = min(2 * self.value, MOST), 0
            return True
        self.value, self.good, self.bad = self.value / 2, 0, self.bad + 1
        return False

    @property
    def hopeless(self) -> bool:
        return self.bad >= PATIENCE or self.value < 1
