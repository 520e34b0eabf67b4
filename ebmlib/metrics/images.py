"""How good samples are: FID, KID and IS on a net's features, MMD and mode coverage in the plane, nearest neighbors.

A score with anything but the standard Inception is never called plain: `fid_name` and its kin say what it is.
"""

import importlib.util
import inspect
import warnings
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ebmlib import data
from ebmlib.core import evaluating
from ebmlib.metrics import cache
from ebmlib.metrics import inception as standard
from ebmlib.metrics.features import FashionCNN, conversion, fashion_cnn
from ebmlib.metrics.inception import Inception
from ebmlib.page import results
from ebmlib.run import checkpoint

Extractor = nn.Module | str | None  # None: Fashion-CNN; "inception": the standard one; a module: (N, C, H, W) -> (N, d)


# ---------------------------------------------------------------------------------------------- the net behind a score


def inception(weights: str | Path | None = None, timeout: float = 60.0) -> Inception:
    """FID's Inception with weights from a file; None: the standard ones, from where they stand, else downloaded.

    A download goes to torch's hub folder and ends after `timeout` seconds without data. RuntimeError, one sentence,
    where torch-fidelity or the weights are missing, or where a file of their name is another one.
    """
    need = "plain FID, KID and IS need torch-fidelity (pip install 'ebmlib[fid]') and its Inception weights"
    if importlib.util.find_spec("torch_fidelity") is None:
        raise RuntimeError(f"{need}: torch-fidelity is not installed.")
    if weights is not None:
        return Inception(weights)
    places = standard.places()
    file = next((place for place in places if place.is_file()), places[-1])
    try:
        data.fetch(standard.URL, file, standard.SHA256, timeout)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        looked = ", ".join(str(place.parent) for place in places)
        raise RuntimeError(f"{need}, {standard.NAME} from {standard.URL} in one of {looked}: {reason}.") from None
    return Inception(file)


class Choice(NamedTuple):
    """net: the module that judges; why: one sentence that names it and says why it is this one."""

    net: nn.Module
    why: str


def best_extractor(device: str | torch.device = "cpu", timeout: float = 60.0) -> Choice:
    """On `device`: the standard Inception where it is here or can be downloaded (see `inception`), else Fashion-CNN."""
    try:
        net = inception(timeout=timeout)
    except RuntimeError as error:
        why = f"Judged by {FashionCNN.name}, and so named in every score: {error}"
        return Choice(fashion_cnn(device=device), why)
    return Choice(net.to(device), "Judged by the standard Inception, so that FID, KID and IS are the plain ones.")


# ---------------------------------------------------------------------------------------------- features of images


def features(net: Extractor, x: Tensor, batch: int = 256) -> Tensor:
    """Features (N, d), float32 on x's device, of images x (N, C, H, W), float in [-1, 1] or uint8.

    net None: the bundled Fashion-CNN, which converts to gray 28 x 28; "inception": the standard net (RGB, 299 x 299);
    a module gets x as it is, in evaluation mode on its own device. ValueError for NaN in images or features.
    """
    net = _loaded(net, x.device)
    device = next(net.parameters(), x).device
    with torch.no_grad(), evaluating(net):
        out = torch.cat([net(part.to(device)).flatten(1).float().to(x.device) for part in x.split(batch)])
    if not out.isfinite().all():
        raise ValueError(f"the features of {int((~out.isfinite()).any(1).sum())} of {len(x)} images are not finite.")
    return out


def reference(images: Tensor, extractor: Extractor = None, batch: int = 256) -> Tensor:
    """`features` of a data set, kept in the user's cache under statistics/ for the next time.

    The key: SHA-256 of the images, of the net's weights and of the code that prepares images for it, and what moves
    the last digits (batch, hardware, versions). Only Fashion-CNN and Inception are kept: their key tells all of them.
    """
    net = _loaded(extractor, images.device)
    if type(net) not in (FashionCNN, Inception):
        return features(net, images, batch)
    compute = lambda: features(net, images, batch)
    return cache.kept(data.cache_folder() / "statistics", _key(images, net, batch), compute).to(images.device)


