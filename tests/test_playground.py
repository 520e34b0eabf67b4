"""The playground's JavaScript against torch and against closed forms, its Python face, and its static page."""

import base64
import copy
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from browsing import CHROMIUM, DRIVER, Browser, served
from scipy import special
from torch import nn

from ebmlib import samplers
from ebmlib.core import evaluating
from ebmlib.nets.mlp import MLP, TimeMLP
from ebmlib.page.exports import energy_spec, levels_spec, net_spec, table_spec
from ebmlib.page.playground import Playground, static_script
from ebmlib.papers import recovery
from ebmlib.targets import densities

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="Node is not installed")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

NAMED = ("25-gaussians", "9-gaussians", "swiss-roll", "checkerboard", "two-moons", "rings", "pinwheel")
TARGETS = {
    **{name: densities.by_name(name) for name in (*NAMED, "funnel")},
    "gaussian": densities.gaussian(1.7, (0.3, -0.2)),
    "odd-checkerboard": densities.Checkerboard(edge=0.2, half=1.5, cells=3),
    "blurred-funnel": densities.by_name("funnel").blurred(0.3),
}


def rough_mlp(**options) -> MLP:
    """A net with weights of a trained one's size, so that its energy bends."""
    torch.manual_seed(4)
    net = MLP(**options)
    torch.nn.utils.vector_to_parameters(2 * torch.nn.utils.parameters_to_vector(net.parameters()), net.parameters())
    return net


def ripple(x):
    """An energy that no closed form of the page covers."""
    return (3 * x[:, 0]).sin() * (2 * x[:, 1]).cos() + 0.2 * (x**2).sum(1)


def decoded(text):
    """The numbers of `encoded`, flat, in float64."""
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), "<f4").astype(np.float64))


def table_energy(spec):
    """The torch twin of a table: the spline of `table_spec`, (B, 2) -> (B,) in float64, differentiable in x."""
    n, box = spec["n"], spec["box"]
    c = decoded(spec["coefficients"]).reshape(n + 2, n + 2)

    def energy(x):
        place = ((x.double() + box) * ((n - 1) / (2 * box))).clamp(0, n - 1)
        first = place.detach().floor().long().clamp(max=n - 2)  # (B, 2)
        t = (place - first)[..., None]
        s = 1 - t
        weight = torch.cat([s**3 / 6, 2 / 3 - t**2 * (1 + s) / 2, 2 / 3 - s**2 * (1 + t) / 2, t**3 / 6], 2)  # (B, 2, 4)
        four = torch.arange(4)
        rows, columns = first[:, 1, None] + four, first[:, 0, None] + four
        patch = c[rows[:, :, None], columns[:, None, :]]  # (B, 4, 4)
        return torch.einsum("brc,br,bc->b", patch, weight[:, 1], weight[:, 0])

    return energy


NETS = {
    "2x32": (rough_mlp(width=32, depth=2), {"factor": 0.7, "temperature": 0.4}),
    "3x24": (rough_mlp(width=24, depth=3, gain=3.0, box=2.0), {}),
    "spectral": (MLP(width=17, depth=1, spectral=True), {"factor": 2.0}),
}
TABLE = table_spec(ripple, 2.5)
NOISING = recovery.noising(4, 2e-2)


def rough_time_mlp(**options) -> TimeMLP:
    """A net with levels whose residual branches are not the zeros that they start as."""
    torch.manual_seed(7)
    net = TimeMLP(**options)
    with torch.no_grad():
        for block in net.body:
            block.scale.factor.normal_()
    return net


TIME_NETS = {
    "widening": rough_time_mlp(width=12, multipliers=(1, 2, 2), gain=1.5),
    "plain": rough_time_mlp(width=16, multipliers=(1, 1), spectral=False),
}
WALKS = [("widening", {}), ("plain", {}), ("plain", {"n": 129})]
S, N = 0.7, 5_000  # width of the Gaussian whose chains are measured, particles
# (a, b): temperature 1 at three step sizes, the last above the 1/s^2 rule a = s^2, and two other temperatures.
PAIRS = [(f * S**2, math.sqrt(2 * f * S**2)) for f in (0.1, 1.0, 1.7)] + [(0.2, 0.1), (0.2, 1.1)]


