"""Sample quality: against scipy, scikit-learn, Pillow, closed forms, and many repetitions for the standard errors."""

import itertools
import json
import math
import pickle
import re
import shutil
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import eigh, sqrtm
from sklearn.metrics import roc_auc_score
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors
from torch import nn

from ebmlib import data
from ebmlib.data import to_bytes
from ebmlib.metrics import features as net_features
from ebmlib.metrics import images as metrics
from ebmlib.metrics.features import BODIES, TRAINED_ON, Judge, judge_of, prepared, trained, untrained, weights_of


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def gray28(x: torch.Tensor) -> torch.Tensor:
    return prepared(x, 1, 28)


def noise_images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=generator(seed), dtype=torch.uint8)


@pytest.fixture(autouse=True)
def statistics(tmp_path, monkeypatch):
    """The folder of kept features, in a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ebmlib" / "statistics"


@pytest.fixture(scope="module")
def garments() -> torch.Tensor:
    return data.images("fashion_mnist", "test")[0]


def test_bytes_are_clamped_and_rounded():
    x = torch.tensor([-3.0, -1.0, -0.999, 0.0, 0.5, 1.0, 7.0]).reshape(1, 1, 1, 7)
    assert to_bytes(x).flatten().tolist() == [0, 0, 0, 128, 191, 255, 255]  # -.999 is .1275 of 255; 127.5 goes to even
    every = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert to_bytes(every / 127.5 - 1).equal(every)


A, B, ONE = normal(70, 4), normal(64, 4), torch.ones(1)
REFUSED = [
    (gray28, (torch.zeros(3, 28, 28),), "(3, 28, 28)"),
    (gray28, (torch.zeros(1, 2, 28, 28),), "(1, 2, 28, 28)"),
    (gray28, (torch.zeros(1, 1, 28, 28, dtype=torch.int64),), "torch.int64"),
    (gray28, (torch.full((2, 1, 28, 28), math.nan),), "2 of 2 images are not finite"),
    (gray28, (torch.full((2, 1, 28, 28), -math.inf),), "2 of 2 images are not finite"),
    (metrics.extract, (nn.Flatten(), torch.zeros(5, 2).index_fill(0, torch.tensor(2), math.inf)), "features of 1 of 5"),
    (metrics.fid, (A, normal(70, 5)), "as many features, got 4 and 5"),
    (metrics.kid, (A, normal(70, 5)), "as many features, got 4 and 5"),
    (metrics.fid, (A, normal(1, 4)), "at least 2 real and 2 fake samples are needed, got 70 and 1"),
    (metrics.kid, (A, normal(1, 4)), "at least 2 real and 2 fake samples are needed, got 70 and 1"),
    (partial(metrics.kid, subsets=1), (A, B), "70 real and 64 fake"),
    (partial(metrics.kid, subsets=4, subset_size=20), (A, B), "70 real and 64 fake"),
    (partial(metrics.kid, subset_size=1), (A, B), "70 real and 64 fake"),
    (partial(metrics.inception_score, splits=1), (A, nn.Flatten()), "2 or more splits of 2 or more"),
    (partial(metrics.inception_score, splits=36), (A, nn.Flatten()), "2 or more images, got 36 of 70"),
    (metrics.inception_score, (normal(40, 10),), "Fashion-CNN has 64 features, got 10"),
    (metrics.inception_score, (A.where(A < 2, math.nan), nn.Flatten()), "of 70 images are no numbers"),
    (metrics.nearest_neighbors, (torch.zeros(2, 1, 28, 28), torch.zeros(2, 1, 32, 32)), "agree in shape"),
    (metrics.nearest_neighbors, (A, B[:3], 0), "k must be from 1 to the 3 others"),
    (metrics.nearest_neighbors, (A, B[:3], 4), "k must be from 1 to the 3 others"),
    (metrics.auroc, (ONE, torch.ones(5)), "auroc needs 2 or more scores on each side, no NaN; got"),
    (metrics.auroc, (torch.ones(5), ONE), "auroc needs 2 or more scores on each side, no NaN; got"),
    (metrics.auroc, (torch.tensor([1.0, math.nan]), torch.ones(5)), "auroc needs 2 or more scores"),
    (metrics.auroc, (torch.ones(5), torch.tensor([1.0, math.nan])), "auroc needs 2 or more scores"),
]


@pytest.mark.parametrize(("judge", "given", "named"), REFUSED)
def test_what_cannot_be_judged_is_refused(judge, given, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        judge(*given)


def test_gray_is_the_luma_of_rec_601():
    rgb = noise_images(1, 3, 28, 28)
    pillow = np.asarray(Image.fromarray(rgb[0].permute(1, 2, 0).numpy()).convert("L"), dtype=np.float64)
    ours = (gray28(rgb)[0, 0].double() + 1).numpy() * 127.5
    assert np.abs(ours - pillow).max() <= 0.5 + 1e-3  # Pillow rounds
    gray = noise_images(2, 1, 28, 28)
    torch.testing.assert_close(gray28(gray.expand(-1, 3, -1, -1)), gray28(gray), atol=1e-6, rtol=0)


@pytest.mark.parametrize("side", [(64, 64), (32, 48), (20, 20)])
def test_resizing_is_antialiased_as_pillow_does_it(side):
    gray = noise_images(1, 1, *side)
    pillow = Image.fromarray(gray[0, 0].numpy().astype(np.float32)).resize((28, 28), Image.Resampling.BILINEAR)
    ours = (gray28(gray)[0, 0] + 1) * 127.5
    np.testing.assert_allclose(ours.numpy(), np.asarray(pillow), atol=0.01)


def test_a_padded_set_is_cropped_back():
    gray = noise_images(3, 1, 28, 28)
    padded = nn.functional.pad(gray, (2, 2, 2, 2))
    assert gray28(padded).equal(gray28(gray))
    color = padded.expand(-1, 3, -1, -1)  # CIFAR-10 has this shape: resized, not cropped
    assert not torch.allclose(gray28(color), gray28(gray), atol=0.1)


def test_color_is_resized_and_gray_repeated_for_the_color_judge():
    color, gray = noise_images(2, 3, 32, 32), noise_images(2, 1, 32, 32)
    assert prepared(color, 3, 32).equal(data.to_float(color))
    assert prepared(gray, 3, 32).equal(data.to_float(gray.expand(-1, 3, -1, -1)))
    pillow = Image.fromarray(color[0].permute(1, 2, 0).numpy()).resize((16, 16), Image.Resampling.BILINEAR)
    ours = (prepared(color, 3, 16)[0] + 1) * 127.5
    assert np.abs(ours.permute(1, 2, 0).numpy() - np.asarray(pillow)).max() <= 1  # Pillow rounds twice


@pytest.mark.parametrize("name", BODIES)
def test_every_judge_is_small_and_accurate_by_its_record(name):
    path = weights_of(name)
    note = json.loads(path.with_suffix(".json").read_text())
    assert path.stat().st_size == note["bytes"] < 1_000_000
    assert note["test_accuracy"] >= {"Fashion-CNN": 0.90, "MNIST-CNN": 0.985, "CIFAR-CNN": 0.88}[name]
    assert note["dataset"] == TRAINED_ON[name]


def test_the_judge_fits_the_images():
    assert judge_of("mnist", 1) == "MNIST-CNN"
    assert judge_of("fashion_mnist", 1) == judge_of("omniglot", 1) == "Fashion-CNN"
    assert judge_of("cifar10", 3) == judge_of("folder:faces", 3) == "CIFAR-CNN"
    net, why = metrics.judge("mnist", 1)
    assert net.name == "MNIST-CNN"
    assert "MNIST-CNN" in why


def test_the_bundled_net_is_accurate(garments):
    note = json.loads(weights_of("Fashion-CNN").with_suffix(".json").read_text())
    with torch.no_grad():
        net = trained()
        guess = torch.cat([net.logits(part).argmax(1) for part in garments.split(500)])
    accuracy = guess.eq(data.labels("fashion_mnist", "test")).double().mean().item()
    assert accuracy == pytest.approx(note["test_accuracy"], abs=5e-4)  # another processor may turn a tie
    assert accuracy >= 0.90


def test_features_have_unit_mean_square_on_garments(garments):
    square = metrics.extract(None, garments).double().square().mean(1)
    se = square.std().item() / math.sqrt(len(square))
    assert se < 0.01
    assert abs(square.mean().item() - 1) < 5 * se  # one over the training images; the test images have the same law


def test_a_damaged_or_missing_weight_file_is_named(tmp_path, monkeypatch):
    path = tmp_path / "checkpoints" / "fashion_cnn.safetensors"
    path.parent.mkdir()
    bundled = weights_of("Fashion-CNN")
    shutil.copy(bundled, path)
    shutil.copy(bundled.with_suffix(".json"), path.with_suffix(".json"))
    monkeypatch.setenv("EBM_DATA", str(tmp_path))
    assert weights_of("Fashion-CNN") == path
    trained()
    blob = bytearray(path.read_bytes())
    blob[-5] ^= 1
    path.write_bytes(blob)
    with pytest.raises(ValueError, match=re.escape(f"{path} is damaged")):
        trained()
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        trained(path=tmp_path / "none.safetensors")
    monkeypatch.setattr(net_features, "file_of", lambda name: path.with_name("other.safetensors"))
    with pytest.raises(FileNotFoundError, match=r"in none of .*other\.safetensors; .*make_judges\.py makes them"):
        weights_of("Fashion-CNN")
    with pytest.raises(ValueError, match="judge 'Inception' is unknown"):
        trained("Inception")


def test_features_do_not_depend_on_batch_type_or_mode(garments):
    x = garments[:50]
    expected = metrics.extract(None, x)
    assert expected.shape == (50, Judge.num_features)
    net = trained().train()  # BatchNorm in train mode would couple the batch
    for other in (metrics.extract(net, x, batch=7), metrics.extract(None, data.to_float(x), batch=1)):
        torch.testing.assert_close(other, expected, atol=1e-4, rtol=1e-4)
    assert net.training
    assert not expected.requires_grad


def test_a_net_of_ones_own_gets_the_images_as_they_are():
    x = normal(5, 3, 4, 4).float()
    assert metrics.extract(nn.Flatten(), x, batch=2).equal(x.flatten(1))


@pytest.mark.parametrize(
    ("repair", "named"),
    [
        (lambda x: x * math.inf, "not finite"),
        (lambda x: x.where(x < 0.9, math.nan), "not finite"),
        (lambda x: x * 1e20, "floats are expected in [-1, 1]"),
        (lambda x: (x + 1) * 127.5, "from 0 to 255, and floats are expected in [-1, 1]; pixels in [0, 255]"),
    ],
)
def test_samples_that_are_no_images_are_not_judged(garments, repair, named):
    real, fake = garments[:40], repair(data.to_float(garments[40:80]))
    for score in (metrics.fid, metrics.kid):
        with pytest.raises(ValueError, match=re.escape(named)):
            score(real, fake)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: (x + 1) / 2, "from 0 to 1, and floats are expected in [-1, 1]: pixels in [0, 1]"),
        (lambda x: x * 1.5, "50.0% are clamped"),
    ],
)
def test_another_range_is_a_warning(change, said):
    x = torch.linspace(-1, 1, 4 * 784).reshape(4, 1, 28, 28)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics.extract(None, x * 1.005)  # within a gray level
        metrics.extract(None, -x.abs().clamp(min=0.5))  # dark images
    said = said.replace("50.0", f"{100 * float((change(x).abs() > 1 + 2 / 255).double().mean()):.1f}")
    with pytest.warns(UserWarning, match=re.escape(said)):
        metrics.extract(None, change(x))


def test_the_share_that_left_the_range_is_counted():
    x = torch.tensor([[-3.0, -1.005, 0.5], [1.0, 1.1, 2.0]])
    kept, outside = metrics.in_range(x)
    assert kept.tolist() == [[-1, -1, 0.5], [1, 1, 1]]
    assert outside == 0.5
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="1 of the 6 values of the samples are not finite"):
            metrics.in_range(x.where(x != 2, bad))


def test_scores_do_not_depend_on_torchs_default_type(garments):
    expected = metrics.fid(garments[:40], garments[40:80])
    torch.set_default_dtype(torch.float64)
    try:
        found = metrics.fid(garments[:40], data.to_float(garments[40:80]))
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == pytest.approx(expected, rel=1e-5)


def test_names_say_which_features_they_are():
    own, name = nn.Flatten(), metrics.score_name
    assert name("FID") == name("FID", untrained("Fashion-CNN")) == "FID (Fashion-CNN features)"
    assert name("FID", "inception") == "FID"
    assert name("KID", own, (3, 32, 32)) == "KID (Flatten features)"
    assert name("IS", None, (1, 28, 28)) == "IS (Fashion-CNN classes)"
    assert name("FID", None, (1, 32, 32)) == "FID (Fashion-CNN features, images cropped to 28 x 28)"
    assert name("FID", None, (3, 32, 32)) == "FID (CIFAR-CNN features)"
    assert name("FID", "CIFAR-CNN", (1, 28, 28)) == "FID (CIFAR-CNN features, images gray repeated, resized to 32 x 32)"
    found = [untrained("Fashion-CNN").conversion(s) for s in ((1, 28, 28), (8, 3, 28, 28), (1, 64, 64))]
    assert found == ["", "gray", "resized to 28 x 28"]
    for use in (lambda net: name("FID", net), lambda net: metrics.extract(net, torch.zeros(2, 1, 28, 28))):
        with pytest.raises(ValueError, match="\"inception\", None or a module, got 'vgg'"):
            use("vgg")


def test_a_reference_is_the_features_bit_for_bit(garments, statistics):
    x = garments[:300]
    expected, net, seen = metrics.extract(None, x), trained(), []
    net.register_forward_pre_hook(lambda *_: seen.append(1))
    assert metrics.reference(x, net).equal(expected)
    assert len(seen) == 2, "two batches were computed"
    (file,) = statistics.iterdir()
    assert metrics.reference(x, net).equal(expected)
    assert metrics.reference(x).equal(expected)  # None is the same net
    assert len(seen) == 2, "and nothing since"
    assert list(statistics.iterdir()) == [file]


def changed_weight() -> Judge:
    net = trained()
    net.classes.bias[0] = torch.nextafter(net.classes.bias[0], torch.tensor(math.inf))
    return net


def one_bit(x: torch.Tensor) -> torch.Tensor:
    """The images with the lowest bit of one pixel turned."""
    x = x.clone()
    x[7, 0, 9, 9] ^= 1
    return x


CHANGED = {
    "one pixel": lambda x: {"images": one_bit(x)},
    "one image less": lambda x: {"images": x[:-1]},
    "other images": lambda x: {"images": x.flip(0)},
    "another size": lambda x: {"images": nn.functional.pad(x, (2, 2, 2, 2))},
    "another shape, the same bytes": lambda x: {"images": x.reshape(-1, 1, 14, 56)},
    "another type": lambda x: {"images": data.to_float(x)},
    "one weight": lambda x: {"images": x, "extractor": changed_weight()},
    "another batch": lambda x: {"images": x, "batch": 16},
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGED)
def test_a_reference_to_anything_else_never_hits(garments, statistics, change):
    x = garments[:40]
    metrics.reference(x)
    other = CHANGED[change](x)
    found = metrics.reference(**other)
    assert len(list(statistics.iterdir())) == 2
    assert found.equal(metrics.extract(other.get("extractor"), other["images"], other.get("batch", 256)))


def test_other_code_never_hits(garments, statistics, monkeypatch):
    metrics.reference(garments[:40])
    monkeypatch.setattr(metrics, "extract", lambda net, x, batch: net(x) + 1)
    expected = trained()(garments[:40]) + 1
    assert metrics.reference(garments[:40]).equal(expected)
    assert len(list(statistics.iterdir())) == 2


@pytest.mark.parametrize("how", ["one bit", "short", "pickle"])
def test_a_damaged_reference_is_computed_anew(garments, statistics, how):
    x = garments[:40]
    expected = metrics.reference(x)
    (file,) = statistics.iterdir()
    blob = bytearray(file.read_bytes())
    blob[-2] ^= 4
    file.write_bytes({"one bit": blob, "short": blob[:-3], "pickle": pickle.dumps([1.0])}[how])
    with pytest.warns(UserWarning, match="computed anew: ") as said:
        assert metrics.reference(x).equal(expected)
    assert len(said) == 1
    assert str(file) in str(said[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metrics.reference(x).equal(expected)


def test_a_reference_that_cannot_be_kept_costs_a_warning_only(garments, statistics):
    statistics.parent.mkdir(parents=True)
    statistics.write_text("not a folder")
    with pytest.warns(UserWarning, match="computed, but not kept for the next time: "):
        assert metrics.reference(garments[:4]).equal(metrics.extract(None, garments[:4]))
    assert statistics.read_text() == "not a folder"


def test_a_net_of_ones_own_is_not_kept(statistics):
    class Louder(Judge):  # the weights do not tell what its code does
        def forward(self, x):
            return 2 * super().forward(x)

    x = noise_images(4, 1, 28, 28)
    for net in (nn.Flatten(), Louder("Louder", *BODIES["Fashion-CNN"]())):
        assert metrics.reference(x, net).equal(metrics.extract(net, x))
    assert not statistics.exists()


def scipy_fid(real: np.ndarray, fake: np.ndarray) -> float:
    """With tr (C D)^(1/2) = tr (A D A)^(1/2), A the square root of C: symmetric, so dead features do no harm."""
    c, d = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
    shift, root = real.mean(0) - fake.mean(0), square_root(c)
    return float(shift @ shift + np.trace(c + d - 2 * square_root(root @ d @ root)))


def square_root(c: np.ndarray) -> np.ndarray:
    value, vector = eigh(c)
    return (vector * np.sqrt(value.clip(0))) @ vector.T


def test_fid_is_the_matrix_square_root_formula():
    mix = normal(12, 12, seed=1)
    real, fake = normal(500, 12, seed=2) @ mix + 30, normal(400, 12, seed=3) @ mix.T + 29  # far means cost digits
    c, d = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
    shift = (real.mean(0) - fake.mean(0)).numpy()
    expected = shift @ shift + np.trace(c + d - 2 * np.real(sqrtm(c @ d)))
    assert metrics.fid(real, fake) == pytest.approx(expected, rel=1e-8)
    assert scipy_fid(real.numpy(), fake.numpy()) == pytest.approx(expected, rel=1e-8)


def test_fid_of_shifted_and_scaled_features_is_exact():
    x = normal(300, 8, seed=4)
    shift = torch.arange(8.0, dtype=torch.float64)
    assert metrics.fid(x, x) == pytest.approx(0, abs=1e-9)
    assert metrics.fid(x, x + shift) == pytest.approx(float(shift @ shift), rel=1e-9)
    assert metrics.fid(x, 3 * x - 2 * x.mean(0)) == pytest.approx(4 * x.var(0).sum().item(), rel=1e-9)


def test_fid_of_images_is_that_of_their_features(garments):
    real, fake = garments[:600], garments[600:1200]
    first, second = (metrics.extract(None, x) for x in (real, fake))
    expected = scipy_fid(first.double().numpy(), second.double().numpy())
    assert metrics.fid(real, fake) == pytest.approx(expected, rel=1e-5)  # dead features: singular covariances
    assert metrics.fid(first, fake) == pytest.approx(metrics.fid(real, second), rel=1e-9)


def test_fid_and_kid_grow_with_the_noise_on_garments(garments):
    x, other = data.to_float(garments[:1000]), garments[1000:2000]
    noise = torch.randn(x.shape, generator=generator(5))
    fids, kids = [], []
    for scale in (0.0, 0.1, 0.3, 1.0):
        fake = metrics.extract(None, metrics.in_range(x + scale * noise)[0])
        fids.append(metrics.fid(other, fake))
        kids.append(metrics.kid(other, fake, rng=generator(6)))
    assert fids == sorted(fids)
    assert fids[-1] > 20 * fids[0]
    value, se = kids[0]
    assert abs(value) < 4 * se  # two halves of the test set have one law
    for (low, low_se), (high, high_se) in itertools.pairwise(kids):
        assert high - low > 3 * math.hypot(low_se, high_se)


def sklearn_kid(real: np.ndarray, fake: np.ndarray) -> float:
    n = len(real)
    xx, yy, xy = (polynomial_kernel(*p, degree=3, coef0=1) for p in ((real, real), (fake, fake), (real, fake)))
    off = (xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)) / (n * (n - 1))
    return float(off - 2 * xy.mean())


def test_kid_is_the_mean_over_disjoint_subsets():
    real, fake = normal(95, 10, seed=7), normal(64, 10, seed=8) * 1.3 + 0.2
    value, se = metrics.kid(real, fake, subsets=3, subset_size=20, rng=generator(9))
    rng = generator(9)  # the same shuffles
    first, second = (x[torch.randperm(len(x), generator=rng)[:60]].numpy().reshape(3, 20, 10) for x in (real, fake))
    blocks = [sklearn_kid(a, b) for a, b in zip(first, second)]
    assert value == pytest.approx(np.mean(blocks), rel=1e-10)
    assert se == pytest.approx(np.std(blocks, ddof=1) / math.sqrt(3), rel=1e-10)


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_kid_is_unbiased_and_its_error_honest(shift):
    # d = 1: k = (xy + 1)^3; with moments m1, m2, m3 the MMD^2 is sum_i C(3, i) (difference of i-th moments)^2.
    moments = np.array([shift, 1 + shift**2, shift**3 + 3 * shift]) - [0, 1, 0]
    exact = float(np.array([3, 3, 1]) @ moments**2)
    runs = 200
    pairs = [(normal(160, 1, seed=2 * s), normal(160, 1, seed=2 * s + 1) + shift) for s in range(runs)]
    found = np.array([metrics.kid(x, y, subsets=8, rng=generator(s)) for s, (x, y) in enumerate(pairs)])
    spread = found[:, 0].std(ddof=1)
    assert abs(found[:, 0].mean() - exact) < 4 * spread / math.sqrt(runs)
    ratio = np.sqrt((found[:, 1] ** 2).mean()) / spread  # variances are unbiased, each known to about 10 to 20 %
    assert 0.7 < ratio < 1.4


def certain(y: torch.Tensor, classes: int) -> torch.Tensor:
    """Logits of a predictor that gives class y all of the probability."""
    return torch.log(nn.functional.one_hot(y, classes).double())


def unshuffled(x: torch.Tensor, seed: int) -> torch.Tensor:
    """Rows in the order that the shuffle of a generator of this seed turns into x."""
    return x[torch.randperm(len(x), generator=generator(seed)).argsort()]


@pytest.mark.parametrize("classes", [2, 7, 1008])
def test_a_certain_predictor_of_every_class_scores_their_number(classes):
    logits = unshuffled(certain(torch.arange(2 * classes) % classes, classes), seed=3)  # each split has every class
    assert metrics.inception_score(logits, nn.Flatten(), splits=2, rng=generator(3)) == pytest.approx((classes, 0))
    # As images, in the float32 that `features` returns, and with finite logits
    sure = logits.clamp(min=-1e4)[:, :, None, None]
    assert metrics.inception_score(sure, nn.Flatten(), splits=2, rng=generator(3)) == pytest.approx((classes, 0))


def test_classes_that_never_come_do_not_count():
    logits = unshuffled(certain(torch.arange(30) % 3, 5), seed=1)
    assert metrics.inception_score(logits, nn.Flatten(), splits=5, rng=generator(1)) == pytest.approx((3, 0))


def test_the_score_of_given_probabilities_by_hand():
    for row in (normal(6), certain(torch.tensor(2), 6)):  # always the same: one class
        score = metrics.inception_score(row.expand(40, 6), nn.Flatten(), splits=4)
        assert score == pytest.approx((1, 0), abs=1e-12)
    # Half say (p, 1 - p), half (1 - p, p): p(y) is uniform, and IS = 2 p^p (1 - p)^(1 - p).
    p = 0.8
    rows = torch.tensor([[p, 1 - p], [1 - p, p]], dtype=torch.float64).log().repeat(10, 1)
    found = metrics.inception_score(unshuffled(rows, seed=5), nn.Flatten(), splits=2, rng=generator(5))
    assert found == pytest.approx((2 * p**p * (1 - p) ** (1 - p), 0), abs=1e-12)


def test_the_score_is_the_mean_over_equal_splits():
    logits = 3 * normal(47, 6, seed=2)  # two of them are left out
    p = logits[torch.randperm(47, generator=generator(4))[:45]].softmax(1).numpy().reshape(3, 15, 6)
    marginal = p.mean(1, keepdims=True)
    parts = np.exp((p * np.log(p / marginal)).sum(2).mean(1))
    found = metrics.inception_score(logits, nn.Flatten(), splits=3, rng=generator(4))
    assert found == pytest.approx((parts.mean(), parts.std(ddof=1) / math.sqrt(3)), rel=1e-10)


def test_the_scores_error_is_honest():
    runs = 200
    score = lambda s: metrics.inception_score(2 * normal(200, 5, seed=s), nn.Flatten(), splits=8, rng=generator(s))
    found = np.array([score(s) for s in range(runs)])
    ratio = np.sqrt((found[:, 1] ** 2).mean()) / found[:, 0].std(ddof=1)
    assert 0.85 < ratio < 1.18  # 200 runs know the spread to 5 %


def test_the_score_of_garments_is_that_of_fashion_cnns_classes(garments):
    x, net = garments[:1000], trained()
    score, se = metrics.inception_score(x, rng=generator(1))
    with torch.no_grad():
        logits = net.logits(x)
    given = (score, se)
    assert metrics.inception_score(logits, nn.Flatten(), rng=generator(1)) == pytest.approx(given, rel=1e-5)
    for other in (metrics.extract(None, x), metrics.reference(x), data.to_float(x)):
        assert metrics.inception_score(other, rng=generator(1)) == pytest.approx(given, rel=1e-5)
    assert 1 < score < 10  # ten classes, most of them told apart
    shoes = x[data.labels("fashion_mnist", "test")[:1000] == 9]
    assert metrics.inception_score(shoes, splits=4, rng=generator(1))[0] < score / 3  # one class alone


def test_scores_leave_the_global_generator_alone():
    logits = normal(64, 4, seed=1)
    score = lambda: metrics.inception_score(logits, nn.Flatten(), rng=generator(3), splits=4)
    state, first = torch.get_rng_state(), score()
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(99)
    assert score() == first


def test_the_ladder_is_what_its_names_say():
    """On images of three values and two blocks, which are far from Gaussian."""
    n, rng = 4000, generator(3)
    values = (torch.randint(-1, 2, (n, 1, 4, 4), generator=rng) * 0.2).cumsum(2) / 4 + 0.1
    rungs = metrics.ladder(values, generator(4))
    assert list(rungs) == [
        "real", "noise 0.1", "noise 0.2", "noise 0.3", "pooled 2 x 2", "pooled 4 x 4",
        "one Gaussian", "uniform noise", "mean image",
    ]  # fmt: skip
    assert torch.equal(rungs["real"], values)
    for std in (0.1, 0.2, 0.3):
        noise = rungs[f"noise {std:g}"] - values
        assert abs(noise.var() / std**2 - 1) < 5 * (2 / noise.numel()) ** 0.5
    block = rungs["pooled 2 x 2"][:, 0, 2:, :2]
    torch.testing.assert_close(block, values[:, 0, 2:, :2].mean((1, 2), keepdim=True).expand(n, 2, 2))
    torch.testing.assert_close(rungs["pooled 4 x 4"], values.mean((2, 3), keepdim=True).expand(n, 1, 4, 4))
    torch.testing.assert_close(rungs["mean image"], values.mean(0, keepdim=True).expand(n, 1, 4, 4))
    uniform = rungs["uniform noise"]
    assert uniform.abs().max() <= 1
    assert abs(uniform.var() - 1 / 3) < 5 * (4 / 45 / uniform.numel()) ** 0.5


def test_the_ladders_gaussian_has_the_images_mean_and_covariance_and_is_one():
    n = 4000
    first = torch.randint(0, 2, (n, 1, 4, 2), generator=generator(3)) - 0.3
    x = 0.2 * torch.cat([first, -0.5 * first], 3)  # singular: half of the pixels follow from the others
    drawn = metrics.ladder(x, generator(4))["one Gaussian"].flatten(1).double()
    mean, covariance = x.flatten(1).double().mean(0), x.flatten(1).double().T.cov()
    variance = covariance.diagonal()
    assert ((drawn.mean(0) - mean) / (variance / n).sqrt()).abs().max() < 5
    error = ((variance[:, None] * variance + covariance**2) / n).sqrt()  # of a Gaussian's covariance
    assert ((drawn.T.cov() - covariance) / error).abs().max() < 5
    standard = (drawn - mean) / variance.sqrt()
    kurtosis = standard.pow(4).mean(0)  # of the images themselves: 1
    assert ((kurtosis - 3) / (96 / n) ** 0.5).abs().max() < 5


def test_the_ladder_leads_down_from_real_garments(garments):
    train = data.images("fashion_mnist", size=16)[0][:2048]
    test = metrics.extract(None, data.images("fashion_mnist", "test", size=16)[0][:2048])
    fid = {name: metrics.fid(test, metrics.extract(None, x)) for name, x in metrics.ladder(train, generator(0)).items()}
    measured = {"real": 0.14, "noise 0.1": 1.3, "noise 0.2": 5.1, "noise 0.3": 10, "mean image": 52}
    assert {name: fid[name] for name in measured} == pytest.approx(measured, rel=0.06)
    assert fid["noise 0.1"] < fid["pooled 2 x 2"] < fid["one Gaussian"] < fid["pooled 4 x 4"] < fid["uniform noise"]


@pytest.mark.parametrize("k", [1, 5])
def test_neighbors_are_those_of_scikit_learn(garments, k):
    x, train = data.to_float(garments[:30]), garments[30:3030]
    referee = NearestNeighbors(algorithm="brute").fit(data.to_float(train).flatten(1).double().numpy())
    distance, index = referee.kneighbors(x.flatten(1).double().numpy(), k)
    for chunk in (8192, 999, 3):
        ours, found = metrics.nearest_neighbors(x, train, k, chunk=chunk)
        assert found.numpy().tolist() == index.tolist()
        np.testing.assert_allclose(ours.numpy(), distance, rtol=1e-5)


def test_a_copy_is_at_distance_zero_and_a_near_copy_is_exact(garments):
    train = data.to_float(garments[:500])
    near = train[[17, 400]].clone()
    near[1, 0, 14, 14] += 1e-3  # matrix products in float32 would miss this by an order of magnitude
    distance, index = metrics.nearest_neighbors(near, train)
    assert index.flatten().tolist() == [17, 400]
    assert distance.flatten().tolist() == pytest.approx([0.0, 1e-3], rel=1e-3)


def test_near_copies_come_in_their_exact_order(garments):
    steps = torch.randperm(12, generator=generator(1)) + 1
    copies = data.to_float(garments[:1]).expand(12, -1, -1, -1).clone()
    copies[:, 0, 14, 14] += 1e-3 * steps  # squared distances 1e-6 apart, matrix products in float32 round to 1e-5
    distance, index = metrics.nearest_neighbors(garments[:1], torch.cat([data.to_float(garments[1:300]), copies]), k=12)
    assert (index[0] - 299).tolist() == steps.argsort().tolist()
    np.testing.assert_allclose(distance[0].numpy(), 1e-3 * np.arange(1, 13), rtol=1e-3)


def test_precision_and_recall_are_those_of_the_balls_to_the_third_neighbor():
    real, fake = normal(60, 4), 1.5 * normal(50, 4, seed=1)

    def inside(centers, points):
        reach = NearestNeighbors(n_neighbors=4).fit(centers.numpy()).kneighbors(centers.numpy())[0][:, 3]
        near = ((points[:, None] - centers) ** 2).sum(2).sqrt().numpy() <= reach
        return near.any(1).mean()

    assert metrics.precision_recall(real, fake) == pytest.approx((inside(real, fake), inside(fake, real)))
    assert metrics.precision_recall(real, real) == (1, 1)
    assert metrics.precision_recall(real, real[:10] + 100) == (0, 0)


def test_a_dropped_class_lowers_the_number_of_classes(garments):
    y = data.labels("fashion_mnist", "test")[: len(garments)]
    shares, number = metrics.class_shares(garments[:2000])
    assert shares.sum() == pytest.approx(1)
    assert 9.7 < number <= 10
    _, fewer = metrics.class_shares(garments[(y != 1) & (y != 8)][:2000])
    assert 7.5 < fewer < 8.5
    assert metrics.class_shares(garments[y == 1][:200])[1] < 1.5


# -- the area under the ROC curve --


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_counts_pairs_and_half_of_the_ties(ties, rng):
    lower = torch.randn(37, generator=rng(0), device=rng(0).device)
    higher = 0.7 + torch.randn(53, generator=rng(1), device=rng(1).device)
    if ties:
        lower, higher = lower.round(), higher.round()
    pairs = (lower[:, None] < higher).double() + 0.5 * (lower[:, None] == higher).double()
    found, se = metrics.auroc(lower, higher)
    assert found == pytest.approx(float(pairs.mean()), abs=1e-12)
    labels = [0] * 37 + [1] * 53
    assert found == pytest.approx(roc_auc_score(labels, torch.cat([lower, higher]).cpu()), abs=1e-12)
    delong = pairs.mean(0).var() / 53 + pairs.mean(1).var() / 37
    assert se == pytest.approx(float(delong) ** 0.5, abs=1e-12)
    assert metrics.auroc(higher, lower)[0] == pytest.approx(1 - found, abs=1e-12)


def test_aurocs_error_is_the_spread_over_samples(rng):
    """Normal scores 1 apart: the area is Phi(1 / sqrt 2)."""
    r = rng(2)
    drawn = [torch.randn(2, 60, generator=r, device=r.device) for _ in range(400)]
    found = torch.tensor([metrics.auroc(x[0], 1 + x[1, :40]) for x in drawn], dtype=torch.float64)
    area, se = found.T
    assert float(area.std()) == pytest.approx(float(se.mean()), rel=0.12)
    truth = torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(0.5**0.5)).item()
    assert float(area.mean()) == pytest.approx(truth, abs=4.5 * float(area.std()) / 20)


def test_the_scores_of_samples_are_those_of_their_parts(monkeypatch):
    rng = torch.Generator().manual_seed(3)
    samples, others = (2 * torch.rand(48, 1, 28, 28, generator=rng) - 1 for _ in range(2))
    samples[:12, :, :14] = 1.5  # an eighth of all values
    net = "Fashion-CNN"
    real, fake = (metrics.extract(net, x.clamp(-1, 1)) for x in (others, samples))
    kid = metrics.kid(real, fake, rng=torch.Generator().manual_seed(5))
    few = list(metrics.scores(samples, real, net, seed=5))
    assert few == [(f"KID ({net} features)", *kid), ("share of pixels outside [-1, 1]", 0.125, None)]
    monkeypatch.setattr(metrics, "ENOUGH", 48)
    score = metrics.inception_score(samples.clamp(-1, 1), net, rng=torch.Generator().manual_seed(5))
    between = [(f"FID ({net} features)", metrics.fid(real, fake), None), (f"IS ({net} classes)", *score)]
    assert list(metrics.scores(samples, real, net, seed=5)) == [few[0], *between, few[1]]
    with pytest.raises(ValueError, match="not finite"):
        list(metrics.scores(samples.log(), real, net))
