"""The published Langevin recipes, each restated as x' = x - a grad E(x) + b xi; the book's table is made of these."""

from dataclasses import dataclass, replace

from ebmlib import samplers


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One published recipe: what a paper's text or its released code does at each step of a chain.

    a and b are those of the first step. Where they follow from a symbol, `a_tex` and `b_tex` say how, `symbol` is its
    name and published value, and a and b are for that value, or for 1 where none is published.
    """

    name: str
    key: str  # of the citation
    setting: str = ""
    source: str = ""  # paper, code or both, and where
    a: float
    b: float
    a_tex: str = ""
    b_tex: str = ""
    symbol: tuple[str, float] | None = None
    noise_first: bool = False  # before the gradient: (0, b), then (a, b), at last (a, 0)
    falls: bool = False  # the noise, to 0 at the last step
    clip: float | None = None  # bound on each entry of the gradient
    range: str = "any"  # of the data, and what keeps a chain there
    K: tuple[int, ...] = ()  # steps; empty: any, several: by data set or resolution
    per: str = ""  # what takes K steps, where it is not the chain

    @property
    def temperature(self) -> float:
        """b^2 / (2 a), of the first step."""
        return samplers.temperature(self.a, self.b)


ETA = 8e-5  # VAEBM's step on CIFAR-10
B_0 = 2e-4  # recovery likelihood's b in the text; the release has b^2 = .0002
CF_NOISE = (0.02 - 0.02 / 15) ** 0.5  # CF-EBM's text: variance .02 - .02 / (K - k + 1) at step k, here k = 1 and K = 15

_ULA = Recipe(
    name="exact Langevin (ULA)",
    key="roberts1996langevin",
    a=1,
    b=2**0.5,
    a_tex=r"$\epsilon$",
    b_tex=r"$\sqrt{2\epsilon}$",
)
_IGEBM = Recipe(
    name="IGEBM",
    key="du2019igebm",
    setting="CIFAR-10",
    source="code",
    a=10,
    b=0.005,
    noise_first=True,
    clip=0.01,
    range="[0, 1], clamped",
    K=(60,),
)
_JEM = Recipe(
    name="JEM",
    key="grathwohl2020jem",
    source="code",
    a=1,
    b=0.01,
    range="starts from U(-1, 1)",
    K=(20,),
)
_SHORT_RUN = Recipe(
    name="short-run",
    key="nijkamp2019shortrun",
    source="code",
    a=1,
    b=0.01,
    range="not clamped",
    K=(100,),
)
_IMPROVED_CD = Recipe(
    name="improved CD",
    key="du2021improvedcd",
    setting="CIFAR-10",
    source="code",
    a=100,
    b=0.001,
    noise_first=True,
    range="[0, 1], clamped",
    K=(40,),
)
_IMPROVED_CD_TEXT = replace(_IMPROVED_CD, source="paper, supplement B.2", a=500, noise_first=False)
_VAEBM = Recipe(
    name="VAEBM",
    key="xiao2021vaebm",
    setting="CIFAR-10",
    source="paper, code",
    a=ETA / 2,
    b=ETA**0.5,
    a_tex=r"$\eta/2$",
    b_tex=r"$\sqrt{\eta}$",
    symbol=(r"\eta", ETA),
    range=r"unit-scale noise $(\epsilon_x, \epsilon_z)$",
    K=(10,),
)
_CF_EBM = Recipe(
    name="CF-EBM",
    key="zhao2021cfebm",
    source="code",
    a=1,
    b=0.015,
    falls=True,
    range="[-1, 1] at a stage's end",
    K=(15,),
    per="a resolution",
)
_CF_EBM_TEXT = replace(
    _CF_EBM,
    source="paper",
    a=0.5,
    b=CF_NOISE,
    b_tex="$b^2$ in the note below",
    range="starts from U(-1, 1)",
    K=(15, 30, 50, 50, 60),
    per="",
)
_RECOVERY = Recipe(
    name="recovery likelihood",
    key="gao2021drl",
    setting="T6",
    source="code",
    a=1 / 2,
    b=1,
    a_tex=r"$\delta_t^2/2$",
    b_tex=r"$\delta_t$",
    range="[-1, 1], not clamped",
    K=(30,),
    per="a level",
)
_RECOVERY_TEXT = replace(
    _RECOVERY,
    setting="",
    source="paper, Eq. 17",
    a=B_0**2 / 2,
    b=B_0,
    a_tex=r"$b_0^2\sigma_t^2/2$",
    b_tex=r"$b_0 \sigma_t$",
    symbol=("b_0", B_0),
    range="not stated",
)
_RECOVERY_NORMAL = replace(  # the normal approximation: one draw from the conditional, which looks like a colder step
    _RECOVERY,
    setting="T1k",
    source="paper, Eq. 12",
    a=1,
    b=1,
    a_tex=r"$\sigma_{t+1}^2$",
    b_tex=r"$\sigma_{t+1}$",
    range="not stated",
    K=(1,),
)
_ADVERSARIAL = Recipe(
    name="self-adversarial",
    key="selfadversarial",
    setting="noisy",
    source="paper",
    a=0.05,
    b=0.1,
    range="starts from N(0, I)",
    K=(40, 60),
)

RECIPES = (  # in the order of the book's table
    _ULA,
    _IGEBM,
    _JEM,
    _SHORT_RUN,
    _IMPROVED_CD,
    replace(_IMPROVED_CD, setting="CelebA", a=500),
    _IMPROVED_CD_TEXT,
    replace(_IMPROVED_CD_TEXT, setting="CelebA-HQ, LSUN", a=1000),
    _VAEBM,
    _CF_EBM,
    _CF_EBM_TEXT,
    _RECOVERY,
    _RECOVERY_TEXT,
    _RECOVERY_NORMAL,
    _ADVERSARIAL,
    replace(_ADVERSARIAL, setting="noise-free", b=0),
)
