"""The committed rows of long runs hold what the book says of them, and belong to the files beside them."""

import hashlib
import math
from pathlib import Path

import pytest
import torch

from ebmlib import data
from ebmlib.metrics import images as metrics
from ebmlib.page import results
from ebmlib.run import checkpoint

DATA = Path(__file__).resolve().parents[1] / "data"


def committed(notebook: str) -> tuple[list[results.Row], dict]:
    return results.load(DATA / "results" / f"{notebook}.json")


@pytest.mark.parametrize(("file", "dataset"), [("drl_cifar", "fashion_mnist"), ("drl_cifar10", "cifar10")])
def test_the_bundled_image_nets_are_closer_to_the_data_than_images_pooled_4_x_4(file, dataset):
    """By both distances, on the ladder of known images that the chapter draws, and not by the luck of the sampling."""
    means = results.summary(committed("reading_scores")[0])
    known = {row.name: row for row in means if row.dataset == dataset}
    for row in committed(file)[0]:
        score = row.name.partition(" ")[0]
        if score in ("FID", "KID"):
            assert (row.n, row.seed, row.dataset) == (2048, 0, dataset)
            judge = row.name.partition("(")[2].partition(" ")[0]
            pooled = known[f"{score} ({judge} features), pooled 4 x 4"]
            assert row.value + 3 * math.hypot(row.se, pooled.se) < pooled.value


def test_the_chain_gradients_of_the_image_rows_follow_from_their_settings():
    for name, kinds in (("drl_cifar", 1), ("drl_cifar10", 1), ("drl_cifar_ablations", 6)):
        rows, _ = committed(name)
        spent = {row.protocol: 1000 * row.value for row in rows if row.name == "chain gradients in training"}
        assert len(spent) == kinds
        for protocol, gradients in spent.items():
            T, K = (int(protocol.partition(f"{letter} = ")[2].partition(",")[0]) for letter in "TK")
            iterations = 20_000 if name != "drl_cifar_ablations" else 6_000 if T == 1000 else 1_000
            assert gradients == iterations * max(K, 1)
            assert f"{gradients:,.0f} chain gradients" in protocol
        assert {row.protocol for row in rows} == set(spent)


@pytest.mark.parametrize("name", ["drl_cifar", "drl_cifar10"])
def test_the_image_rows_are_of_the_bundled_checkpoint(name):
    rows, meta = committed(name)
    path = DATA / "checkpoints" / meta["checkpoint"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == meta["sha256"]
    saved = checkpoint.load(path)[1]
    key, told = saved["key"], meta["settings"]
    if isinstance(told, dict):  # as `make results` writes it: by run, and over the data set, too
        assert set(told.values()) == {checkpoint.key_hash({"settings": key["settings"], "dataset": key["dataset"]})}
    else:
        assert checkpoint.key_hash(key["settings"]) == told
    assert {(row.preset, row.device, row.seconds) for row in rows} == {
        (saved["preset"], saved["device"], saved["seconds"])
    }


def test_a_long_run_needs_more_bits_than_noise_by_a_bound_and_fewer_by_the_papers_estimate():
    rows, meta = committed("drl_long_run")
    for file, sha256 in meta["checkpoints"].items():
        assert hashlib.sha256((DATA / "checkpoints" / file).read_bytes()).hexdigest() == sha256
    of = lambda name: {row.seed: row.value for row in rows if row.name == name and isinstance(row.seed, int)}
    bound, estimate = of("bits per dimension, at least (AIS, 95 %)"), of("bits per dimension, the paper's estimate")
    assert sorted(bound) == sorted(estimate) == [0, 1]
    assert min(bound.values()) > 8 > max(estimate.values())


def test_recovery_likelihood_learns_the_checkerboard_as_a_density():
    kl = [row for row in committed("drl_toy")[0] if row.name == "KL to the truth, recovery likelihood"]
    seeds = {row.seed: row.value for row in kl if row.dataset == "checkerboard" and isinstance(row.seed, int)}
    assert sorted(seeds) == [0, 1, 2]
    assert max(seeds.values()) <= 0.10, seeds
    (mean,) = [row for row in kl if row.dataset == "checkerboard" and row.seed == [0, 1, 2]]
    assert abs(mean.value - sum(seeds.values()) / 3) < 1e-9


def test_recovery_likelihood_covers_all_modes():
    rows = [row for row in committed("drl_toy")[0] if row.dataset == "25-gaussians"]
    found = [row.value for row in rows if row.name.startswith("modes") and "recovery likelihood" in row.name]
    assert found == [25.0] * len(found)
    assert found


def test_the_image_chapter_tells_the_order_of_its_ablations():
    rows, _ = committed("drl_cifar_ablations")
    settings = lambda row: "T = " + row.protocol.partition("T = ")[2]
    kid = {settings(row): row for row in rows if row.name.endswith(", trained")}
    spent = {settings(row): row.value for row in rows if row.name.startswith("chain gradients")}
    assert len(kid) == len(spent) == 6
    apart = lambda first, second: (second.value - first.value) / math.hypot(first.se, second.se)
    one, thousand = kid.pop("T = 1, K = 180"), kid["T = 1000, K = 0"]
    assert min(apart(one, row) for row in kid.values()) > 3, "one level ends ahead of all at equal iterations"
    assert spent["T = 1, K = 180"] > 3 * max(spent[name] for name in kid), "with more than three times the gradients"
    assert apart(kid["T = 1000, K = 0, DSM"], thousand) > 3, "score matching is ahead at a thousand levels"
    train, test = (data.images("fashion_mnist", split, size=16)[0][:2048] for split in ("train", "test"))
    gaussian = metrics.ladder(train, torch.Generator().manual_seed(0))["one Gaussian"]
    limit, se = metrics.kid(test, gaussian, rng=torch.Generator().manual_seed(0))
    least = min(row.value for row in kid.values())
    assert one.value < limit < least - se, "draws of one Gaussian are closer to garments than the other five"


def test_growing_ends_with_the_worst_spectrum_and_a_better_energy_than_full_resolution():
    rows = {row.name: row for row in committed("coarse_to_fine_toy")[0] if isinstance(row.seed, list)}
    of = lambda what, kind: rows[f"{what}, {kind}"]
    apart = lambda first, second: (second.value - first.value) / math.hypot(first.se, second.se)
    kinds = ("growing", "full resolution", "frozen coarse nets")
    growing, full, frozen = (of("spectrum error", kind) for kind in kinds)
    assert min(apart(full, growing), apart(frozen, growing)) > 2.5
    assert abs(apart(full, frozen)) < 1
    growing, full, frozen = (of("score error", kind) for kind in kinds)
    assert apart(growing, full) > 3
    assert frozen.value < growing.value / 10