def exact_walk():
    """A walk down the exact energies of noised data, of width 1.1 and off center, with chains long enough to mix."""
    tables, data = recovery.noising(3, 0.03, c_power=0.0), densities.gaussian(1.1, (0.5, -0.3))

    def at_level(t):
        a, s = float(tables.cum_a[t[0]]), float(tables.cum_sigma[t[0]])
        return lambda y: data.blurred(s / a).energy(y / (a * tables.scale[t[0]]))

    return {"spec": levels_spec(at_level, tables, 400, 3.0, n=33, walls=8.0), "a": 0.5, "b": 1.0, "seed": 1, "n": 2000}


NODE_RUN = """
import { readFileSync } from "node:fs";
const module = (path) => import("data:text/javascript;base64," + readFileSync(path).toString("base64"));
const [playground, { check }] = await Promise.all(process.argv.slice(1, 3).map(module));
console.log(JSON.stringify(check(playground, JSON.parse(readFileSync(0, "utf8")))));
"""
BROWSER_RUN = """
const done = arguments[0];
const modules = ["playground.js", "playground_check.mjs"].map((name) => import("/" + name));
Promise.all([...modules, fetch("/task.json").then((answer) => answer.json())])
  .then(([playground, { check }, task]) => done(JSON.stringify(check(playground, task))))
  .catch((error) => done(String(error)));
"""
SOURCES = (
    Path(__file__).parents[1] / "ebmlib" / "page" / "playground.js",
    Path(__file__).with_name("playground_check.mjs"),
)


def in_node(task: dict) -> dict:
    command = [NODE, "--input-type=module", "-e", NODE_RUN, *map(str, SOURCES)]
    run = subprocess.run(command, input=json.dumps(task), capture_output=True, text=True, timeout=400)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def in_chromium(task: dict, folder: Path) -> dict:
    for source in SOURCES:
        shutil.copy(source, folder)
    (folder / "task.json").write_text(json.dumps(task))
    (folder / "index.html").write_text("<!doctype html><title>x</title>")
    browser = Browser()
    try:
        with served(folder) as address:
            browser.open(address)
            return json.loads(browser.wait_for(BROWSER_RUN))
    finally:
        browser.close()


