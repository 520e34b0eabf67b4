"""Settings of the chapter on improved contrastive divergence."""

from dataclasses import dataclass

from ebmlib.settings.value import Settings, value


@dataclass(frozen=True)
class ImprovedCDToy(Settings):
    """Settings of `improved_cd_toy`. Supplement (B.2, D) and release are on images in [0, 1], none is 2D."""

    notebook = "improved_cd_toy"
    kind = "density"
    data = "25-gaussians"
    K: int = value(10, "supplement, B.2", both=40, smoke=4, low=1)
    step: float = value(2e-3, "B.2, CIFAR-10; here 2a is below the modes' variance", text=500, code=100, above=0)
    temperature: float = value(1.0, "b^2 / 2a; at 1 the density can be judged", text=1e-9, code=5e-9, above=0)
    restart: float = value(0.1, "share of chains started anew", code=1e-3, low=0, below=1)
    capacity: int = value(1000, "of the reservoir; if small, its chains run often", code=10_000, smoke=100, low=100)
    kl: float = value(1.0, "weight of the KL term's energy half", code=1.0, low=0)
    entropy: float = value(0.3, "weight of the mean log distance; Eq. 7: d = 2 at temperature 1", code=0.3, low=0)
    references: int = value(100, "past samples for the nearest neighbor", code=100, low=1)
    l2: float = value(0.05, "of energies; 1 would hold them far below a density's", code=1.0, low=0)
    iterations: int = value(3000, smoke=20, quick=1500, low=1)
    compare_iterations: int = value(600, "of the two that compare the last step with all", smoke=10, quick=200, low=1)
    batch: int = value(128, code=128, smoke=32, low=1, most="capacity")
    lr: float = value(3e-3, "here with a half cosine to 0", code=2e-4, above=0)
    beta1: float = value(0.0, "of Adam; its second is .9 in the release, here too", code=0.0, low=0, below=1)
    ema: float = value(0.998, code=0.99, low=0, below=1)
    clip_norm: float | None = value(0.5, "largest norm of the gradient", code=0.5, above=0)
    width: int = value(64, "of three hidden layers", smoke=16, low=2)
    gain: float = value(8.0, "factor on the coordinates: the modes are narrow", above=0)
    stable_gap: float = value(25.0, "nats: a run whose gap leaves this bound counts as unstable", above=0)
    cells: int = value(400, "of the quadrature, per side", smoke=150, quick=250, low=100)
