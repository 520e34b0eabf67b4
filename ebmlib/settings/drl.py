"""Settings of the chapters on recovery likelihood: T6 and T1k."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ebmlib.nets.wideresnet import HEADS, PRECISIONS, STEMS
from ebmlib.papers.recovery import VARIANTS, noising
from ebmlib.settings.value import PRESETS, Ints, Settings, even, value

# Tables 4 and 5: what the paper sets for other data sets than CIFAR-10, the first where `size` is not given.
_AT_64 = {"size": 64, "multipliers": (1, 2, 2, 2, 4), "blocks": 2, "batch": 128, "iterations": 100_000}
_AT_128 = {"size": 128, "multipliers": (1, 2, 2, 2, 4, 4), "blocks": 2, "beta1": 0.5, "batch": 64}
_CHURCH = [_AT_64, _AT_128 | {"iterations": 100_000}]
TABLE_5 = {
    "celeba": [_AT_64],
    "lsun_church": _CHURCH,
    "lsun_bedroom": [_AT_64, _AT_128 | {"blocks": 5, "iterations": 56_000}],
    "celeba_hq": _CHURCH,  # not in the paper: as the set that is nearest in number of images and in both sizes
}


def check_odd(steps: int) -> None:
    """ValueError if a row of so many images has no middle."""
    if steps % 2 == 0:
        raise ValueError(f"steps = {steps}: allowed is an odd number of at least 3, so that there is a middle")


@dataclass(frozen=True)
class DRLToy(Settings):
    """Settings of `drl_toy`. Figures 2 and 3 of the paper come without settings, and no 2D code was released."""

    notebook = "drl_toy"
    kind = "density"
    data = "checkerboard"
    T: int = value(6, "section 4: 1, 2..501 or 1000", both=6, check=noising)
    K: int = value(30, "section 4", both=30, smoke=5, low=1)
    b2: float = value(0.06, "a step of .08 at level 0, the board's edge is .1", text="b = .0002", code=2e-4, above=0)
    c_power: float = value(0.4, "with 1 the late steps grow too long for 2D", text=0, code=1, low=0)
    scaled: bool = value(False, "whether E = net / delta^2", text=False, code=True)
    weight_power: float = value(2.0, "of sigma_1 / sigma_{t+1}: level 0 learns slowest", text=0, code=1, low=0)
    span: float = value(4.5, "half side of the data's box after scaling", low=0.1)
    width: int = value(64, "the net", smoke=16, low=4, check=even)
    multipliers: Ints = value((1, 1, 1), "the net")
    gain: float = value(7.0, "the net: factor on its input", above=0)
    spectral: bool = value(False, "Appendix B, for images", both=True)
    iterations: int = value(5500, smoke=20, quick=600, low=1)
    batch: int = value(384, smoke=64, quick=256, low=1)
    lr: float = value(3e-3, "Appendix B, for images; here with a half cosine to 0", both=1e-4, above=0)
    warmup: int = value(200, "for images", code=1000, quick=50, low=0)
    ema: float = value(0.995, "for images", code=0.999, quick=0.98, low=0, below=1)
    clip_norm: float | None = value(1.0, "largest norm of the gradient", above=0)
    short_K: int = value(30, "the short-run baseline of Figure 2, from uniform noise", smoke=5, low=1)
    short_step: float = value(5e-3, "its Langevin step at temperature 1", above=0)
    short_iterations: int = value(500, smoke=20, quick=400, low=1)
    samples: int = value(10_000, smoke=200, quick=2000, low=100)
    deterministic: bool = value(False, "training on CUDA repeats bit for bit, more slowly")


@dataclass(frozen=True)
class DRLImages(Settings):
    """Settings of `drl_cifar`: T6 on CIFAR-10 (Tables 4 and 5); where text and release differ, the release."""

    notebook = "drl_cifar"
    presets = PRESETS
    kind = "images"
    data = "cifar10"
    published = TABLE_5
    T: int = value(6, "section 4: 1, 2..501 or 1000", both=6, check=noising)
    K: int = value(30, "section 4; 0 at T = 1000", both=30, small=15, smoke=2, low=0)
    b2: float = value(2e-4, "delta^2 = c^2 b2 sigma^2", text="b = .0002", code=2e-4, small=4e-4, above=0)
    c_power: float = value(1.0, "of the level's noise in delta^2", text=0, code=1, small=1.27, low=0)
    variant: str = value("code", "Eqs. 15 to 17, or the release", text="text", code="code", allowed=VARIANTS)
    objective: str = value("recovery", "Table 2 has both", both="recovery", allowed=("recovery", "dsm"))
    warm: bool = value(False, "smaller scales are the bundled network's, if it has these settings", quick=True)
    size: int = value(32, "Table 4", both=32, low=8)
    width: int = value(128, "Table 4", both=128, small=32, smoke=4, gpu=64, low=4, check=even)
    multipliers: Ints = value((1, 2, 2, 2), "Table 4", both=(1, 2, 2, 2), small=(1, 2))
    blocks: int = value(5, "Table 5; README", text=5, code=8, small=1, gpu=2, low=1)
    stem: int = value(1, "stride of the first convolution", both=1, small=2, allowed=tuple(STEMS))
    scales: int = value(1, "nets, one a size: the smallest images, then the details that double them", small=2, low=1)
    head: str = value("time", "Table 4", text="dense", code="time", allowed=HEADS)
    spectral: bool = value(True, "Appendix B", both=True)
    batch: int = value(256, "Table 5", both=256, small=32, smoke=8, low=1)
    iterations: int = value(50_000, "Table 5", both=50000, smoke=3, quick=450, cpu=4000, long=40_000, gpu=5000, low=1)
    lr: float = value(1e-4, "Appendix B; of the details half", both=1e-4, small=1e-3, above=0)
    beta1: float = value(0.9, "Table 5", both=0.9, low=0, below=1)
    warmup: int = value(1000, "release", code=1000, smoke=1, quick=100, cpu=200, long=500, gpu=500, low=0)
    cosine: bool = value(False, "whether the rate then falls to 0 as a half cosine", code=False, small=True)
    clip_norm: float | None = value(None, "largest norm of the gradient", small=1.0, above=0)
    ema: float = value(0.999, "release", code=0.999, quick=0.99, low=0, below=1)
    noise: float = value(0.99, "release: at test time", text=1, code=0.99, small=0.95, low=0)
    doubled: int = value(0, "levels, from 0 on, of twice as many steps at test time", quick=2, cpu=2, long=2, low=0)
    flip: bool = value(True, "Appendix B", both=True, small=False)
    precision: str = value("float32", "of the net's body", small="bfloat16", gpu="bfloat16", allowed=PRECISIONS)
    samples: int = value(50_000, "Appendix B", both=50_000, smoke=16, quick=256, cpu=2048, long=2048, gpu=2048, low=16)
    deterministic: bool = value(False, "training on CUDA repeats bit for bit, more slowly")

    def implied(self, given: Mapping[str, Any]) -> "DRLImages":
        """What other settings imply where it is not given. T = 1000: the normal approximation K = 0, with full noise.
        variant "text": the text's b = .0002, its noise at test time and Table 4's head.
        """
        if self.K == 0 and self.T != 1000:
            raise ValueError(f"K = 0 with T = {self.T}: the normal approximation is for T = 1000, else K is at least 1")
        if self.objective == "dsm" and (self.T != 1000 or given.get("K")):
            steps = f"T = {self.T}" + f" and K = {self.K}" * bool(given.get("K"))
            raise ValueError(f"objective = 'dsm' with {steps}: denoising score matching is for T = 1000 and K = 0")
        implied = {"K": 0} if self.T == 1000 else {}
        if self.T == 1000 and not given.get("K"):
            implied |= {"noise": 1.0}  # less of it, a thousand times, and the samples have too little variance
        if self.variant == "text":
            implied |= {"b2": 4e-8, "noise": 1.0, "head": "dense"}
        return replace(self, **{name: to for name, to in implied.items() if name not in given})


@dataclass(frozen=True)
class DRLInterpolation(Settings):
    """Settings of `drl_interpolation` (section 4.1, Figures 5 and 8 to 10); net and chains are the checkpoint's."""

    notebook = "drl_interpolation"
    reads = "drl_cifar"
    opens_run = False
    way: str = value("arc", "section 4.1; whose angle is not said", text="sphere", allowed=("arc", "angle"))
    steps: int = value(9, "images per row, with both ends; an odd number", smoke=3, gpu=17, low=3, check=check_odd)
    pairs: int = value(64, "of samples, each with its path", smoke=2, quick=16, gpu=256, low=2)
    at_once: int = value(4, "pairs whose paths are sampled together", smoke=2, quick=16, gpu=64, low=1)


