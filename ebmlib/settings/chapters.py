"""What each notebook can be told: a frozen dataclass a chapter; its defaults are the paper's values."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


def value(
    default: Any,
    text: Any = None,
    code: Any = None,
    source: str = "",
    low: float | None = None,
    below: float | None = None,
    allowed: tuple = (),
) -> Any:
    """A setting: its default, what the paper's text and the released code say, where, least value, bound, choices."""
    known = {"text": text, "code": code, "source": source, "low": low, "below": below, "allowed": allowed}
    return field(default=default, metadata=known)


@dataclass(frozen=True)
class LangevinToy:
    """Settings of `langevin_toy`; no paper, so the defaults are the `paper` preset's."""

    width: float = value(0.7, source="s of the Gaussian for the checks", low=1e-3)
    check_particles: int = value(100_000, source="chains a step size in the checks", low=100)
    check_steps: int = value(100, source="steps of each", low=100)
    particles: int = value(10_000, source="chains in every comparison", low=100)
    K: int = value(1000, source="gradients a particle may spend", low=40)
    step: float = value(0.2, source="ULA's step in units of s^2, below 2", low=1e-4)
    leapfrog: int = value(4, source="HMC's leapfrog steps", low=1)
    bins: int = value(16, source="cells a side for the TV distance", low=2)
    marks: int = value(20, source="points on a curve", low=2)


@dataclass(frozen=True)
class MLToy:
    """Settings of `ml_toy`. DRL's Figure 2 and self-adversarial Figure 3 come without them: these are our own."""

    K: int = value(30, source="steps of a training chain", low=1)
    step: float = value(0.01, source="Langevin step in scaled units; the moons' std is .22", low=1e-6)
    temperature: float = value(
        1.0, source="of the training chains; the density judged is exp(-E / temperature)", low=1e-9
    )
    span: float = value(4.5, source="half side of the data's box after scaling", low=1e-3)
    width: int = value(128, source="the net, three hidden layers", low=2)
    iterations: int = value(10_000, low=1)
    batch: int = value(256, source="data, and chains of each kind", low=1)
    lr: float = value(1e-3, source="with a half cosine to 0", low=0)
    warmup: int = value(200, low=0)
    ema: float = value(0.995, low=0, below=1)
    long_K: int = value(10_000, source="steps of the long chains", low=2)
    long_chains: int = value(500, source="from noise, and as many from data", low=10)
    cells: int = value(600, source="a side, for quadrature", low=50)
    samples: int = value(10_000, source="held-out data", low=100)


@dataclass(frozen=True)
class DRLToy:
    """Settings of `drl_toy`. Figures 2 and 3 of the paper come without settings, and no 2D code was released."""

    T: int = value(6, 6, 6, "section 4: 1, 2..501 or 1000")
    K: int = value(30, 30, 30, "section 4", low=1)
    b2: float = value(0.06, "b = .0002", 2e-4, "a step of .08 at level 0; the board's edge is .1 wide", low=0)
    c_power: float = value(0.4, 0, 1, "with 1 the late steps grow too long for 2D", low=0)
    scaled: bool = value(False, False, True, "whether E = net / delta^2")
    weight_power: float = value(2.0, 0, 1, "of sigma_1 / sigma_{t+1}: level 0 is judged, and learns slowest", low=0)
    span: float = value(4.5, source="half side of the data's box after scaling", low=0)
    width: int = value(64, source="the net", low=2)
    multipliers: tuple[int, ...] = value((1, 1, 1), source="the net")
    gain: float = value(7.0, source="the net: factor on its input", low=0)
    spectral: bool = value(False, True, True, "Appendix B, for images")
    iterations: int = value(5500, low=1)
    batch: int = value(384, low=1)
    lr: float = value(3e-3, 1e-4, 1e-4, "Appendix B, for images; here with a half cosine to 0", low=0)
    warmup: int = value(200, None, 1000, "for images", low=0)
    ema: float = value(0.995, None, 0.999, "for images", low=0, below=1)
    clip_norm: float = value(1.0, source="gradient norm", low=0)
    short_K: int = value(30, source="the short-run baseline of Figure 2, from uniform noise", low=1)
    short_step: float = value(5e-3, source="its Langevin step at temperature 1", low=0)
    short_iterations: int = value(500, low=1)
    samples: int = value(10_000, low=100)
    deterministic: bool = value(False, source="training on CUDA repeats bit for bit, more slowly")


