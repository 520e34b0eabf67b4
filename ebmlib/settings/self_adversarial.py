"""Settings of the chapters on self-adversarial training."""

from dataclasses import dataclass

from ebmlib.settings.value import Ints, Settings, value

# Table 2 and Appendix A.2: what the paper sets for other data sets than MNIST.
TABLE_2 = {
    "cifar10": [{"filters": 64, "multipliers": (1, 2, 4, 8), "K": 60, "iterations": 40_000}],
    # The size is not stated; Table 2 has one halving more than at 32 pixels.
    "celeba": [{"size": 64, "multipliers": (1, 2, 4, 8, 16), "K": 60, "iterations": 30_000}],
}


@dataclass(frozen=True)
class SelfAdversarialToy(Settings):
    """Settings of `self_adversarial_toy` (section 5.1, Appendix A.1); no code was released."""

    notebook = "self_adversarial_toy"
    kind = "density"
    data = "swiss-roll"
    t_end: float = value(0.2, "end time T of the ODE, Appendix A.1", text=0.2, above=0)
    tol: float = value(1e-5, "dopri5's tolerance wherever a density is judged", text=1e-5, above=0)
    train_tol: float = value(1e-3, "and while training, where half the evaluations will do", text=1e-5, above=0)
    width: int = value(256, "Appendix A.1", text=256, smoke=12, quick=64, low=2)
    depth: int = value(4, "hidden layers: five layers of weights", text="5 layers", low=1)
    gain: float = value(8.0, "factor on the nets' input: narrow shapes are learned sooner", above=0)
    lr: float = value(1e-3, "Appendix A.1; here with a half cosine to 0", text=1e-3, quick=4e-3, above=0)
    warmup: int = value(50, "iterations", quick=20, low=0)
    ema: float = value(0.99, "running mean of the weights", quick=0.95, low=0, below=1)
    iterations: int = value(1500, "Appendix A.1", text=3000, smoke=6, quick=300, low=1)
    batch: int = value(256, "EBM objective", text=800, smoke=32, low=1)
    ml_batch: int = value(128, "likelihood", text=800, smoke=16, low=1, most="batch")
    generator_iterations: int = value(100, "continued with and without the generator loss", smoke=2, quick=30, low=1)
    noisy_iterations: int = value(600, "Figure 3: the noisy chain", smoke=3, quick=120, low=1)
    noisy_K: int = value(160, "its steps, each t_end / K long", smoke=5, quick=40, low=1)
    tests: int = value(10_000, "test points, section 5.1", text=10_000, smoke=100, quick=2000, low=100)
    pixels: int = value(120, "points per side of a density's picture", smoke=16, quick=50, low=8)


@dataclass(frozen=True)
class SelfAdversarialImages(Settings):
    """Settings of `self_adversarial_images` (section 5.2, Table 2, Appendix A.2) on MNIST and Fashion-MNIST."""

    notebook = "self_adversarial_images"
    presets = ("smoke", "quick", "cpu", "gpu", "paper")
    kind = "images"
    data = "fashion_mnist"
    published = TABLE_2
    K: int = value(40, "Appendix A.2", text=40, small=20, smoke=3, low=1)
    step: float = value(0.05, "Appendix A.2 and Eq. 7: a = eta / 2", text="eta = .1", above=0)
    b: float = value(0.1, "Appendix A.2: b of the noisy chain", text=0.1, above=0)
    size: int = value(32, "Appendix A.2", text=32, small=16, low=8)
    filters: int = value(32, "Table 2: nf", text=32, smoke=4, quick=8, cpu=16, low=1)
    multipliers: Ints = value((1, 2, 2, 2), "Table 2", text=(1, 2, 2, 2))
    iterations: int = value(8000, "Appendix A.2", text=8000, smoke=3, quick=250, cpu=1500, gpu=2000, low=1)
    batch: int = value(64, "Appendix A.2", text=64, small=32, smoke=8, low=1)
    lr: float = value(5e-4, "Appendix A.2", text=5e-4, quick=1e-3, above=0)
    cosine: bool = value(False, "whether the rate falls to 0 as a half cosine", small=True)
    ema: float = value(0.0, "running mean of the weights; 0 is none", quick=0.95, cpu=0.99, low=0, below=1)
    recompute: bool = value(False, "generator loss: memory of one step, at 1.5 times the time")
    samples: int = value(10_000, "for FID; KID needs 16", smoke=16, quick=512, cpu=2048, gpu=2048, low=16)
    deterministic: bool = value(False, "training on CUDA repeats bit for bit, more slowly")