@dataclass(frozen=True)
class DRLLongRun(Settings):
    """Settings of `drl_long_run`: T1k on CIFAR-10 (section 4.2, Tables 4 and 5). Its code was released in part."""

    notebook = "drl_long_run"
    presets = ("smoke", "quick", "cpu", "gpu", "paper")
    opens_run = False
    kind = "images"
    data = "cifar10"
    published = TABLE_5  # the paper's for T6: its T1k is on CIFAR-10 alone
    hmc_steps: Ints = value((1, 10, 100), "Figure 7: steps per level", text=(1, 10, 100), smoke=(1, 2), quick=(1, 4))
    L: int = value(2, "section 4.2: leapfrog steps", both=2, smoke=1, low=1)
    chains: int = value(1000, "of each long run; see Figure 6", smoke=16, quick=32, cpu=64, gpu=128, low=16)
    pilots: int = value(1000, "4.2: chains that adapt the steps", text=1000, smoke=16, quick=32, cpu=64, gpu=64, low=16)
    tune_K: int = value(100, "4.2: HMC steps per change of step", text=100, smoke=2, quick=5, cpu=10, gpu=10, low=1)
    stride: int = value(1, "section 4.2: every level is adapted", text=1, smoke=500, quick=100, cpu=20, gpu=20, low=1)
    tests: int = value(10_000, "test images for bits", text=10_000, smoke=32, quick=1000, cpu=2000, gpu=2048, low=32)
    check_chains: int = value(4000, "of the check on a Gaussian", smoke=300, quick=1000, cpu=2000, low=100)
    ais_chains: int = value(1000, "of annealed importance sampling", smoke=16, quick=64, cpu=128, gpu=512, low=16)
    ais_K: int = value(100, "trajectories per energy of it", smoke=1, quick=4, cpu=50, low=1)
    substeps: int = value(32, "mixtures from level 1 to 0; from t + 1 to t a (t + 1)-th of it", smoke=2, quick=8, low=1)
    starts: int = value(64, "chains on E_0 from test images, as many from samples", smoke=16, quick=16, cpu=32, low=4)
    marginal: int = value(4000, "trajectories of these chains", smoke=8, quick=200, low=8)
    size: int = value(32, "Table 4", both=32, small=8, low=8)
    width: int = value(128, "Table 4", both=128, small=16, smoke=4, gpu=64, low=4, check=even)
    multipliers: Ints = value((1, 2, 2, 2), "Table 4", both=(1, 2, 2, 2), small=(1, 2), smoke=(1,))
    blocks: int = value(5, "Table 5; README", text=5, code=8, small=1, gpu=2, low=1)
    head: str = value("time", "Table 4", text="dense", code="time", allowed=HEADS)
    spectral: bool = value(True, "Appendix B", both=True, small=False)
    weight_power: float = value(2.0, "of cum_sigma / sigma in a level's weight", low=0)
    beta1: float = value(0.9, "Table 5", both=0.9, low=0, below=1)
    batch: int = value(256, "Table 5", both=256, small=64, smoke=16, low=1)
    iterations: int = value(50_000, "Table 5", both=50_000, smoke=4, quick=1000, cpu=20_000, gpu=5000, low=1)
    lr: float = value(1e-4, "Appendix B", both=1e-4, small=2e-3, above=0)
    warmup: int = value(1000, "release", code=1000, smoke=1, quick=50, cpu=200, gpu=500, low=0)
    cosine: bool = value(False, "whether the rate then falls to 0 as a half cosine", code=False, small=True)
    clip_norm: float | None = value(None, "largest norm of the gradient", small=10.0, above=0)
    ema: float = value(0.999, "release", code=0.999, quick=0.99, low=0, below=1)
    flip: bool = value(True, "Appendix B", both=True, small=False)

    def images_needed(self, numbers: int) -> int:
        """A batch, and enough for the covariance of the Gaussian that the chapter fits to them."""
        return max(self.batch, numbers + 1)