@dataclass(frozen=True)
class ImprovedCDToy:
    """Settings of `improved_cd_toy`. The supplement (B.2, D) and the release speak of images in [0, 1], none of 2D."""

    K: int = value(10, 40, 40, "supplement, B.2", low=1)
    step: float = value(0.012, 500, 100, "B.2, CIFAR-10; here just below twice the modes' variance, .014", low=1e-6)
    temperature: float = value(
        1.0, 1e-9, 5e-9, "b^2 / 2a: B.2 has noise .001; at 1 the density can be judged", low=1e-9
    )
    restart: float = value(0.1, None, 1e-3, "share of chains started anew", low=0, below=1)
    capacity: int = value(1000, None, 10_000, "of the reservoir; small, so that its chains run often", low=100)
    kl: float = value(1.0, None, 1.0, "weight of the KL term's energy half", low=0)
    entropy: float = value(
        0.3, None, 0.3, "weight of the mean log distance; Eq. 7 itself: d = 2 at temperature 1", low=0
    )
    references: int = value(100, None, 100, "past samples for the nearest neighbor", low=1)
    l2: float = value(0.05, None, 1.0, "of energies; 1 would hold them far below a density's", low=0)
    iterations: int = value(3000, low=1)
    short_iterations: int = value(600, source="of the two that compare the last step with all", low=1)
    batch: int = value(128, None, 128, low=1)
    lr: float = value(3e-3, None, 2e-4, "here with a half cosine to 0", low=0)
    beta1: float = value(0.0, None, 0.0, "of Adam; its second is .9 in the release, here too", low=0, below=1)
    ema: float = value(0.998, None, 0.99, low=0, below=1)
    clip_norm: float = value(0.5, None, 0.5, "gradient norm", low=0)
    width: int = value(64, source="of three hidden layers", low=2)
    gain: float = value(8.0, source="factor on the coordinates: the modes are narrow", low=0)
    stable_gap: float = value(25.0, source="nats: a run whose gap leaves this bound counts as unstable", low=0)
    cells: int = value(400, source="of the quadrature, a side", low=20)


