"""Settings of the chapters without a paper of their own: Langevin dynamics, maximum likelihood, log Z, all methods."""

from dataclasses import dataclass

from ebmlib.papers.recovery import noising
from ebmlib.settings.value import Ints, Settings, even, value


def two(steps: tuple[int, ...]) -> None:
    """ValueError if there are not two numbers of steps to compare."""
    if len(steps) < 2:
        raise ValueError(f"hmc_steps = {list(steps)}: allowed are two numbers of steps or more")


@dataclass(frozen=True)
class LangevinToy(Settings):
    """Settings of `langevin_toy`; no paper, so the defaults are the `paper` preset's."""

    notebook = "langevin_toy"
    takes = ()
    opens_run = False
    std: float = value(0.7, "of the Gaussian for the checks", above=0)
    check_particles: int = value(100_000, "chains per step size in the checks", smoke=1000, quick=20_000, low=100)
    check_steps: int = value(100, "steps of each", low=100)
    particles: int = value(10_000, "chains in every comparison", smoke=200, quick=2000, low=100)
    K: int = value(1000, "gradients a particle may spend", smoke=40, quick=200, low=40)
    step: float = value(0.2, "ULA's step in units of std^2; it is stable below 2", above=0, below=2)
    L: int = value(4, "HMC's leapfrog steps", low=1, below=51)
    bins: int = value(16, "cells per side for the TV distance", low=2)
    marks: int = value(20, "points on a curve", smoke=5, quick=10, low=2)


@dataclass(frozen=True)
class MLToy(Settings):
    """Settings of `ml_toy`. DRL's Figure 2 and self-adversarial Figure 3 come without them: these are our own."""

    notebook = "ml_toy"
    kind = "density"
    data = "two-moons"
    K: int = value(30, "steps of a training chain", smoke=3, quick=20, low=1)
    step: float = value(0.01, "Langevin step in scaled units; the moons' std is .22", above=0)
    temperature: float = value(1.0, "of the training chains; the density judged is exp(-E / temperature)", above=0)
    span: float = value(4.5, "half side of the data's box after scaling", low=0.1)
    width: int = value(128, "the net, three hidden layers", smoke=16, quick=64, low=2)
    iterations: int = value(10_000, smoke=20, quick=1100, low=1)
    batch: int = value(256, "data, and chains of each kind", smoke=64, low=4)
    lr: float = value(1e-3, "with a half cosine to 0", quick=3e-3, above=0)
    warmup: int = value(200, quick=50, low=0)
    ema: float = value(0.995, quick=0.98, low=0, below=1)
    long_K: int = value(10_000, "steps of the long chains", smoke=20, quick=1000, low=2)
    long_chains: int = value(500, "from noise, and as many from data", smoke=100, quick=300, low=10)
    cells: int = value(600, "per side, for quadrature", smoke=102, quick=300, low=100)
    tests: int = value(10_000, "held-out data", smoke=400, quick=2000, low=100)


@dataclass(frozen=True)
class PartitionToy(Settings):
    """Settings of `partition_toy`; the paper's are Appendix A.4 and section 4.2 of recovery likelihood."""

    notebook = "partition_toy"
    kind = "density"
    data = "checkerboard"
    repeats: int = value(20, "independent repetitions of every bracket", smoke=2, quick=5, low=2)
    chains: int = value(500, "AIS: chains per direction", smoke=20, quick=200, low=20)
    levels: int = value(48, "AIS: steps of the path", smoke=4, quick=24, low=2)
    K: int = value(3, "AIS: MALA steps per level", low=1)
    power: float = value(3.0, "AIS: beta_k = (k / levels)^power in 2D", low=1)
    delta: float = value(0.05, "a bracket holds log Z with probability 1 - delta", above=0, below=1)
    log_c: float = value(3.0, "log Z of the targets whose log Z is known")
    pilots: int = value(100, "chains that choose the steps and are not weighed", smoke=20, low=20)
    dims: Ints = value((2, 10, 50), "of the Gaussians", smoke=(2, 3))
    T: int = value(6, "section 4.2: T1k", both=1000, check=noising)
    hmc_steps: Ints = value((1, 4, 16, 64), "Figure 6", text=(1, 10, 100), smoke=(1, 2), quick=(1, 4, 16), check=two)
    L: int = value(2, "section 4.2: leapfrog steps", text=2, low=1)
    samples: int = value(2000, "samples of the importance chain", smoke=50, quick=1000, low=50)
    span: float = value(4.5, "half side of the data's box after scaling", low=0.1)
    b2: float = value(0.06, "step constant in training, as in `drl_toy`", text="b = .0002", code=2e-4, above=0)
    width: int = value(48, "the learned energy's net", smoke=8, quick=32, low=4, check=even)
    train_K: int = value(15, "Langevin steps per level in training", both=30, quick=10, low=1)
    iterations: int = value(1000, "of training", smoke=5, quick=600, low=1)
    batch: int = value(256, "of training", smoke=32, quick=128, low=1)
    lr: float = value(3e-3, "with a half cosine to 0", both=1e-4, above=0)
    ema: float = value(0.99, "weights that are judged", code=0.999, quick=0.97, low=0, below=1)


