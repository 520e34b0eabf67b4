"""Settings of the chapter on VAEBM."""

from dataclasses import dataclass

from ebmlib.settings.value import Settings, value


@dataclass(frozen=True)
class VAEBMToy(Settings):
    """Settings of `vaebm_toy` (section 5.4). The paper's steps are for CIFAR-10; no 2D code was released."""

    notebook = "vaebm_toy"
    kind = "density"
    data = "25-gaussians"
    latents: int = value(20, "section 5.4", text=20, smoke=3, low=1)
    width: int = value(256, "section 5.4: encoder, decoder and energy", text=256, smoke=16, quick=64, low=2)
    depth: int = value(4, "section 5.4: hidden layers", text=4, smoke=2, low=1)
    vae_iterations: int = value(8000, "of the VAE", smoke=30, quick=5000, low=1)
    vae_batch: int = value(256, low=1)
    vae_lr: float = value(1e-3, "Adam", quick=3e-3, above=0)
    constant: float = value(0.8, "share of them before the rate falls to 0 along a line", low=0, below=1)
    anneal: float = value(0.625, "share of them in which the KL weight rises to 1", above=0)
    posterior: int = value(10_000, "section 5.4: samples per node near data", text=10_000, smoke=20, quick=500, low=1)
    coarse: int = value(200, "samples per other node", quick=100, low=1)
    nodes: int = value(124, "per side of the grid for log p of the VAE and for Z", smoke=30, quick=90, low=4)
    block: int = value(20_000, "posterior samples at once", low=1)
    tests: int = value(100_000, "section 5.4: test points", text=100_000, smoke=500, quick=10_000, low=10)
    direct: int = value(1000, "of them estimated without the grid", smoke=50, quick=200, low=2, most="tests")
    K: int = value(5, "gradient steps of a chain per iteration; CIFAR-10", both=10, low=1)
    eta: float = value(3e-3, "of the plain Langevin chains; CIFAR-10", both=8e-5, above=0)
    long_eta: float = value(0.1, "of the comparison's long steps", above=0)
    plain_K: int = value(10, "of the paper's recipe made stable; CIFAR-10", both=10, smoke=2, low=1)
    plain_l2: float = value(0.2, "its weight of squared energies, without which it diverges here", low=0)
    plain_iterations: int = value(3000, "its length", smoke=6, quick=300, low=1)
    step: float = value(0.02, "of the corrected chains, eta / 2", above=0)
    jumps: int = value(2, "of the corrected chains, before the K steps", low=0)
    chains: int = value(256, "at once", low=2)
    iterations: int = value(4000, "of the energy", smoke=12, quick=400, low=1)
    compare_iterations: int = value(600, "in the comparison of six ways to sample", smoke=6, quick=150, low=1)
    batch: int = value(256, "data; CIFAR-10", both=32, smoke=32, low=1)
    lr: float = value(1e-3, "Adam; here with a half cosine to 0", both=4e-5, quick=2e-3, above=0)
    warmup: int = value(50, low=0)
    ema: float = value(0.995, "of the energy's weights", quick=0.98, low=0, below=1)
    clip_norm: float | None = value(1.0, "largest norm of the gradient; the paper clips element by element", above=0)
    gain: float = value(8.0, "factor on the coordinates: the modes are narrow", above=0)
    stable_gap: float = value(25.0, "nats: a run whose gap leaves this bound counts as unstable", above=0)
    probes: int = value(2000, "chains that compare the two spaces", smoke=100, quick=1000, low=10)
    long_K: int = value(100, "Langevin steps in the twin of Figure 5", low=1)
    decoder_iterations: int = value(300, "of Appendix C's update", smoke=5, quick=100, low=1)
    decoder_lr: float = value(1e-4, "of Appendix C's update", above=0)
    mixture: int = value(100_000, "draws of the prior that judge it", smoke=1000, quick=20_000, low=1000)