@pytest.fixture(scope="module", params=["node", "chromium"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """One run of all checks in each engine: points in and around each box, chains on N(0, s^2), random numbers."""
    if request.param == "node" and NODE is None:
        pytest.skip("Node is not installed")
    if request.param == "chromium" and (CHROMIUM is None or DRIVER is None):
        pytest.skip("Chromium or chromedriver is not installed")
    rng = torch.Generator().manual_seed(0)
    cube = 2 * torch.rand(500, 2, generator=rng, dtype=torch.float64) - 1
    points = {name: 1.5 * target.box * cube for name, target in TARGETS.items()}
    points |= {name: 3 * cube for name in NETS} | {"table": 2.5 * cube}
    specs = {name: energy_spec(target) for name, target in TARGETS.items()}
    specs |= {name: net_spec(net, 3.0, **options) for name, (net, options) in NETS.items()} | {"table": TABLE}
    spec = energy_spec(densities.gaussian(S))
    chains = [{"spec": spec, "a": a, "b": b, "n": N, "seed": 3, "steps": 80, "limit": 2 * S**2} for a, b in PAIRS]
    chains.append(chains[0] | {"a": 2.4 * S**2, "n": 50, "steps": 2000})
    chains.append(chains[0] | {"a": 1.8 * S**2, "b": 1e3, "n": 50})
    common = {"seed": 11, "steps": 6}
    updates = [
        {"spec": specs["3x24"], "a": 0.01, "b": 0.3, "options": {"start": "uniform", "walls": 2.0}, **common},
        {"spec": specs["9-gaussians"], "a": 0.004, "b": 0.0, "options": {"start": "gaussian", "unit": 0.5}, **common},
        {"spec": specs["table"], "a": 0.02, "b": 0.2, **common,
         "options": {"start": "data", "data": [0.5, -1.0, 2.0, 0.1], "walls": 2.5}},
    ]  # fmt: skip
    usual = {"spec": spec, "a": 1.2 * S**2, "n": 4000, "seed": 6, "steps": 60}
    mala = [usual | {"b": math.sqrt(2.4) * S}, usual | {"b": S}, usual | {"b": math.sqrt(2.4) * S, "walls": S}]
    nine = TARGETS["9-gaussians"]
    sample = nine.sample(300, torch.Generator().manual_seed(2)).double()
    panel = {"spec": specs["9-gaussians"], "box": 1.05 * nine.box, "size": 192, "ns": [10, 300]}
    panel["modes"] = Playground("9-gaussians").modes
    shifted = sample + torch.tensor([2.0, 0.0])  # two of three columns leave the picture
    walks = [levels_spec(TIME_NETS[name], NOISING, 3, 60.0, **options) for name, options in WALKS]
    task = {
        "walks": [{"spec": walk, "a": 0.5, "b": 0.99, "seed": 8} for walk in walks] + [exact_walk()],
        "panel": [panel | {"points": x.tolist()} for x in (sample, shifted)],
        "updates": updates,
        "mala": mala,
        "energies": [{"spec": specs[k], "points": p.tolist()} for k, p in points.items()],
        "chains": chains,
        "seed": 5,
        "erfcx": [0.0, 1e-3, 0.5, 1.0, 1.999, 2.0, 2.5, 4.0, 30.0, 400.0],
    }
    out = in_node(task) if request.param == "node" else in_chromium(task, tmp_path_factory.mktemp("engine"))
    out["energies"] = dict(zip(points, torch.tensor(out["energies"], dtype=torch.float64)))
    return points, task, out


def with_gradient(energy, x):
    """(B, 3): energy and gradient, as the page gives them."""
    x = x.clone().requires_grad_()
    value = energy(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return torch.cat([value[:, None], gradient], 1).detach()


def effective_temperature(energy, x):
    """Mean squared gradient over mean Laplacian, or None where that is not positive; the Laplacian by autograd."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(energy(x).sum(), x, create_graph=True)
    rows = [torch.autograd.grad(gradient[:, d].sum(), x, retain_graph=True)[0][:, d] for d in range(2)]
    laplacian = sum(rows).mean()
    return float((gradient.square().sum(1).mean() / laplacian).detach()) if laplacian > 0 else None


@pytest.mark.parametrize("name", TARGETS)
def test_energies_and_gradients_equal_torch(engine, name):
    points, _, out = engine
    exact = with_gradient(TARGETS[name].energy, points[name])
    torch.testing.assert_close(out["energies"][name], exact, rtol=1e-7, atol=1e-5)
    assert exact[:, 0].max() - exact[:, 0].min() > 10  # the points reach the tails


@pytest.mark.parametrize("name", NETS)
def test_nets_equal_torch(engine, name):
    points, _, out = engine
    net, options = copy.deepcopy(NETS[name][0]).double(), NETS[name][1]
    energy = lambda x: net(options.get("factor", 1.0) * x) / options.get("temperature", 1.0)
    with evaluating(net):
        exact = with_gradient(energy, points[name])
    torch.testing.assert_close(out["energies"][name], exact, rtol=1e-6, atol=1e-6)
    assert exact[:, 1:].std(0).min() > 0.01  # the gradient is not one constant


def test_tables_equal_their_torch_twin_and_the_energy(engine):
    points, _, out = engine
    x, page = points["table"], out["energies"]["table"]
    torch.testing.assert_close(page, with_gradient(table_energy(TABLE), x), rtol=1e-7, atol=1e-7)
    exact = with_gradient(ripple, x)
    assert (page - exact).abs()[:, 0].max() < 1e-5
    assert (page - exact).abs()[:, 1:].max() < 1e-3


def test_a_table_errs_by_the_fourth_power_of_the_spacing():
    x = 2 * torch.rand(4000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    error = [(table_energy(table_spec(ripple, 2.5, n=n))(2.2 * x) - ripple(2.2 * x)).abs().max() for n in (17, 33)]
    assert 11 < error[0] / error[1] < 25


@pytest.mark.parametrize("k", range(len(PAIRS)))
def test_stationary_variance_of_the_chain(engine, k):
    a, b = PAIRS[k]
    exact = b**2 / (2 * a / S**2 - a**2 / S**4)  # contraction (1 - a/s^2)^(2 * 80) is below 1e-7
    se = exact * math.sqrt(2 / (2 * N))  # the law is normal with mean 0, 2N coordinates
    z = (engine[2]["chains"][k]["second"] - exact) / se
    assert abs(z) < 4
    if k == 1:
        assert abs(exact - S**2) > 20 * se  # the bias of the step is seen, not only the target's variance
    measured = engine[2]["chains"][k]["temperature"]  # from 256 particles, each with two squares
    assert abs(measured * S**2 / exact - 1) < 4 * math.sqrt(2 / 512)


@pytest.mark.parametrize("k", range(3))
def test_updates_equal_torch(engine, k):
    task, out = engine[1]["updates"][k], engine[2]["updates"][k]
    x, noise, end = (torch.tensor(out[name], dtype=torch.float64) for name in ("start", "noise", "end"))
    x, noise = x.reshape(-1, 2), noise.reshape(task["steps"], -1, 2)
    first = copy.deepcopy(NETS["3x24"][0]).double()
    energy = (first, TARGETS["9-gaussians"].energy, table_energy(TABLE))[k]
    walls, left = task["options"].get("walls", math.inf), 0
    for xi in noise:
        x = x - task["a"] * with_gradient(energy, x)[:, 1:] + task["b"] * xi
        over = x.abs() > walls
        x, left = torch.where(over, x.sign() * (2 * walls - x.abs()), x), left + int(over.sum())
    assert left > 0 or k > 0
    torch.testing.assert_close(end.reshape(-1, 2), x, rtol=1e-5, atol=1e-5)
    assert out["temperature"] == pytest.approx(effective_temperature(energy, end.reshape(-1, 2)), rel=1e-4)


@pytest.mark.parametrize("k", range(3))
def test_a_walk_down_the_levels_equals_torch(engine, k):
    """Algorithm 2 on the page: every conditional energy, pair and rescaling of `recovery`, with the page's noise."""
    out = engine[2]["walks"][k]
    net = copy.deepcopy(TIME_NETS[WALKS[k][0]]).double()
    x, noise, end = (torch.tensor(out[name], dtype=torch.float64).reshape(-1, 2) for name in ("start", "noise", "end"))
    noise = iter(noise.reshape(-1, *x.shape))
    at_level, T = recovery.levels(net.at, NOISING), NOISING.T
    if k == 2:
        energies = [table_energy(spec) for spec in engine[1]["walks"][k]["spec"]["energies"]]
        at_level = lambda t: energies[int(t[0])]
    with evaluating(net):
        for level in reversed(range(T)):
            t = torch.full((len(x),), level)
            target, y = recovery.conditional(at_level(t), x, NOISING.precision[t]), x
            for a, b in recovery.schedule(NOISING, t, 3, 0.99):
                y = y - a[:, None] * with_gradient(target, y)[:, 1:] + b[:, None] * next(noise)
            x = y / NOISING.scale[level]
        measured = effective_temperature(target, end)
    assert next(noise, None) is None
    assert out["seen"] == [level for level in reversed(range(T)) for _ in range(3)]
    torch.testing.assert_close(end / NOISING.scale[0], x, rtol=1e-5, atol=1e-5)
    assert out["temperature"] == pytest.approx(measured, rel=1e-4)  # of the conditional, not of the level's energy
    first = torch.tensor(out["start"], dtype=torch.float64).reshape(-1, 2)
    assert (x - first).square().mean() > 0.01  # it went somewhere


def test_a_walk_down_exact_levels_returns_the_data_law(engine):
    task, out = engine[1]["walks"][3], engine[2]["walks"][3]
    x = torch.tensor(out["end"], dtype=torch.float64).reshape(-1, 2) / task["spec"]["scale"][0]
    z = (x.mean(0) - torch.tensor([0.5, -0.3])) / (1.1 / math.sqrt(2000))
    assert z.abs().max() < 4
    assert (x.std(0) / 1.1 - 1).abs().max() < 4 / math.sqrt(2 * 2000) + 0.02  # the step's bias is below .02
    assert abs(out["temperature"] - 1) < 4 * math.sqrt(2 / 512) + 0.04


def test_a_levels_table_is_the_levels_energy():
    net = copy.deepcopy(TIME_NETS["plain"])
    x = 3 * (2 * torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) - 1)
    spec = levels_spec(net, NOISING, 3, 3.0, n=129)
    for level in range(NOISING.T):
        with evaluating(net):
            exact = recovery.levels(net.at, NOISING)(torch.full((500,), level))(x)
        error = (table_energy(spec["energies"][level])(x) - exact).abs().max()
        assert error < 1e-3 * exact.std()


def test_starts(engine):
    uniform, normal, data = (torch.tensor(out["start"]).reshape(-1, 2) for out in engine[2]["updates"])
    assert uniform.abs().max() <= 2
    assert abs(uniform.square().mean() - 4 / 3) < 4 * math.sqrt(16 * (1 / 5 - 1 / 9) / 80)
    assert abs(normal.square().mean() - 0.25) < 4 * 0.25 * math.sqrt(2 / 80)
    torch.testing.assert_close(data, torch.tensor([[0.5, -1.0], [2.0, 0.1]]).repeat(20, 1))


def test_mala_is_exact_at_its_temperature_and_in_walls(engine):
    """At a step where the plain chain is 2.5 times too wide; the second pair has temperature b^2 / 2a, not 1."""
    one, cool, walled = engine[2]["mala"]
    se = math.sqrt(2 / 8000)
    assert abs(one["second"] / S**2 - 1) < 4 * se
    temperature = 1 / 2.4
    assert abs(cool["second"] / (temperature * S**2) - 1) < 4 * se
    phi, mass = math.exp(-0.5) / math.sqrt(2 * math.pi), math.erf(math.sqrt(0.5))
    inside = 1 - 2 * phi / mass  # variance of N(0, 1) cut at 1
    assert abs(walled["second"] / S**2 - inside) < 4 * math.sqrt(0.1 / 8000)  # x^2 there has a variance below .1
    assert walled["top"] <= S
    x = S * torch.randn(4000, 2, generator=torch.Generator().manual_seed(1))
    _, info = samplers.mala(densities.gaussian(S).energy, x, 1.2 * S**2, 60, rng=torch.Generator().manual_seed(2))
    assert abs(one["rate"] - float(info.acceptance.mean())) < 4 * math.sqrt(0.25 / 4000)
    assert 0.2 < one["rate"] < 0.9


def test_the_panel_counts_what_it_says(engine):
    """Cells' masses, the histogram's distance, its mean for exact samples, the exact energy and the modes."""
    nine = TARGETS["9-gaussians"]
    for task, out in zip(engine[1]["panel"], engine[2]["panel"]):
        box, x = task["box"], torch.tensor(task["points"], dtype=torch.float64)
        edges = torch.linspace(-box, box, 17, dtype=torch.float64)
        normal = torch.distributions.Normal(torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64), 0.16)
        axis = normal.cdf(edges[:, None]).mean(1).diff()
        masses = (axis[:, None] * axis).flip(0).flatten()  # rows from the top
        torch.testing.assert_close(torch.tensor(out["masses"]).double(), masses, rtol=0, atol=2e-4)
        cell = torch.histogramdd(x[:, [1, 0]], [edges, edges])[0].flip(0).flatten() / len(x)
        distance = 0.5 * ((cell - masses).abs().sum() + 1 - cell.sum())
        assert out["distance"] == pytest.approx(float(distance), abs=1e-3)
        for n, expected in zip(task["ns"], out["expected"]):
            k = torch.arange(n + 1, dtype=torch.float64)[:, None]
            law = torch.distributions.Binomial(n, masses).log_prob(k).exp()
            mean = 0.5 * (law * (k / n - masses).abs()).sum()
            assert expected == pytest.approx(float(mean), rel=2e-3)
        assert out["energy"] == pytest.approx(-densities.mean_log_prob(nine), abs=1e-3)
        near = torch.cdist(x, nine.modes.double()) < 0.48
        assert out["visited"] == int(near.any(0).sum())
    first, second = engine[2]["panel"]
    assert first["visited"] == 9
    assert second["visited"] == 3
    assert abs(first["distance"] - first["expected"][1]) < 0.05
    assert second["distance"] > 0.6


def test_divergence_stops_and_says_why(engine):
    unstable, noisy = engine[2]["chains"][-2:]
    assert unstable["diverged"]
    assert unstable["count"] < 100  # |1 - 2.4|^k passes 1e3 near k = 21
    assert unstable["text"].startswith(f"Diverged at step {unstable['count']}: step size a = 1.18 above the stability")
    assert noisy["diverged"]
    assert "left |x| < 1000" in noisy["text"]


def test_random_numbers(engine):
    u = torch.tensor(engine[2]["uniforms"], dtype=torch.float64)
    z = torch.tensor(engine[2]["normals"], dtype=torch.float64)
    n = len(u)
    assert 0 < u.min() < u.max() < 1
    counts = torch.histc(u, 100, 0, 1)
    chi2 = ((counts - n / 100) ** 2 / (n / 100)).sum()
    assert abs(chi2 - 99) < 4 * math.sqrt(2 * 99)
    for moment, exact, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**moment).mean() - exact) < 4 * math.sqrt(variance / n)
    assert abs((z[1:] * z[:-1]).mean()) < 4 / math.sqrt(n)
    assert abs((u[1:] * u[:-1]).mean() - 0.25) < 4 * math.sqrt(7 / 144 / n)