def _key(images: Tensor, net: nn.Module, batch: int) -> dict[str, Any]:
    state = {name: value.cpu() for name, value in net.state_dict().items()}
    packages = {dist.name: dist.version for dist in map(_package, ("torch", "torchmetrics", "torch-fidelity")) if dist}
    code = map(inspect.getsource, (features, inspect.getmodule(FashionCNN), inspect.getmodule(Inception)))
    switches = [torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32]
    return {
        "kind": "features",
        "images": checkpoint.digest({"images": images.cpu()}),
        "extractor": net.name,
        "weights": checkpoint.digest(state),
        "code": checkpoint.digest({}, "".join(code)),
        "packages": packages,
        "computed": [batch, results.hardware(next(net.parameters()).device), *switches],
    }


def _package(name: str) -> metadata.Distribution | None:
    return next(iter(metadata.distributions(name=name)), None)


def _loaded(net: Extractor, device: torch.device) -> nn.Module:
    if isinstance(net, nn.Module):
        return net
    if net is None:
        return fashion_cnn(device=device)
    if net == "inception":
        return inception().to(device)
    raise ValueError(f'the feature net must be None (Fashion-CNN), "inception" or a module, got {net!r}.')


def fid_name(extractor: Extractor = None, shape: tuple[int, ...] | None = None) -> str:
    """The name of this FID, such as "FID (Fashion-CNN features)"; only the standard Inception gives "FID".

    With the images' shape (C, H, W), Fashion-CNN's conversion is named too: "..., images gray, resized to 28 x 28".
    """
    return _name("FID", extractor, shape)


def kid_name(extractor: Extractor = None, shape: tuple[int, ...] | None = None) -> str:
    """The name of this KID, as in `fid_name`."""
    return _name("KID", extractor, shape)


def is_name(extractor: Extractor = None, shape: tuple[int, ...] | None = None) -> str:
    """The name of this inception score, such as "IS (Fashion-CNN classes)", as in `fid_name`."""
    return _name("IS", extractor, shape, "classes")


def _name(metric: str, extractor: Extractor, shape: tuple[int, ...] | None, what: str = "features") -> str:
    if isinstance(extractor, str) and extractor == "inception":
        return metric
    if isinstance(extractor, Inception) and extractor.standard:
        return metric
    if not isinstance(extractor, nn.Module | None):
        raise ValueError(f'the feature net must be None (Fashion-CNN), "inception" or a module, got {extractor!r}.')
    net = FashionCNN.name if extractor is None else getattr(extractor, "name", type(extractor).__name__)
    is_ours = extractor is None or isinstance(extractor, FashionCNN)
    done = conversion(tuple(shape)) if shape is not None and is_ours else ""
    return f"{metric} ({net} {what}{f', images {done}' if done else ''})"