@dataclass(frozen=True)
class VAEBMToy:
    """Settings of `vaebm_toy` (section 5.4). The paper's steps are for CIFAR-10; no 2D code was released."""

    latents: int = value(20, 20, None, "section 5.4", low=1)
    width: int = value(256, 256, None, "section 5.4: encoder, decoder and energy", low=2)
    depth: int = value(4, 4, None, "section 5.4: hidden layers", low=1)
    vae_iterations: int = value(8000, source="of the VAE", low=1)
    vae_batch: int = value(256, low=1)
    vae_lr: float = value(1e-3, source="Adam", low=0)
    constant: float = value(0.8, source="share of them before the rate falls to 0 along a line", low=0, below=1)
    anneal: float = value(0.625, source="share of them in which the KL weight rises to 1", low=1e-3)
    posterior: int = value(10_000, 10_000, None, "section 5.4: samples a node that test points touch", low=1)
    coarse: int = value(200, source="samples of the other nodes", low=1)
    nodes: int = value(124, source="a side of the grid for log p of the VAE and for Z", low=4)
    block: int = value(20_000, source="posterior samples at once", low=1)
    tests: int = value(100_000, 100_000, None, "section 5.4: test points", low=10)
    direct: int = value(1000, source="of them estimated without the grid", low=2)
    K: int = value(5, 10, 10, "gradient steps of a chain an iteration; CIFAR-10", low=1)
    eta: float = value(5e-3, 8e-5, 8e-5, "of the plain Langevin chains; CIFAR-10", low=1e-9)
    long_eta: float = value(0.1, source="of the comparison's long steps", low=1e-9)
    step: float = value(0.02, source="of the corrected chains, eta / 2", low=1e-9)
    jumps: int = value(2, source="of the corrected chains, before the K steps", low=0)
    chains: int = value(256, source="at once", low=2)
    iterations: int = value(5000, source="of the energy", low=1)
    compare_iterations: int = value(1000, source="in the comparison of six ways to sample", low=1)
    batch: int = value(256, 32, 32, "data; CIFAR-10", low=1)
    lr: float = value(1e-3, 4e-5, 4e-5, "Adam; here with a half cosine to 0", low=0)
    warmup: int = value(50, low=0)
    ema: float = value(0.995, source="of the energy's weights", low=0, below=1)
    clip_norm: float = value(1.0, source="gradient norm; the paper clips element by element", low=0)
    l2: float = value(0.0, source="of energies", low=0)
    gain: float = value(8.0, source="factor on the coordinates: the modes are narrow", low=0)
    stable_gap: float = value(25.0, source="nats: a run whose gap leaves this bound counts as unstable", low=0)
    probes: int = value(2000, source="chains that compare the two spaces", low=10)
    long_K: int = value(100, source="Langevin steps in the twin of Figure 5", low=1)
    decoder_iterations: int = value(300, source="of Appendix C's update", low=1)
    decoder_lr: float = value(1e-4, source="of Appendix C's update", low=0)
    mixture: int = value(100_000, source="draws of the prior that judge it", low=1000)


@dataclass(frozen=True)
class SelfAdversarialToy:
    """Settings of `self_adversarial_toy` (section 5.1, Appendix A.1); no code was released."""

    t_end: float = value(0.2, 0.2, None, "end time T of the ODE, Appendix A.1", low=1e-3)
    tol: float = value(1e-5, 1e-5, None, "dopri5's tolerance wherever a density is judged", low=1e-9)
    train_tol: float = value(1e-3, 1e-5, None, "and while training, where half the evaluations will do", low=1e-9)
    width: int = value(256, 256, None, "Appendix A.1", low=2)
    depth: int = value(4, "5 layers", None, "hidden layers: five layers of weights", low=1)
    gain: float = value(8.0, None, None, "factor on the nets' input: narrow shapes are learned sooner", low=1e-3)
    lr: float = value(1e-3, 1e-3, None, "Appendix A.1; here with a half cosine to 0", low=0)
    warmup: int = value(50, None, None, "iterations", low=0)
    ema: float = value(0.99, None, None, "running mean of the weights", low=0)
    iterations: int = value(1500, 3000, None, "Appendix A.1", low=1)
    batch: int = value(256, 800, None, "EBM objective", low=1)
    ml_batch: int = value(128, 800, None, "likelihood; at most batch", low=1)
    generator_iterations: int = value(100, source="continued with and without the generator loss", low=1)
    noisy_iterations: int = value(600, source="Figure 3: the noisy chain", low=1)
    noisy_K: int = value(160, source="its steps, each t_end / K long", low=1)
    samples: int = value(10_000, 10_000, None, "test points, section 5.1", low=100)
    pixels: int = value(120, source="points a side of a density's picture", low=8)