def test_erfcx_equals_scipy(engine):
    _, task, out = engine
    np.testing.assert_allclose(out["erfcx"], special.erfcx(task["erfcx"]), rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in TARGETS if "funnel" not in name])
def test_curvature_never_exceeds_the_stated_bound(name):
    """L = 1/s^2 bounds the Hessian's top eigenvalue everywhere and is reached far out: chains need a < 2/L."""
    target, rng = TARGETS[name], torch.Generator().manual_seed(1)
    x = (2 * torch.rand(200, 2, generator=rng, dtype=torch.float64) - 1) * 1.3 * target.box
    far = torch.tensor([[4 * target.box, 3 * target.box]], dtype=torch.float64)
    bound = 1 / energy_spec(target)["std"] ** 2
    assert hessians(target, x).max() <= bound * (1 + 1e-4)
    assert hessians(target, far).max() > 0.9 * bound


def hessians(target, x, h=1e-5):
    """Eigenvalues of the energy's Hessian, by central differences of the exact gradient."""
    rows = []
    for e in h * torch.eye(2, dtype=torch.float64):
        up, down = ((x + sign * e).requires_grad_() for sign in (1, -1))
        slope = [torch.autograd.grad(target.energy(p).sum(), p)[0] for p in (up, down)]
        rows.append((slope[0] - slope[1]) / (2 * h))
    return torch.linalg.eigvalsh(torch.stack(rows, 1))