class _Given(nn.Module):
    """Hands features through, so that torchmetrics accepts those that are computed already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        return x


def _both(real: Tensor, fake: Tensor, extractor: Extractor) -> tuple[Tensor, Tensor]:
    """Features of both sets in float64 on the CPU; a 2D tensor holds features already."""
    pair = [x if x.ndim == 2 else features(extractor, x) for x in (real, fake)]
    if pair[0].shape[1] != pair[1].shape[1]:
        raise ValueError(f"real and fake must have as many features, got {pair[0].shape[1]} and {pair[1].shape[1]}.")
    if min(map(len, pair)) < 2:
        raise ValueError(f"at least 2 real and 2 fake samples are needed, got {len(pair[0])} and {len(pair[1])}.")
    return pair[0].detach().double().cpu(), pair[1].detach().double().cpu()


def fid(real: Tensor, fake: Tensor, extractor: Extractor = None) -> float:
    """Frechet distance |mu - mu'|^2 + tr(C + C' - 2 (C C')^(1/2)) of Gaussians fitted to features (Heusel et al. 2017).

    real, fake: images (N, C, H, W) or features (N, d) from `features`, to be reused. In float64 by torchmetrics.
    It is biased upward, by more the fewer the samples: compare only at equal N, and name it with `fid_name`.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    real, fake = _both(real, fake, extractor)
    metric = FrechetInceptionDistance(feature=_Given(real.shape[1])).set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return metric.compute().item()


def kid(
    real: Tensor,
    fake: Tensor,
    extractor: Extractor = None,
    *,
    subsets: int = 8,
    subset_size: int | None = None,
    rng: torch.Generator | None = None,
) -> tuple[float, float]:
    """Unbiased MMD^2 of features under the kernel (f.g/d + 1)^3 (Binkowski et al., 2018), with its standard error.

    real, fake: images or features, as in `fid`. The mean over `subsets` disjoint random subsets, which are independent:
    std / sqrt(subsets) is its standard error. subset_size None: as large as fits. By torchmetrics, in float64.
    """
    real, fake = _both(real, fake, extractor)
    fewest = min(len(real), len(fake))
    size = fewest // max(subsets, 1) if subset_size is None else subset_size
    if subsets < 2 or size < 2 or subsets * size > fewest:
        raise ValueError(
            f"kid needs 2 or more disjoint subsets of 2 or more samples: {subsets} subsets of {size} "
            f"do not fit {len(real)} real and {len(fake)} fake samples."
        )
    real, fake = (x[_shuffled(len(x), rng)[: subsets * size]].split(size) for x in (real, fake))
    values = _kid(real, fake)
    return values.mean().item(), (values.std() / subsets**0.5).item()


def _kid(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """The KID of each pair of equally large feature sets (n, d), float64."""
    from torchmetrics.image.kid import KernelInceptionDistance

    n, d = real[0].shape
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save all")
        metric = KernelInceptionDistance(feature=_Given(d), subsets=1, subset_size=n).set_dtype(torch.float64)
    values = []
    with torch.random.fork_rng(devices=[]):  # compute() shuffles with the global generator
        torch.default_generator.manual_seed(0)  # its order moves the last digits
        for pair in zip(real, fake):
            metric.reset()
            metric.update(pair[0], real=True)
            metric.update(pair[1], real=False)
            values.append(metric.compute()[0])
    return torch.stack(values)


def inception_score(
    x: Tensor, extractor: Extractor = None, *, splits: int = 10, rng: torch.Generator | None = None
) -> tuple[float, float]:
    """exp E_x KL(p(y | x), p(y)) of an extractor's classes (Salimans et al., 2016): mean over splits, standard error.

    x: images (N, C, H, W), or their `features`. A module without `classes` gives the logits itself. From 1 to the
    number of classes; biased downward, by more the smaller a split. The splits are random, disjoint, equal in size and
    each has its own p(y). Papers print the standard deviation over 10 splits, sqrt(10) times this standard error.
    """
    logits = _logits(x, extractor)
    size = len(logits) // max(splits, 1)
    if splits < 2 or size < 2:
        raise ValueError(f"inception_score needs 2 or more splits of 2 or more images, got {splits} of {len(x)}.")
    logits = logits[_shuffled(len(logits), rng)[: splits * size]]
    values = _inception_score(logits.split(size))
    return values.mean().item(), (values.std() / splits**0.5).item()


def _logits(x: Tensor, extractor: Extractor) -> Tensor:
    """Log-probabilities of the classes (N, C), float64 on the CPU, none below -600: exp of that is still a number."""
    net = _loaded(extractor, x.device)
    found = x if x.ndim == 2 else features(net, x)
    if hasattr(net, "classes"):
        if found.shape[1] != net.num_features:
            raise ValueError(f"{net.name} has {net.num_features} features, got {found.shape[1]}.")
        with torch.no_grad(), evaluating(net):
            found = net.classes(found.to(next(net.parameters())))
    found = found.detach().double().cpu().log_softmax(1)
    if found.isnan().any():
        raise ValueError(f"the class logits of {int(found.isnan().any(1).sum())} of {len(x)} images are no numbers.")
    return found.clamp(min=-600)


def _inception_score(splits: Sequence[Tensor]) -> Tensor:
    """The score of each split by torchmetrics, from log-probabilities (n, C)."""
    from torchmetrics.image.inception import InceptionScore

    values = []
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # compute() shuffles with the global generator
        warnings.filterwarnings("ignore", message="Metric `InceptionScore` will save all")
        warnings.filterwarnings("ignore", message="std\\(\\): degrees of freedom")  # over the one split it is given
        metric = InceptionScore(feature=_Given(splits[0].shape[1]), splits=1).set_dtype(torch.float64)
        torch.default_generator.manual_seed(0)  # its order moves the last digits
        for split in splits:
            metric.reset()
            metric.update(split)
            values.append(metric.compute()[0])
    return torch.stack(values)


def _shuffled(n: int, rng: torch.Generator | None) -> Tensor:
    return torch.randperm(n, generator=rng, device=rng.device if rng is not None else "cpu").cpu()


# ---------------------------------------------------------------------------------------------- samples in the plane


def mmd(x: Tensor, y: Tensor, bandwidth: float) -> tuple[float, float]:
    """Unbiased MMD^2 of x (n, d) and y (m, d) under exp(-|x - y|^2 / (2 bandwidth^2)), with its standard error.

    Gretton et al. (2012), Eq. 3; it can be negative. The error holds under x ~ y too, where the leading term vanishes:
    the jackknife's variance 4 var/n less its noise. Float64, memory n + m; ValueError for fewer than 4 samples.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 4:
        raise ValueError(
            f"mmd needs samples (n, d) and (m, d), 4 or more each, got {tuple(x.shape)} and {tuple(y.shape)}."
        )
    if not 0 < bandwidth < float("inf"):
        raise ValueError(f"mmd's bandwidth must be positive and finite, got {bandwidth}.")
    n, m = len(x), len(y)
    x, y = x.detach().double(), y.detach().double()
    (xx, _, xx_noise), (yy, _, yy_noise) = _kernel(x, x, bandwidth, own=True), _kernel(y, y, bandwidth, own=True)
    xy, yx, xy_noise = _kernel(x, y, bandwidth)
    value = xx.mean() + yy.mean() - 2 * xy.mean()
    # The variance is 4 zeta_x/n + 4 zeta_y/m + 2 v_xx/n^2 + 2 v_yy/m^2 + 4 v_xy/(nm): v is the variance of k less its
    # means, zeta_x that of E k(x, x') - E k(x, y) over x; seen through finite means it is zeta_x + v_xx/n + v_xy/m.
    variance = 4 * (xx - xy).var() / n + 4 * (yy - yx).var() / m
    variance -= 2 * xx_noise / n**2 + 2 * yy_noise / m**2 + 4 * xy_noise / (n * m)
    return value.item(), variance.clamp(min=0).sqrt().item()


def _kernel(
    x: Tensor, y: Tensor, bandwidth: float, own: bool = False, rows: int = 1024
) -> tuple[Tensor, Tensor, Tensor]:
    """Means of k(x_i, y_j) over j and over i, and the variance of k less both means; own: x is y, i = j left out."""
    n, m = len(x), len(y) - own
    over_j, over_i, squares = [], torch.zeros(len(y), dtype=x.dtype, device=x.device), x.new_zeros(())
    for start in range(0, n, rows):
        part = x[start : start + rows]
        k = torch.exp(torch.cdist(part, y, compute_mode="donot_use_mm_for_euclid_dist").square() / (-2 * bandwidth**2))
        if own:
            k[torch.arange(len(part)), torch.arange(start, start + len(part))] = 0
        over_j.append(k.sum(1) / m)
        over_i += k.sum(0)
        squares += k.square().sum()
    over_j, over_i = torch.cat(over_j), over_i / (n - own)
    # E (k - a_i - b_j + c)^2 = E k^2 - E a^2 - E b^2 + c^2
    noise = squares / (n * m) - over_j.square().mean() - over_i.square().mean() + over_j.mean().square()
    return over_j, over_i, noise.clamp(min=0)


class Coverage(NamedTuple):
    """modes: how many are covered; quality: the share of samples that lie near any mode."""

    modes: int
    quality: float


def mode_coverage(x: Tensor, modes: Tensor, std: float, radius: float = 3.0, share: float | None = None) -> Coverage:
    """How many of the modes (m, d) the samples x (n, d) cover, and the share within `radius` std of their nearest mode.

    A mode is covered when at least `share` of all n samples are near it; None means a quarter of the fair share 1/m.
    NaN is near nothing. The exact mixture has quality 1 - exp(-radius^2 / 2) in 2D: .9889 at 3.
    """
    if x.ndim != 2 or modes.ndim != 2 or x.shape[1] != modes.shape[1] or not len(x) or not len(modes):
        raise ValueError(
            f"mode_coverage needs x (n, d) and modes (m, d), got {tuple(x.shape)} and {tuple(modes.shape)}."
        )
    share = 0.25 / len(modes) if share is None else share
    if not (std > 0 and radius > 0 and 0 < share <= 1):
        raise ValueError(f"std and radius must be positive and share in (0, 1], got {std}, {radius} and {share}.")
    x = x.detach()
    distance, nearest = torch.cdist(x, modes.to(x), compute_mode="donot_use_mm_for_euclid_dist").min(1)
    near = distance <= radius * std
    counts = torch.bincount(nearest[near], minlength=len(modes))
    return Coverage(int((counts >= share * len(x)).sum()), near.double().mean().item())


# ---------------------------------------------------------------------------------------------- nearest neighbors


def nearest_neighbors(x: Tensor, data: Tensor, k: int = 1, chunk: int = 8192) -> tuple[Tensor, Tensor]:
    """Euclidean distances in pixels' [-1, 1] units, ascending, and indices into data, both (N, k).

    x (N, *S), data (M, *S): float in [-1, 1] or uint8, `chunk` data at a time on x's device. Matrix products make a
    shortlist, exact distances order it: products alone lose half the digits near a copy.
    """
    if x.shape[1:] != data.shape[1:]:
        raise ValueError(f"x and data must agree in shape, got {tuple(x.shape[1:])} and {tuple(data.shape[1:])}.")
    if not 1 <= k <= len(data):
        raise ValueError(f"k must be from 1 to the {len(data)} data, got {k}.")
    x = _pixels(x)
    short = min(4 * k + 16, len(data))
    best = x.new_full((len(x), 0), torch.inf)
    index = torch.zeros(len(x), 0, dtype=torch.long, device=x.device)
    for start in range(0, len(data), chunk):
        part = _pixels(data[start : start + chunk].to(x.device))
        squares = part.square().sum(1) - 2 * x @ part.T  # |x - y|^2 less |x|^2, which does not change the order
        best = torch.cat([best, squares], 1)
        index = torch.cat([index, torch.arange(start, start + len(part), device=x.device).expand(len(x), -1)], 1)
        best, order = best.topk(min(short, best.shape[1]), largest=False)
        index = index.gather(1, order)
    listed = (_pixels(data[i.to(data.device)].to(x.device)) for i in index)
    distance = torch.stack([torch.linalg.vector_norm(found - row, dim=1) for row, found in zip(x, listed)])
    distance, order = distance.sort(dim=1, stable=True)
    return distance[:, :k], index.gather(1, order)[:, :k]


def _pixels(x: Tensor) -> Tensor:
    x = x.detach()
    return (x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x.float()).flatten(1)