@dataclass(frozen=True)
class MethodsToy:
    """Settings of `methods_toy`: those of the methods' chapters, one optimizer and one budget for all."""

    targets: int = value(4, source="how many: two-moons, 25-gaussians, checkerboard, swiss-roll", low=1, below=5)
    budget: int = value(8_000_000, source="evaluations of the net, a training", low=1)
    K: int = value(20, source="Langevin steps of a chain; `ml_toy`", low=2)
    drl_K: int = value(30, source="steps a level; `drl_toy`", low=1)
    step: float = value(0.006, source="Langevin step in scaled units; `improved_cd_toy`, its smaller one", low=1e-6)
    span: float = value(4.5, source="half side of the data's box, energies; `ml_toy`, `drl_toy`", low=1e-3)
    flow_span: float = value(1.8, source="and flows, as its targets in `self_adversarial_toy`", low=1e-3)
    width: int = value(128, source="of every net, three hidden layers", low=2)
    gain: float = value(7.0, source="factor on the coordinates, energies; `drl_toy`", low=1e-3)
    flow_gain: float = value(8.0, source="and flows; `self_adversarial_toy`", low=1e-3)
    batch: int = value(128, source="data a training iteration", low=2)
    lr: float = value(3e-3, source="with a half cosine to 0; `drl_toy`, `improved_cd_toy`", low=0)
    clip_norm: float = value(1.0, source="gradient norm; `drl_toy`", low=0)
    ema_share: float = value(0.05, source="memory of the weights' running mean, a share of training", low=1e-6)
    capacity: int = value(2000, source="chains in a reservoir, and samples that are judged", low=100)
    igebm_restart: float = value(0.05, None, 0.05, "IGEBM", low=0, below=1)
    igebm_l2: float = value(1.0, None, 1.0, "IGEBM: energy L2", low=0)
    cold_step: float = value(10.0, None, 10.0, "IGEBM, CIFAR-10, pixels in [0, 1]", low=1e-9)
    cold_noise: float = value(0.005, None, 0.005, "IGEBM, CIFAR-10", low=0)
    cold_clip: float = value(0.01, None, 0.01, "IGEBM, CIFAR-10: each entry of the gradient", low=0)
    restart: float = value(0.1, source="improved CD; `improved_cd_toy`", low=0, below=1)
    kl: float = value(1.0, source="improved CD: weight of the KL term's energy half", low=0)
    entropy: float = value(0.3, source="improved CD: and of its entropy half", low=0)
    references: int = value(100, source="improved CD: past samples for the nearest neighbor", low=1)
    l2: float = value(0.05, source="improved CD: of energies; `improved_cd_toy`", low=0)
    sigma: float = value(0.1, source="score matching: noise, about the narrowest mode's std", low=1e-6)
    long_K: int = value(1000, source="score matching, VAEBM: steps of the chains that sample them", low=1)
    b2: float = value(0.06, source="recovery likelihood; `drl_toy`", low=1e-9)
    b2_small: float = value(0.02, source="and on separate modes or the Swiss roll: its committed runs", low=1e-9)
    c_power: float = value(0.4, source="recovery likelihood; `drl_toy`", low=0)
    weight_power: float = value(2.0, source="recovery likelihood; `drl_toy`", low=0)
    vae_share: float = value(0.3, source="VAEBM: part of the budget for its VAE", low=1e-3, below=1)
    latents: int = value(20, 20, None, "VAEBM, section 5.4", low=1)
    anneal: float = value(0.625, source="VAEBM: share of the VAE's training, KL weight 0 to 1; `vaebm_toy`", low=1e-3)
    jumps: int = value(2, source="VAEBM: of a chain, before its steps; `vaebm_toy`", low=0)
    vaebm_K: int = value(5, source="VAEBM: corrected steps of a chain; `vaebm_toy`", low=1)
    vaebm_step: float = value(0.02, source="VAEBM: and their size, in the decoder's noise; `vaebm_toy`", low=1e-9)
    posterior: int = value(100, source="VAEBM: posterior samples a node of the quadrature", low=1)
    t_end: float = value(0.2, source="flows: end time; `self_adversarial_toy`", low=1e-3)
    tol: float = value(1e-5, source="flows: tolerance where a density is judged", low=1e-9)
    train_tol: float = value(1e-3, source="flows: and while training", low=1e-9)
    ode_passes: int = value(22, source="flows: a guess of the solver's evaluations, for the budget", low=1)
    samples: int = value(10_000, source="held-out data", low=100)
    cells: int = value(400, source="of the quadrature, a side", low=20)
    pixels: int = value(100, source="a side of a density's picture", low=8)