@dataclass(frozen=True)
class ReadingScores(Settings):
    """Settings of `reading_scores`, which trains nothing."""

    notebook = "reading_scores"
    presets = ("smoke", "quick", "cpu")
    kind = "images"
    data = "fashion_mnist"
    size = None  # as the set has them
    takes = ("dataset",)
    opens_run = False
    samples: int = value(2048, "images per rung, and as many real ones", smoke=64, quick=1024, low=32)


@dataclass(frozen=True)
class MethodsToy(Settings):
    """Settings of `methods_toy`: those of the methods' chapters, one optimizer and one budget for all."""

    notebook = "methods_toy"
    TARGETS = ("two-moons", "25-gaussians", "checkerboard", "swiss-roll")
    targets: int = value(4, "how many of `TARGETS`", smoke=1, quick=1, low=1, below=5)
    budget: int = value(2_500_000, "evaluations of the net per training", smoke=12_000, quick=400_000, low=1)
    K: int = value(20, "Langevin steps of a chain; `ml_toy`", smoke=3, quick=10, low=2)
    drl_K: int = value(15, "steps per level; half of `drl_toy`'s, for twice the data", smoke=3, low=1)
    step: float = value(0.003, "Langevin step in scaled units, below every target's floor", above=0)
    span: float = value(4.5, "half side of the data's box, energies; `ml_toy`, `drl_toy`", low=0.1)
    flow_span: float = value(1.8, "and flows, as its targets in `self_adversarial_toy`", low=0.1)
    width: int = value(128, "of every net, three hidden layers", smoke=16, quick=64, low=4, check=even)
    gain: float = value(7.0, "factor on the coordinates, energies; `drl_toy`", above=0)
    flow_gain: float = value(8.0, "and flows; `self_adversarial_toy`", above=0)
    batch: int = value(128, "data per training iteration", smoke=32, low=2, most="capacity")
    lr: float = value(3e-3, "with a half cosine to 0; `drl_toy`, `improved_cd_toy`", above=0)
    clip_norm: float | None = value(1.0, "largest norm of the gradient; `drl_toy`", above=0)
    ema_share: float = value(0.05, "memory of the weights' running mean, a share of training", above=0)
    capacity: int = value(2000, "chains in a reservoir, and samples that are judged", smoke=200, quick=1000, low=100)
    igebm_restart: float = value(0.05, "persistent chains: share that starts anew; IGEBM", code=0.05, low=0, below=1)
    restart: float = value(0.1, "improved CD: and its share; `improved_cd_toy`", low=0, below=1)
    kl: float = value(1.0, "improved CD: weight of the KL term's energy half", low=0)
    entropy: float = value(0.3, "improved CD: and of its entropy half", low=0)
    l2: float = value(0.05, "improved CD: of energies; `improved_cd_toy`", low=0)
    sigma: float = value(0.077, "score matching: noise, that of a chain's last step", above=0)
    long_K: int = value(1000, "score matching, VAEBM: steps of the chains that sample them", smoke=20, quick=300, low=1)
    b2: float = value(0.05, "recovery likelihood: step constant, below every target's floor", above=0)
    c_power: float = value(0.0, "and its growth with the level: none, so that thin shapes do not diverge", low=0)
    weight_power: float = value(2.0, "recovery likelihood; `drl_toy`", low=0)
    vae_share: float = value(0.3, "VAEBM: part of the budget for its VAE", above=0, below=1)
    latents: int = value(20, "VAEBM, section 5.4", text=20, low=1)
    anneal: float = value(0.625, "VAEBM: share of the VAE's training, KL weight 0 to 1; `vaebm_toy`", above=0)
    jumps: int = value(2, "VAEBM: of a chain, before its steps; `vaebm_toy`", low=0)
    vaebm_K: int = value(5, "VAEBM: corrected steps of a chain; `vaebm_toy`", low=1, most="long_K")
    vaebm_step: float = value(0.02, "VAEBM: and their size, in the decoder's noise; `vaebm_toy`", above=0)
    vaebm_plain: float = value(7e-4, "VAEBM: size of uncorrected steps, below every target's floor", above=0)
    posterior: int = value(100, "VAEBM: posterior samples per node of the quadrature", smoke=5, quick=50, low=1)
    t_end: float = value(0.2, "flows: end time; `self_adversarial_toy`", above=0)
    tol: float = value(1e-5, "flows: tolerance where a density is judged", smoke=1e-3, quick=1e-4, above=0)
    train_tol: float = value(1e-3, "flows: and while training", above=0)
    ode_passes: int = value(22, "flows: a guess of the solver's evaluations, for the budget", low=1)
    most_budgets: float = value(4.0, "budgets that a training may spend before it is stopped", low=1)
    tests: int = value(10_000, "held-out data", smoke=200, quick=2000, low=100)
    cells: int = value(400, "of the quadrature, per side", smoke=150, quick=200, low=100)
    pixels: int = value(100, "per side of a density's picture", smoke=20, quick=90, low=8)

    def true_name(self, dataset: str | None) -> str:
        """The names of the targets, joined by "+": the one of `dataset`, or the first `targets` of TARGETS."""
        return dataset or "+".join(self.TARGETS[: self.targets])
