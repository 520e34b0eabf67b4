"""The code on the page "On your own data, density or energy" runs as it stands there, block after block."""

import math
import re
from pathlib import Path

import formats
import pytest
import torch

from ebmlib import partition
from ebmlib.papers import recovery

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "book" / "own_data.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)


def block(holding: str) -> str:
    (found,) = [text for text in BLOCKS if holding in text]
    return found


@pytest.fixture(autouse=True)
def from_the_root(tmp_path, monkeypatch):
    """The page starts from the checkout; what its code keeps goes elsewhere."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def test_every_block_is_run_here():
    run = ["/path/to/photos", "checkpoint.load(path)", "recovery.progressive", "banana", "def wells", "class Ring"]
    run.append("class Mine")
    assert [BLOCKS.index(block(holding)) for holding in run] == list(range(len(BLOCKS)))


def test_a_folder_of_images(tmp_path):
    for k in range(3):
        formats.write(tmp_path / "photos" / f"{k}.png", formats.encoded(formats.smooth(50, 40, k)))
    namespace: dict = {}
    exec(block("/path/to/photos").replace("/path/to/photos", str(tmp_path / "photos")), namespace)
    x = namespace["x"]
    assert x.shape == (3, 3, 32, 32)
    assert x.dtype == torch.float32
    assert -1 <= x.min() < x.max() <= 1


def test_the_bundled_checkpoint_draws_with_its_own_noise(monkeypatch):
    namespace, seen, progressive = {}, [], recovery.progressive

    def watched(*args, **options):
        seen.append((args[3], options.get("noise", 0.99)))  # .99 is the function's own
        return progressive(*args, **options)

    monkeypatch.setattr(recovery, "progressive", watched)
    exec(block("checkpoint.load(path)"), namespace)
    exec(block("recovery.progressive"), namespace)
    cfg, x = namespace["cfg"], namespace["x"]
    steps = [cfg["K"] * (1 + (t < cfg["doubled"])) for t in range(cfg["T"])]
    assert seen == [(steps, cfg["noise"])] * cfg["scales"]
    side = cfg["size"]
    assert x.shape == (16, 1, side, side)
    garment = x.clamp(-1, 1).amax((1, 2, 3)) > 0  # lighter than middle gray; small images have no bright details ...
    corners = x[:, :, :: side - 1, :: side - 1].mean()  # ... on black
    assert garment.float().mean() > 0.8
    assert corners < -0.8


def test_an_energy_of_your_own(capsys):
    namespace: dict = {}
    exec(block("banana"), namespace)
    acceptance, mean, log_z, exact = map(float, re.findall(r"-?\d+\.\d+", capsys.readouterr().out))
    assert 0.3 < acceptance < 0.95
    assert abs(mean - 1) < 0.1  # 2000 chains: a standard error of .022
    assert abs(log_z - exact) < 1e-3
    assert exact == pytest.approx(math.log(2**0.5 * math.pi), abs=1e-3)


def test_an_energy_of_your_own_in_the_playground():
    namespace: dict = {}
    exec(block("def wells"), namespace)
    play = namespace["play"]
    assert (play.density, play.box, play.spec["n"], play.start) == ("two wells", 2.5, 129, "center")
    assert "two wells" in play.static_html()


def test_a_density_of_your_own():
    namespace = {}
    exec(block("class Ring"), namespace)
    ring = namespace["Ring"]()
    assert abs(float(partition.log_z(ring.energy, ring.box))) < 1e-3
    blurred = ring.blurred(0.3)
    assert abs(float(partition.log_z(blurred.energy, blurred.box))) < 1e-3
    rng = torch.Generator().manual_seed(0)
    energy = ring.energy(ring.sample(20_000, rng))
    side = torch.linspace(-ring.box, ring.box, 801, dtype=torch.float64)
    log_p = ring.log_prob(torch.cartesian_prod(side, side))
    exact = -(log_p.exp() * log_p).sum() * (side[1] - side[0]) ** 2  # the entropy
    assert abs(energy.mean() - exact) < 4 * energy.std() / 20_000**0.5


def test_a_net_of_your_own():
    namespace = {"torch": torch}  # the page has imported it by then
    exec(block("class Mine"), namespace)
    x, t = torch.randn(5, 2), torch.tensor([0, 1, 2, 3, 5])
    net = namespace["Mine"]()
    energy = net.at(t)(x)
    assert energy.shape == (5,)
    alone = torch.cat([net.at(t[k : k + 1])(x[k : k + 1]) for k in range(5)])
    torch.testing.assert_close(energy, alone)  # samples of a batch do not see each other