@dataclass(frozen=True)
class CoarseToFineToy:
    """Settings of `coarse_to_fine_toy`; the paper's are for images of 8 to 128 pixels (Appendix A.1, A.2)."""

    steps: tuple[int, ...] = value(
        (15, 20, 30), (15, 30, 50, 50, 60), (15,) * 5, "Langevin steps at 4, 8, 16 pixels; the paper's from 8 on"
    )
    images: tuple[int, ...] = value(
        (19_200, 19_200, 38_400), "50k, 75k, ..", "50k, 75k, ..", "shown in each stage of the growing net"
    )
    batch: tuple[int, ...] = value((64, 64, 32), None, (256, 128, 64, 64, 32), "in each stage")
    step: float = value(0.005, 0.5, 1.0, "a; here at most a quarter of the least variance", low=1e-6)
    mix: str = value(
        "linear", "root", "linear", "weight of Up: 1 - beta or sqrt(1 - beta^2)", allowed=("linear", "root")
    )
    width: int = value(2, 32, 32, "c; features are 4c", low=1)
    spectral: bool = value(False, True, True, "Table 9; here slopes must be steep")
    padding: str = value("circular", source="the field is a torus", allowed=("zeros", "circular"))
    lr: float = value(3e-3, 1e-3, 1e-3, "A.2, up to 32 pixels; here with a half cosine to 0 in each stage", low=0)
    beta1: float = value(0.5, 0.5, 0.5, "of Adam; its second is .999", low=0, below=1)
    ema: float = value(0.99, low=0, below=1)
    clip_norm: float = value(50.0, source="gradient norm", low=0)
    slope: float = value(1.0, source="s of the field's spectrum (1 + |k|^2)^-s", low=0)
    probes: int = value(20, source="looks at the score error while training", low=1)
    samples: int = value(4000, source="held-out fields", low=100)

    def implied(self, given: Mapping[str, Any]) -> "CoarseToFineToy":
        """Two stages at least, each with its steps, images and batch."""
        counts = [len(part) for part in (self.steps, self.images, self.batch)]
        if counts[0] < 2 or len(set(counts)) > 1:
            raise ValueError(f"steps, images and batch need one entry a stage, two stages at least; they have {counts}")
        return self


