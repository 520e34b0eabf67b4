"""The cells of self_adversarial_images in this process: its losses, a training that diverges, its weights."""

import json
import re
from functools import partial
from pathlib import Path

import cells
import export
import pytest
import torch

from ebmlib.page import results
from ebmlib.run import training

ROOT = Path(__file__).resolve().parents[1]


pytestmark = pytest.mark.usefixtures("in_process")
SMOKE = {"preset": "smoke", "device": "cpu", "dataset": "fashion_mnist"}
run_cells = partial(cells.run_cells, "self_adversarial_images", **SMOKE)


def test_the_three_losses_differ_by_the_noise_and_the_generator_term():
    space, _ = run_cells(".once(")
    torch.manual_seed(2)
    x = torch.randn(8, 1, 16, 16, dtype=torch.float64)
    net = space["ConvNet"](**space["shape"]).double()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3)  # a new net is so flat that its chain hardly moves
    space["latent"] = lambda n, rng: torch.randn(n, 1, 16, 16, generator=rng, dtype=torch.float64)

    def of(kind: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
        loss, _ = space["step_of"](net, space[kind], torch.Generator().manual_seed(4))(x, 0.0)
        return loss.detach(), torch.autograd.grad(loss, list(net.parameters()))

    # By hand: gradient descent from the same start, as a function of the weights.
    a, K = space["cfg"].step, space["cfg"].K
    start = space["latent"](8, torch.Generator().manual_seed(4))
    y = start.clone().requires_grad_(True)
    for _ in range(K):
        (slope,) = torch.autograd.grad(net(y).sum(), y, create_graph=True)
        y = y - a * slope
    critic = net(x).mean() - net(y.detach()).mean()
    frozen = [p.detach().clone() for p in net.parameters()]
    names = [name for name, _ in net.named_parameters()]
    generator = torch.func.functional_call(net, dict(zip(names, frozen)), (y,)).mean()

    free, free_grads = of("FREE")
    both, both_grads = of("GENERATOR")
    torch.testing.assert_close(free, critic.detach())
    torch.testing.assert_close(both - free, generator.detach())
    wanted = torch.autograd.grad(critic, list(net.parameters()), retain_graph=True)
    extra = torch.autograd.grad(generator, list(net.parameters()), allow_unused=True)
    assert max(float(g.abs().max()) for g in extra if g is not None) > 1e-6
    for name, own, total, want, more in zip(names, free_grads, both_grads, wanted, extra):
        torch.testing.assert_close(own, want, msg=name)
        torch.testing.assert_close(total, want if more is None else want + more, msg=name)
    noisy, _ = of("NOISY")
    assert abs(noisy - free) > 1e-6


@pytest.mark.parametrize(("factor", "cut"), [(1e-3, False), (1e3, True)])
def test_the_capped_gradient_of_the_second_loss_is_at_most_as_long_as_the_firsts(factor, cut):
    space, _ = run_cells(".once(")
    torch.manual_seed(2)
    net = space["ConvNet"](**space["shape"]).double()
    x, y = torch.randn(2, 8, 1, 16, 16, dtype=torch.float64)
    losses = lambda: (net(x).mean(), factor * net(y).square().mean())
    first, second = (torch.cat([g.flatten() for g in torch.autograd.grad(loss, net.parameters())]) for loss in losses())
    assert (second.norm() > first.norm()) == cut
    loss, ratio = space["capped"](net, *losses())
    found = torch.cat([g.flatten() for g in torch.autograd.grad(loss, net.parameters())])
    share = first.norm() / second.norm() if cut else 1.0
    torch.testing.assert_close(found, first + share * second)
    torch.testing.assert_close(loss.detach(), sum(losses()).detach())
    torch.testing.assert_close(ratio, second.norm() / first.norm())


def test_the_generator_loss_is_a_slope_penalty_to_first_order_in_the_step():
    """The notebook's own check asserts the identity at one small step; here the error falls with the step."""
    space, _ = run_cells("small = ConvNet(")
    net = space["ConvNet"](size=8, filters=4, multipliers=(1, 2)).double()
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(3)
    x = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def error(a: float) -> float:
        one, other = space["both_ways"](net, x, a)
        return float((one - other).norm() / other.norm())

    assert error(1e-2) < 0.05
    assert abs(error(1e-2) / error(1e-3) / 10 - 1) < 0.2


def test_all_start_from_the_same_weights_and_see_the_same_data(monkeypatch):
    fit, starts, seen = training.fit, [], []

    def watched(step, batches, *, net, **options):
        starts.append({name: value.clone() for name, value in net.state_dict().items()})
        return fit(lambda x, done: seen.append(x.clone()) or step(x, done), batches, net=net, **options)

    monkeypatch.setattr(training, "fit", watched)
    space, trainings = run_cells(".once(", iterations=1)
    exec(trainings, space)
    assert len(starts) == len(seen) == 4
    for other in (1, 2, 3):
        assert cells.same(starts[0], starts[other])
        assert torch.equal(seen[0], seen[other])


def test_a_training_that_diverges_is_judged_by_its_last_good_checkpoint():
    space, trainings = run_cells(".once(", iterations=60, lr=0.3)
    exec(trainings, space)
    found = space["finished"][space["FREE"]]
    assert re.match(r"training diverged at iteration \d+: ", found["seen"])
    assert 0 < found["iterations"] < 60
    kept = max(Path("runs", "self_adversarial_images").glob("*/noise-free/step-*"))
    assert int(kept.stem.rpartition("-")[2]) == found["iterations"]
    net = space["ConvNet"](**space["shape"])
    training.load_module(kept, net, ema=True)
    assert cells.same(dict(net.state_dict()), found["weights"])
    assert max(found["history"]["step"]) <= int(re.search(r"iteration (\d+)", found["seen"])[1])


def test_a_training_that_diverges_before_any_checkpoint_says_so():
    with pytest.raises(training.Diverged, match="there is no checkpoint yet"):
        run_cells(None, iterations=400, lr=1e6)


def test_its_file_is_judged_again_to_the_same_numbers(monkeypatch, tmp_path):
    first = cells.all_rows(monkeypatch, "self_adversarial_images", **SMOKE)
    (place,) = Path("runs", "self_adversarial_images").iterdir()
    (kept,) = place.glob("step-*")
    assert json.loads((place / "run.json").read_text())["finished"]
    again = cells.all_rows(
        monkeypatch, "self_adversarial_images", **SMOKE, checkpoint=str(kept), run_dir=str(tmp_path / "other")
    )
    assert not (tmp_path / "other").exists()
    assert again == first
    assert len(first) == 4 * 3 + 1 + 2 * 2


def test_the_bundled_file_of_a_run_is_judged_by_its_rounded_weights(tmp_path, monkeypatch):
    """As `make gpu` bundles it: four nets in bfloat16, small, with all that the page shows of a training."""
    monkeypatch.setattr(export, "SMALL", 0)
    space, _ = run_cells("nets = {")
    space["job"].run.close()
    path, key = export.bundle(space["job"].run.folder, "three", tmp_path, preset="smoke")
    objects, meta = training.load(path)
    assert path.stat().st_size < export.LIMIT
    assert (meta["preset"], meta["key"]) == ("smoke", key)
    assert meta["seconds"] == sum(it["seconds"] for it in space["finished"].values())
    again, _ = run_cells("def generate(", checkpoint=str(path))
    for kind, it in space["finished"].items():
        rounded = {name: value.bfloat16() for name, value in it["weights"].items()}
        assert cells.same(objects[kind]["weights"], rounded)
        assert cells.same(
            dict(again["nets"][kind].state_dict()), {name: value.float() for name, value in rounded.items()}
        )
    monkeypatch.setattr(export, "LIMIT", 1000)
    with pytest.raises(SystemExit, match="at most 0 MB are bundled"):
        export.bundle(space["job"].run.folder, "more", tmp_path)
    assert not (tmp_path / "more.safetensors").exists()


def test_a_foreign_checkpoint_is_refused_before_anything_is_trained():
    other = ROOT / "data" / "checkpoints" / "drl_fashion_mnist.safetensors"
    with pytest.raises(ValueError, match="is of drl_cifar: self_adversarial_images takes "):
        run_cells(None, checkpoint=str(other))
    assert not Path("runs").exists()


def test_the_committed_rows_hold_three_seeds_of_each_training():
    path = ROOT / "data" / "results" / "self_adversarial_images.json"
    if not path.exists():
        pytest.skip("no long rows are committed")
    rows, _ = results.load(path)
    for kind in ("noisy", "noise-free", "noise-free + generator loss"):
        mine = [row for row in rows if row.name.startswith("FID") and row.name.endswith(f", {kind}")]
        assert sorted(row.seed for row in mine if isinstance(row.seed, int)) == [0, 1, 2]
        (mean,) = [row for row in mine if isinstance(row.seed, list)]
        assert mean.se > 0
        assert {row.preset for row in mine} == {"cpu"}
    assert {row.n for row in rows if row.name.startswith("iterations until")} == {None}, "samples are not iterations"


def test_rows_of_one_seed_are_compared_in_pairs():
    """Seeds differ by far more than trainings: a mean over them would hide the order."""
    parts = ("noisy", "noise-free", "noise-free + generator loss")
    values = {0: (10.0, 9.0, 9.5), 1: (20.0, 18.0, 19.5), 2: (30.0, 27.0, 29.5)}
    rows = [
        results.Row(f"{metric} (of some, features), {kind}", value, seed=seed)
        for metric in ("FID", "KID")
        for seed, found in values.items()
        for kind, value in zip(parts, found)
    ]
    (source,) = [cell for cell in cells.code_cells("self_adversarial_images") if "def compare(" in cell]
    space: dict = {}
    exec(source, space)
    found = space["by_seed"](results.with_means(rows), "FID")
    assert found == {kind: {seed: values[seed][k] for seed in values} for k, kind in enumerate(parts)}
    assert space["compare"](found, *parts[:2]) == "noisy minus noise-free: +1.00, +2.00, +3.00; above 0 in 3 of 3 seeds"
    assert space["compare"](found, *parts[1:]).endswith(": -0.50, -1.50, -2.50; above 0 in 0 of 3 seeds")
