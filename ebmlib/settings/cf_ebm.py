"""Settings of the chapter on CF-EBM, coarse-to-fine training."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ebmlib.papers.coarse_to_fine import MIXES
from ebmlib.settings.value import Ints, Settings, value


@dataclass(frozen=True)
class CoarseToFineToy(Settings):
    """Settings of `coarse_to_fine_toy`; the paper's are for images of 8 to 128 pixels (Appendix A.1, A.2)."""

    notebook = "coarse_to_fine_toy"
    data = "two-fields"
    takes = ("resume", "checkpoint")
    K: Ints = value((15, 20, 30), "per stage", text=(15, 30, 50, 50, 60), code=(15,) * 5, smoke=(3, 4), quick=(15, 20))
    images: Ints = value((19_200, 19_200, 38_400), text="50k, 75k, ..", code="2.4M", smoke=(64, 64), quick=(4480, 4480))
    batch: Ints = value((64, 64, 32), "per stage", code=(256, 128, 64, 64, 32), smoke=(16, 16), quick=(64, 32))
    step: float = value(5e-3, "a; here at most a quarter of the least variance", text=0.5, code=1.0, above=0)
    mix: str = value("linear", "Up times 1 - beta (ours), or sqrt(1 - beta^2)", both="root", allowed=MIXES)
    width: int = value(2, "c; features are 4c", both=32, smoke=1, low=1)
    spectral: bool = value(False, "Table 9; here slopes must be steep", both=True)
    padding: str = value("circular", "the field is a torus", allowed=("zeros", "circular"))
    lr: float = value(3e-3, "A.2, up to 32 pixels; here with a half cosine to 0 in each stage", both=1e-3, above=0)
    beta1: float = value(0.5, "of Adam; its second is .999", both=0.5, low=0, below=1)
    ema: float = value(0.99, quick=0.98, low=0, below=1)
    clip_norm: float | None = value(50.0, "largest norm of the gradient", above=0)
    slope: float = value(1.0, "s of the field's spectrum (1 + |k|^2)^-s", above=0)
    looks: int = value(20, "looks at the score error while training", smoke=2, low=1)
    tests: int = value(4000, "held-out fields", smoke=100, quick=500, low=100)

    def implied(self, given: Mapping[str, Any]) -> "CoarseToFineToy":
        """As they are: two stages at least, each with its K, images and batch."""
        counts = [len(part) for part in (self.K, self.images, self.batch)]
        if counts[0] < 2 or len(set(counts)) > 1:
            raise ValueError(f"K, images and batch need one entry per stage, two stages at least; they have {counts}")
        return self
