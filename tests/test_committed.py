"""The committed rows of long runs hold what the book says of them, and belong to the files beside them."""

import hashlib
import math
from pathlib import Path

from ebmlib.page import results
from ebmlib.run import checkpoint

DATA = Path(__file__).resolve().parents[1] / "data"


def committed(notebook: str) -> tuple[list[results.Row], dict]:
    return results.load(DATA / "results" / f"{notebook}.json")


def test_the_bundled_image_net_has_at_most_a_third_of_the_untrained_fid():
    rows = {row.name: row for row in committed("drl_cifar")[0]}
    trained, untrained = (
        rows[f"FID (Fashion-CNN features, images resized to 28 x 28), {label}"] for label in ("trained", "untrained")
    )
    assert (trained.n, trained.seed, trained.dataset) == (2048, [1, 2, 3], "fashion_mnist")
    assert trained.value + trained.se <= untrained.value / 3, "and not by the luck of the sampling seeds"
    assert (untrained.n, untrained.dataset, untrained.protocol) == (trained.n, trained.dataset, trained.protocol)


def test_the_image_rows_are_of_the_bundled_checkpoint():
    rows, meta = committed("drl_cifar")
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
    kid = {
        row.protocol.partition("noise ")[2].partition(", ")[2]: row for row in rows if row.name.endswith(", trained")
    }
    assert len(kid) == 6
    apart = lambda first, second: (second.value - first.value) / math.hypot(first.se, second.se)
    one, thousand = kid.pop("T = 1, K = 180"), kid["T = 1000, K = 0"]
    assert min(apart(one, row) for row in kid.values()) > 3, "one level ends ahead of all"
    assert apart(kid["T = 1000, K = 0, DSM"], thousand) > 3, "score matching is ahead at a thousand levels"
    assert one.seconds > 3 * kid["T = 6, K = 10"].seconds