def test_traits_hold_temperature_one():
    widget = Playground("25-gaussians", step=0.005)
    assert widget.noise == math.sqrt(0.01)
    widget.step = 0.02
    assert widget.noise == math.sqrt(0.04)
    widget.locked = False
    widget.noise = 0.0
    widget.step = 0.001
    assert widget.noise == 0.0
    widget.locked = True
    assert widget.noise == math.sqrt(0.002)
    assert widget.limit == pytest.approx(2 * 0.08388**2)
    assert not Playground("gaussian", noise=0.3).locked
    widget.noise = 0.3
    assert (widget.locked, widget.noise) == (False, 0.3)


def test_any_module_or_function_is_drawn_on_its_box():
    """An `MLP` by its weights where a page can compute them, all others by their table; training mode comes back."""
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 1), nn.Flatten(0))
    assert Playground(NETS["2x32"][0], box=3.0).spec == net_spec(NETS["2x32"][0], 3.0)
    assert Playground(MLP(width=400), box=3.0).spec["kind"] == "table"
    assert Playground(ripple, box=2.0).spec == table_spec(ripple, 2.0, name="a function")
    widget = Playground(net.train(), box=2.0)
    x = torch.tensor([[0.3, -1.2], [1.9, 0.0]])
    assert torch.allclose(table_energy(widget.spec)(x).float(), net.eval()(x), atol=1e-4)
    assert all(not p.requires_grad or p.grad is None for p in net.parameters())