@dataclass(frozen=True)
class DRL:
    """Settings of `drl_cifar`: T6 on CIFAR-10 (Tables 4 and 5); where text and release differ, the release."""

    T: int = value(6, 6, 6, "section 4: 1, 2..501 or 1000")
    K: int = value(30, 30, 30, "section 4; 0 at T = 1000", low=0)
    b2: float = value(2e-4, "b = .0002", 2e-4, "section 4; delta^2 = c^2 b2 sigma^2", low=0)
    variant: str = value("code", "text", "code", "Eqs. 15 to 17 against the release", allowed=("code", "text"))
    objective: str = value("recovery", "recovery", "recovery", "Table 2 has both", allowed=("recovery", "dsm"))
    size: int = value(32, 32, 32, "Table 4", low=8)
    width: int = value(128, 128, 128, "Table 4", low=4)
    multipliers: tuple[int, ...] = value((1, 2, 2, 2), (1, 2, 2, 2), (1, 2, 2, 2), "Table 4")
    blocks: int = value(5, 5, 8, "Table 5; README", low=1)
    head: str = value("time", "dense", "time", "Table 4", allowed=("time", "dense"))
    spectral: bool = value(True, True, True, "Appendix B")
    batch: int = value(256, 256, 256, "Table 5", low=1)
    iterations: int = value(50_000, 50_000, 50_000, "Table 5", low=1)
    lr: float = value(1e-4, 1e-4, 1e-4, "Appendix B", low=0)
    beta1: float = value(0.9, 0.9, 0.9, "Table 5", low=0, below=1)
    warmup: int = value(1000, None, 1000, "release", low=0)
    cosine: bool = value(False, None, False, "whether the rate then falls to 0 as a half cosine")
    clip_norm: float = value(0.0, None, None, "of the gradient; 0 leaves it as it is", low=0)
    ema: float = value(0.999, None, 0.999, "release", low=0, below=1)
    noise: float = value(0.99, 1, 0.99, "release: at test time", low=0)
    flip: bool = value(True, True, True, "Appendix B")
    precision: str = value("float32", source="of the net's body", allowed=("float32", "bfloat16"))
    samples: int = value(50_000, 50_000, 50_000, "Appendix B, for FID; KID needs 16", low=16)
    deterministic: bool = value(False, source="training on CUDA repeats bit for bit, more slowly")

    def implied(self, given: Mapping[str, Any]) -> "DRL":
        """What other settings bring where it is not given: T = 1000 the normal approximation K = 0, whose noise is the
        conditional's own; the variant "text" its b = .0002, its noise at test time and Table 4's head. Elsewhere K = 0
        has no meaning.
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
class SelfAdversarialImages:
    """Settings of `self_adversarial_images` (section 5.2, Table 2, Appendix A.2) on MNIST and Fashion-MNIST."""

    K: int = value(40, 40, None, "Appendix A.2", low=1)
    step: float = value(0.05, "eta = .1", None, "Appendix A.2 and Eq. 7: a = eta / 2", low=1e-9)
    noise: float = value(0.1, 0.1, None, "Appendix A.2: b of the noisy chain", low=0)
    size: int = value(32, 32, None, "Appendix A.2", low=8)
    filters: int = value(32, 32, None, "Table 2: nf", low=1)
    multipliers: tuple[int, ...] = value((1, 2, 2, 2), (1, 2, 2, 2), None, "Table 2")
    iterations: int = value(8000, 8000, None, "Appendix A.2", low=1)
    batch: int = value(64, 64, None, "Appendix A.2", low=1)
    lr: float = value(5e-4, 5e-4, None, "Appendix A.2", low=0)
    cosine: bool = value(False, None, None, "whether the rate falls to 0 as a half cosine")
    ema: float = value(0.0, None, None, "running mean of the weights; 0 is none", low=0, below=1)
    recompute: bool = value(False, None, None, "generator loss: memory of one step, for half as much time again")
    samples: int = value(10_000, None, None, "for FID; KID needs 16", low=16)
    deterministic: bool = value(False, None, None, "training on CUDA repeats bit for bit, more slowly")


@dataclass(frozen=True)
class DRLInterpolation:
    """Settings of `drl_interpolation` (section 4.1, Figures 5 and 8 to 10); net and chains are the checkpoint's."""

    way: str = value("arc", "sphere", None, "section 4.1; whose angle is not said", allowed=("arc", "angle"))
    steps: int = value(9, source="images a row, both ends among them; an odd number", low=3)
    pairs: int = value(64, source="of samples, each with its path", low=2)
    at_once: int = value(4, source="pairs whose paths are sampled together", low=1)
    own_iterations: int = value(0, source="of a net of the checkpoint's shape trained here; 0 trains none", low=0)
    batch: int = value(32, source="of that training, as in `drl_cifar` at preset cpu", low=1)
    lr: float = value(1e-3, source="of that training, with a half cosine to 0", low=0)
    warmup: int = value(50, low=0)
    ema: float = value(0.98, low=0, below=1)
    clip_norm: float = value(1.0, source="gradient norm", low=0)

    def implied(self, given: Mapping[str, Any]) -> "DRLInterpolation":
        """A row with a middle."""
        if self.steps % 2 == 0:
            raise ValueError(f"steps = {self.steps}: allowed is an odd number of at least 3, so that there is a middle")
        return self