def test_the_funnel_starts_where_its_default_step_holds():
    widget = Playground("funnel")
    assert widget.start == "data"
    target = densities.by_name("funnel")
    start = target.sample(500, torch.Generator().manual_seed(0))
    steps = samplers.ula(widget.step, 500)
    x, info = samplers.langevin(target.energy, start, steps, rng=torch.Generator().manual_seed(1))
    assert float(x.abs().max()) < widget.box
    assert abs(float(info.energy.mean()) + densities.mean_log_prob(target)) < 0.5


REFUSED = [
    (lambda: Playground("moons"), "moons"),
    (lambda: Playground(densities.Checkerboard(edge=0)), "no energy with a gradient"),
    (lambda: Playground(TABLE, start="data"), "start 'data' needs data="),
    (lambda: Playground(start="moon"), "start must be one of uniform, center, gaussian, data"),
    (lambda: Playground(data=torch.zeros(3)), "finite points of shape"),
    (lambda: Playground(ripple), "a module or a function needs box="),
    (lambda: Playground("swiss-roll", box=2.0), "a density and a spec have their own"),
    (lambda: Playground({"kind": "x", "name": "n", "box": 1.0}), "must be a density or its name, .* not dict"),
    (lambda: Playground(step="a"), "step must be a number, not 'a'"),
    (lambda: Playground(particles=0), "particles must lie between 1 and 10,000, not 0"),
    (lambda: Playground(steps=True), "steps must be a number, not True"),
    (lambda: net_spec(TimeMLP(width=8), 3.0), "must be an ebmlib.nets.mlp.MLP, not TimeMLP"),
    (lambda: net_spec(MLP(dim=3), 3.0), "this net takes 3"),
    (lambda: net_spec(MLP(width=400), 3.0), "at most 50000 weights"),
    (lambda: net_spec(MLP(width=8), 0.0), "box must be a positive"),
    (lambda: net_spec(MLP(width=8), 3.0, temperature=-1.0), "temperature must be a positive"),
    (lambda: levels_spec(MLP(width=8), NOISING, 3, 4.0), "needs a TimeMLP, or at_level and n .*, not MLP"),
    (lambda: levels_spec(TIME_NETS["plain"], NOISING, 0, 4.0), "K must be an integer of at least 1, not 0"),
    (lambda: levels_spec(TIME_NETS["plain"], NOISING, 3, 4.0, walls=-1.0), "walls must be a non-negative"),
    (lambda: levels_spec(TimeMLP(), NOISING, 3, 4.0), "use table_spec"),
    (lambda: table_spec(ripple, 2.0, n=3), "n must be an integer of at least 5, not 3"),
    (lambda: table_spec(lambda x: ripple(x).log(), 2.0), "not finite"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_what_a_page_cannot_show_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_levels_are_traits():
    spec = levels_spec(TIME_NETS["plain"], NOISING, 3, 4.0)
    widget = Playground(spec)
    assert (widget.level, widget.n_steps, widget.step, widget.noise) == (3, 12, 0.5, 1.0)
    widget.level = 1
    assert '"level": 1' in widget.static_html()
    with pytest.raises(ValueError, match="level must lie between 0 and 3, not 4"):
        widget.level = 4
    with pytest.raises(ValueError, match="level must lie between 0 and 0, not 1"):
        Playground("rings").level = 1


def test_data_points_reach_the_page():
    points = torch.randn(600, 2, generator=torch.Generator().manual_seed(0))
    widget = Playground(TABLE, data=points, start="data", mala=True)
    torch.testing.assert_close(decoded(widget.data).reshape(-1, 2), points[:500].double())
    assert json.loads(re.search(r'json">(.*?)</script>', widget.static_html())[1])["mala"]
    assert len(decoded(Playground("rings").data)) == 1000
    assert Playground(TABLE).data == ""
    assert Playground(TABLE).modes == Playground("rings").modes == {}
    assert len(Playground("25-gaussians").modes["at"]) == 25


def test_output_holds_the_widget_and_its_static_twin():
    widget = Playground("checkerboard")
    data, _ = widget._repr_mimebundle_()
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == widget.model_id
    state = json.loads(re.search(r'<script type="application/json">(.*?)</script>', data["text/html"])[1])
    assert state["spec"] == widget.spec
    assert state["step"] == widget.step
    assert "http" not in data["text/html"] + static_script().replace("http and file", "")


@needs_node
def test_the_pages_speed_is_measured():
    script = Path(__file__).parents[1] / "benchmarks" / "playground_speed.mjs"
    rows = json.loads(subprocess.run([NODE, script, "100"], capture_output=True, timeout=400).stdout)
    assert len([row for row in rows if row["updates_per_second"] > 0]) == 10


def test_a_page_of_its_own_holds_the_whole_state_and_is_not_written_over(tmp_path):
    widget = Playground(table_spec(ripple, 2.5, name="<$script SCRIPT>"))
    widget.save(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<title>Langevin playground: &lt;$script SCRIPT&gt;</title>" in page
    assert widget.static_html() in page
    with pytest.raises(FileExistsError, match="overwrite=True"):
        Playground("gaussian").save(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == page
    Playground("gaussian").save(tmp_path / "page.html", overwrite=True)
    assert "Langevin playground: gaussian" in (tmp_path / "page.html").read_text()


def test_a_large_net_has_fewer_particles():
    assert Playground(net_spec(NETS["2x32"][0], 3.0)).n_particles == Playground(TABLE).n_particles == 400
    assert Playground(net_spec(MLP(), 3.0)).n_particles == 150  # 33,152 weights
    assert Playground(net_spec(MLP(), 3.0), particles=300).n_particles == 300


@needs_chromium
def test_static_page_runs_without_a_kernel(tmp_path):
    """A file:// page in a real browser: one chain advances, one above its limit freezes and says so, one walks down."""
    twins = [
        Playground("25-gaussians", steps=500, particles=20).static_html(),
        Playground("gaussian", step=9.0, particles=20).static_html(),
        Playground(levels_spec(TIME_NETS["plain"], NOISING, 30, 60.0), particles=20).static_html(),
        Playground(TABLE, particles=20, data=torch.tensor([[0.5, 0.5]]), start="data", mala=True).static_html(),
    ]
    # Headless pages draw no frames in virtual time, so the chains are driven by their Step buttons.
    drive = """addEventListener("load", () => {
        for (let k = 0; k < 40; k++)
            for (const button of document.querySelectorAll("button")) if (button.textContent === "Step") button.click();
        const slider = [...document.querySelectorAll("label")].find((l) => l.textContent === "Level t").control;
        slider.value = 1;  // to the bottom level: the chain walks through three levels of 30 steps
        slider.dispatchEvent(new Event("input"));
    });"""
    (tmp_path / "static.js").write_text(static_script())
    page = tmp_path / "page.html"
    head = '<!doctype html><meta charset="utf-8"><script src="static.js"></script>'
    page.write_text(f"{head}{''.join(twins)}<script>{drive}</script>")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000"]
    dom = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=400).stdout
    status = re.findall(r'class="ebm-status"[^>]*>([^<]*)<', dom)
    assert len(status) == 4, dom[:2000]
    assert re.match(r"Step 4\d of 500. Mean energy \d", status[0])  # a stray frame may add a step
    assert re.match(r"Diverged at step \d+: step size a = 9.00 above the stability limit 2/L = 2.00", status[1])
    assert re.match(r"Step 9\d of 120. Level 0. Mean energy ", status[2])
    assert dom.count("<dt>Histogram distance</dt>") == 3  # the diverged one tells none
    assert re.search(r"<dt>Modes with a particle</dt><dd>\d+<span[^>]*>of 25</span>", dom)
    assert re.search(r"<dt>Accepted proposals</dt><dd>\d+ %</dd>", dom)