@dataclass(frozen=True)
class DRLLongRun:
    """Settings of `drl_long_run`: T1k on CIFAR-10 (section 4.2, Tables 4 and 5). Its code was released in part."""

    hmc_steps: tuple[int, ...] = value(
        (1, 10, 100), (1, 10, 100), None, "Figure 7: steps a level, the first the normal approximation"
    )
    L: int = value(2, 2, 2, "section 4.2: leapfrog steps", low=1)
    chains: int = value(1000, source="of each long run; Figure 6 shows the estimate over their number", low=16)
    pilots: int = value(1000, 1000, None, "section 4.2: chains that adapt the steps", low=16)
    tune_K: int = value(100, 100, None, "section 4.2: HMC steps between two changes of the step", low=1)
    stride: int = value(1, 1, None, "section 4.2: every level is adapted", low=1)
    tests: int = value(10_000, 10_000, None, "test images for bits per dimension", low=32)
    check_chains: int = value(4000, source="of the check on a Gaussian", low=100)
    size: int = value(32, 32, 32, "Table 4", low=8)
    width: int = value(128, 128, 128, "Table 4", low=4)
    multipliers: tuple[int, ...] = value((1, 2, 2, 2), (1, 2, 2, 2), (1, 2, 2, 2), "Table 4")
    blocks: int = value(5, 5, 8, "Table 5; README", low=1)
    head: str = value("time", "dense", "time", "Table 4", allowed=("time", "dense"))
    spectral: bool = value(True, True, True, "Appendix B")
    weight_power: float = value(2.0, source="of cum_sigma / sigma in a level's weight", low=0)
    beta1: float = value(0.9, 0.9, 0.9, "Table 5", low=0, below=1)
    batch: int = value(256, 256, 256, "Table 5", low=1)
    iterations: int = value(50_000, 50_000, 50_000, "Table 5", low=1)
    lr: float = value(1e-4, 1e-4, 1e-4, "Appendix B", low=0)
    warmup: int = value(1000, None, 1000, "release", low=0)
    cosine: bool = value(False, None, False, "whether the rate then falls to 0 as a half cosine")
    clip_norm: float = value(0.0, None, None, "of the gradient; 0 leaves it as it is", low=0)
    ema: float = value(0.999, None, 0.999, "release", low=0, below=1)
    flip: bool = value(True, True, True, "Appendix B")


@dataclass(frozen=True)
class PartitionToy:
    """Settings of `partition_toy`; the paper's column is Appendix A.4 and section 4.2 of recovery likelihood."""

    repeats: int = value(20, source="independent repetitions of every bracket", low=2)
    chains: int = value(500, source="AIS: chains a direction", low=20)
    levels: int = value(48, source="AIS: steps of the path", low=2)
    K: int = value(3, source="AIS: MALA steps a level", low=1)
    power: float = value(3.0, source="AIS: beta_k = (k / levels)^power in 2D", low=1)
    delta: float = value(0.05, source="a bracket holds log Z with probability 1 - delta", low=1e-6, below=1)
    log_c: float = value(3.0, source="log Z of the targets whose log Z is known")
    pilots: int = value(100, source="chains that choose the steps and are not weighed", low=20)
    dims: tuple[int, ...] = value((2, 10, 50), source="of the Gaussians")
    T: int = value(6, 1000, 1000, "section 4.2: T1k")
    hmc_steps: tuple[int, ...] = value((1, 4, 16, 64), (1, 10, 100), source="Figure 6: HMC steps a level")
    L: int = value(2, 2, source="section 4.2: leapfrog steps", low=1)
    samples: int = value(2000, source="samples of the importance chain", low=50)
    span: float = value(4.5, source="half side of the data's box after scaling", low=0)
    b2: float = value(0.06, "b = .0002", 2e-4, "step constant in training, as in `drl_toy`", low=0)
    width: int = value(48, source="the learned energy's net", low=2)
    train_K: int = value(15, 30, 30, "Langevin steps a level in training", low=1)
    iterations: int = value(1000, source="of training", low=1)
    batch: int = value(256, source="of training", low=1)
    lr: float = value(3e-3, 1e-4, 1e-4, "with a half cosine to 0", low=0)
    ema: float = value(0.99, None, 0.999, "weights that are judged", low=0, below=1)
