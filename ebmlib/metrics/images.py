"""How good images are: FID, KID and IS on a net's features, a ladder of known images, nearest neighbors, AUROC.

A score with anything but the standard Inception is never called plain: `score_name` says what it is.
"""

import inspect
import json
import warnings
from collections.abc import Iterator, Sequence
from importlib import metadata

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ebmlib import data
from ebmlib.core import evaluating
from ebmlib.metrics import features, inception
from ebmlib.metrics.features import Judge
from ebmlib.metrics.inception import Inception
from ebmlib.run import checkpoint

# A judge's name, "inception", a module (N, C, H, W) -> (N, d), or None: the bundled judge that fits the channels.
Extractor = nn.Module | str | None
ENOUGH = 2048  # samples, below which the bias of FID and IS says more than the model


def judge(
    dataset: str, channels: int, *, standard: bool = False, device: str | torch.device = "cpu", timeout: float = 60.0
) -> tuple[nn.Module, str]:
    """The net whose features fit a data set, and one sentence that names it and says why it is this one.

    `standard` asks for Inception where it is here or can be downloaded (see `inception.load`); else it is the small
    bundled classifier of `features.judge_of`.
    """
    name = features.judge_of(dataset, channels)
    ours = lambda: features.trained(name, device=device)
    if not standard:
        return ours(), f"Judged by {name}, and so named in every score."
    try:
        net = inception.load(timeout=timeout)
    except RuntimeError as error:
        return ours(), f"Judged by {name}, and so named in every score: {error}"
    return net.to(device), "Judged by the standard Inception, so that FID, KID and IS are the plain ones."


def in_range(x: Tensor) -> tuple[Tensor, float]:
    """Samples x, floats of any shape, clamped to [-1, 1], and the share of values that were over a gray level outside.

    ValueError where values are not finite: a diverged chain must not be judged as a picture.
    """
    if lost := int((~x.isfinite()).sum()):
        raise ValueError(f"{lost} of the {x.numel()} values of the samples are not finite: their chains diverged.")
    return x.clamp(-1, 1), float((x.abs() > 1 + 2 / 255).double().mean())


def _look(x: Tensor) -> None:
    """Warn where float images are not in [-1, 1]; ValueError where they are far from it, or not finite."""
    if not x.is_floating_point():
        return
    _, outside = in_range(x)
    low, high = map(float, x.aminmax())
    found = f"the images' values are from {low:.3g} to {high:.3g}, and floats are expected in [-1, 1]"
    if max(-low, high) > 4:
        raise ValueError(f"{found}; pixels in [0, 255] are given as uint8, samples that left the range by in_range.")
    if low >= 0 and high > 0.5:
        warnings.warn(f"{found}: pixels in [0, 1] become that by 2 * x - 1", stacklevel=3)
    elif outside > 0.01:
        warnings.warn(f"{found}: {outside:.1%} are clamped", stacklevel=3)


def extract(net: Extractor, x: Tensor, batch: int = 256) -> Tensor:
    """Features (N, d), float32 on x's device, of images x (N, C, H, W), float in [-1, 1] or uint8.

    A bundled judge and "inception" convert x to their own size and channels; a module gets x as it is, in evaluation
    mode on its own device. ValueError for images or features that are not finite, and for images far outside [-1, 1]; a
    warning where they are little outside, or in [0, 1].
    """
    net = _loaded(net, x)
    if isinstance(net, Judge | Inception):
        _look(x)
    device = next(net.parameters(), x).device
    with torch.no_grad(), evaluating(net):
        out = torch.cat([net(part.to(device)).flatten(1).float().to(x.device) for part in x.split(batch)])
    if not out.isfinite().all():
        raise ValueError(f"the features of {int((~out.isfinite()).any(1).sum())} of {len(x)} images are not finite.")
    return out


def reference(images: Tensor, extractor: Extractor = None, batch: int = 256) -> Tensor:
    """`extract` of a data set, kept in the user's cache under statistics/ for the next time.

    Only for bundled judges and Inception: their weights and code determine the features. A damaged file is computed
    anew, and features that cannot be written are not kept; either is a warning.
    """
    net = _loaded(extractor, images)
    if type(net) not in (Judge, Inception):
        return extract(net, images, batch)
    name = f"features-{_key(images, net, batch)}{checkpoint.SUFFIX}"
    path = lambda: data.cache_folder() / "statistics" / name  # OSError where there is no cache
    try:
        return checkpoint.load(path())[0]["value"].to(images.device)
    except ValueError as error:
        warnings.warn(f"computed anew: {error}", stacklevel=2)
    except OSError:
        pass  # there is none yet, or below is said why none can be kept
    value = extract(net, images, batch)
    try:
        path().parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(path(), {"value": value}, {})
    except OSError as error:
        warnings.warn(f"computed, but not kept for the next time: {error}", stacklevel=2)
    return value


def _key(images: Tensor, net: nn.Module, batch: int) -> str:
    """SHA-256 of the images, the net, the code that prepares images for it, and what moves the last digits."""
    tensors = {"images": images.cpu(), **{f"net.{name}": value.cpu() for name, value in net.state_dict().items()}}
    code = map(inspect.getsource, (extract, data.to_bytes, features, inception))
    packages = ("torch", "torchmetrics", "torch-fidelity")
    versions = [found.version for name in packages for found in metadata.distributions(name=name)]
    is_cuda = next(net.parameters()).is_cuda
    place = torch.cuda.get_device_name() if is_cuda else torch.backends.cpu.get_cpu_capability()
    switches = [torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.get_num_threads()]
    return checkpoint.digest(tensors, json.dumps([net.name, batch, *code, *versions, place, *switches]))


def _loaded(net: Extractor, x: Tensor) -> nn.Module:
    if net == "inception":
        return inception.load().to(x.device)
    name = _named(net, x.shape[1] if x.ndim == 4 else 1)
    return features.trained(name, device=x.device) if isinstance(name, str) else name


def _named(net: Extractor, channels: int) -> nn.Module | str:
    """The module, or the name of the net; ValueError for another name."""
    net = features.judge_of("", channels) if net is None else net
    if isinstance(net, nn.Module) or net in ("inception", *features.BODIES):
        return net
    allowed = ", ".join(map(repr, features.BODIES))
    raise ValueError(f'the feature net must be {allowed}, "inception", None or a module, got {net!r}.')


def score_name(metric: str, extractor: Extractor = None, shape: tuple[int, ...] | None = None) -> str:
    """The name of a score ("FID", "KID" or "IS") with its net, such as "FID (Fashion-CNN features)".

    Only the standard Inception gives the plain name. With the images' shape (C, H, W), what a judge does to them first
    is named too: "FID (Fashion-CNN features, images gray, resized to 28 x 28)".
    """
    net = _named(extractor, 1 if shape is None else shape[0])
    if net == "inception" or (isinstance(net, Inception) and net.standard):
        return metric
    net = features.untrained(net) if isinstance(net, str) else net
    name = getattr(net, "name", type(net).__name__)
    done = net.conversion(tuple(shape)) if shape is not None and isinstance(net, Judge) else ""
    return f"{metric} ({name} {'classes' if metric == 'IS' else 'features'}{f', images {done}' if done else ''})"


def _both(real: Tensor, fake: Tensor, extractor: Extractor) -> tuple[Tensor, Tensor]:
    """Features of both sets in float64 on the CPU; a 2D tensor holds features already."""
    real, fake = (x if x.ndim == 2 else extract(extractor, x) for x in (real, fake))
    if real.shape[1] != fake.shape[1]:
        raise ValueError(f"real and fake must have as many features, got {real.shape[1]} and {fake.shape[1]}.")
    if min(len(real), len(fake)) < 2:
        raise ValueError(f"at least 2 real and 2 fake samples are needed, got {len(real)} and {len(fake)}.")
    return real.detach().double().cpu(), fake.detach().double().cpu()


def fid(real: Tensor, fake: Tensor, extractor: Extractor = None) -> float:
    """Frechet distance |mu - mu'|^2 + tr(C + C' - 2 (C C')^(1/2)) of Gaussians fitted to features (Heusel et al. 2017).

    real, fake: images (N, C, H, W) or features (N, d) from `extract`, to be reused. In float64 by torchmetrics.
    It is biased upward, by more the fewer the samples: compare only at equal N, and name it with `score_name`.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    real, fake = _both(real, fake, extractor)
    given = nn.Identity()  # returns the features that it is given
    given.num_features = real.shape[1]
    metric = FrechetInceptionDistance(feature=given).set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    return metric.compute().item()


def kid(
    real: Tensor, fake: Tensor, extractor: Extractor = None, *, subsets: int = 8, subset_size: int | None = None,
    rng: torch.Generator | None = None,
) -> tuple[float, float]:  # fmt: skip
    """Unbiased MMD^2 of features under the kernel (f.g/d + 1)^3 (Binkowski et al., 2018), with its standard error.

    real, fake: images or features, as in `fid`. The mean over `subsets` disjoint random subsets, which are independent:
    std / sqrt(subsets) is its standard error. subset_size None: as large as fits. By torchmetrics, in float64.
    """
    from torchmetrics.image.kid import poly_mmd

    real, fake = _both(real, fake, extractor)
    fewest = min(len(real), len(fake))
    size = fewest // max(subsets, 1) if subset_size is None else subset_size
    if subsets < 2 or size < 2 or subsets * size > fewest:
        raise ValueError(
            f"kid needs 2 or more disjoint subsets of 2 or more samples: {subsets} subsets of {size} "
            f"do not fit {len(real)} real and {len(fake)} fake samples."
        )
    real, fake = (x[_shuffled(len(x), rng)[: subsets * size]].split(size) for x in (real, fake))
    values = torch.stack([poly_mmd(*pair) for pair in zip(real, fake)])
    return values.mean().item(), (values.std() / subsets**0.5).item()


def inception_score(
    x: Tensor, extractor: Extractor = None, *, splits: int = 10, rng: torch.Generator | None = None
) -> tuple[float, float]:
    """exp E_x KL(p(y | x), p(y)) of an extractor's classes (Salimans et al., 2016): mean over splits, standard error.

    x: images (N, C, H, W), or their features. A module without `classes` gives the logits itself. From 1 to the
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
    net = _loaded(extractor, x)
    found = x if x.ndim == 2 else extract(net, x)
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
        warnings.simplefilter("ignore")  # it keeps all samples; the deviation over the one split that it is given
        torch.default_generator.manual_seed(0)  # its order moves the last digits
        for split in splits:
            metric = InceptionScore(feature=nn.Identity(), splits=1).set_dtype(torch.float64)
            metric.update(split)
            values.append(metric.compute()[0])
    return torch.stack(values)


def _shuffled(n: int, rng: torch.Generator | None) -> Tensor:
    return torch.randperm(n, generator=rng, device=rng.device if rng is not None else "cpu").cpu()


def ladder(
    images: Tensor, rng: torch.Generator | None = None
) -> dict[str, Tensor]:  # fmt: skip
    """Real images (N, C, H, W) and what is made of them, by name.

    With noise (its standard deviation in [-1, 1] units), pooled, N draws of
    the Gaussian with their mean and covariance, noise from U(-1, 1), and their
    mean image; all as large, clamped to [-1, 1]. Judge them by other images.
    """
    x = data.to_float(images)
    mean, n = x.mean(0, keepdim=True), len(x)
    options = {"generator": rng, "device": x.device}
    normal = lambda *size: torch.randn(*size, **options)
    found = {"real": x}
    for std in (0.1, 0.2, 0.3):
        found[f"noise {std:g}"] = x + std * normal(*x.shape)
    for k in (2, 4):
        small = F.avg_pool2d(x, k)
        found[f"pooled {k} x {k}"] = F.interpolate(small, x.shape[2:])
    # Mixtures of the centered images have their covariance, whatever its rank.
    mixed = normal(n, n) / (n - 1) ** 0.5 @ (x - mean).flatten(1)
    found["one Gaussian"] = mean + mixed.reshape(x.shape)
    found["uniform noise"] = 2 * torch.rand(x.shape, **options) - 1
    found["mean image"] = mean.expand_as(x)
    return {name: each.clamp(-1, 1) for name, each in found.items()}


def scores(
    samples: Tensor, real: Tensor, extractor: Extractor = None, *, seed: int = 0
) -> Iterator[tuple[str, float, float | None]]:
    """Yield (name, value, standard error) of KID, of FID and IS from 2,048 samples on, and of the share out of range.

    samples (N, C, H, W), floats that should be in [-1, 1]; real: `extract` of real images by the same net. FID has no
    standard error. `seed` chooses the random subsets of KID and IS. ValueError where samples are not finite.
    """
    images, outside = in_range(samples)
    net, shape = _loaded(extractor, images), tuple(images.shape[1:])
    fake, rng = extract(net, images), lambda: torch.Generator().manual_seed(seed)
    yield score_name("KID", net, shape), *kid(real, fake, rng=rng())
    if len(fake) >= ENOUGH:
        yield score_name("FID", net, shape), fid(real, fake), None
        if hasattr(net, "classes"):
            yield score_name("IS", net, shape), *inception_score(fake, net, rng=rng())
    yield "share of pixels outside [-1, 1]", outside, None


def precision_recall(real: Tensor, fake: Tensor, extractor: Extractor = None, k: int = 3) -> tuple[float, float]:
    """The share of fakes inside the real images' balls, and of real ones inside the fakes' (Kynkaanniemi et al., 2019).

    A ball reaches from a feature vector to its k-th nearest neighbor of the same set. real, fake: images or features,
    as in `fid`. Precision falls with unlikely samples, recall with what the samples leave out; compare at equal N.
    """
    real, fake = _both(real, fake, extractor)
    if min(len(real), len(fake)) <= k:
        raise ValueError(f"precision_recall with k = {k} needs more images than that: {len(real)} and {len(fake)}.")
    distance = torch.cdist(real, fake)
    reach = lambda x: torch.cdist(x, x).kthvalue(k + 1, dim=1).values  # the nearest is x itself
    inside_real, inside_fake = distance <= reach(real)[:, None], distance <= reach(fake)
    return inside_real.any(0).double().mean().item(), inside_fake.any(1).double().mean().item()


def class_shares(x: Tensor, extractor: Extractor = None) -> tuple[Tensor, float]:
    """The share of images that a judge puts into each class (classes,), and exp of these shares' entropy.

    x: images (N, C, H, W), or their features. The second is the number of classes if all are equally frequent, and 1 if
    all images are of one.
    """
    logits = _logits(x, extractor)
    shares = torch.bincount(logits.argmax(1), minlength=logits.shape[1]).double() / len(logits)
    return shares, torch.special.entr(shares).sum().exp().item()


def auroc(lower: Tensor, higher: Tensor) -> tuple[float, float]:
    """P(a < b) + P(a = b) / 2 of scores a in lower (n,) and b in higher (m,), with DeLong's standard error (1988).

    The area under the ROC curve of a detector that calls high scores "higher": energies of test images and of another
    data set, say; 0.5 where the scores tell nothing apart. The two sets are independent, of 2 scores at least.
    """
    if min(len(lower), len(higher)) < 2 or lower.isnan().any() or higher.isnan().any():
        raise ValueError(f"auroc needs 2 or more scores on each side, no NaN; got {len(lower)} and {len(higher)}.")

    def below(of: Tensor, among: Tensor) -> Tensor:
        """The share of `among` below each of `of`, equal ones counted half."""
        among = among.sort().values
        ends = (torch.searchsorted(among, of, right=right) for right in (False, True))
        return sum(ends).double() / (2 * len(among))

    of_higher, of_lower = below(higher, lower), 1 - below(lower, higher)
    variance = of_higher.var() / len(higher) + of_lower.var() / len(lower)
    return of_higher.mean().item(), variance.sqrt().item()


def nearest_neighbors(x: Tensor, others: Tensor, k: int = 1, chunk: int = 8192) -> tuple[Tensor, Tensor]:
    """Euclidean distances in pixels' [-1, 1] units, ascending, and indices into others, both (N, k).

    x (N, *S), others (M, *S): float in [-1, 1] or uint8, `chunk` others at a time on x's device. Not by matrix
    products, which lose half the digits near a copy.
    """
    if x.shape[1:] != others.shape[1:]:
        raise ValueError(f"x and others must agree in shape, got {tuple(x.shape[1:])} and {tuple(others.shape[1:])}.")
    if not 1 <= k <= len(others):
        raise ValueError(f"k must be from 1 to the {len(others)} others, got {k}.")
    x, exact = data.to_float(x.detach()).flatten(1), "donot_use_mm_for_euclid_dist"
    parts = (data.to_float(part.to(x.device)).flatten(1) for part in others.split(chunk))
    distance, index = torch.cat([torch.cdist(x, part, compute_mode=exact) for part in parts], 1).sort(stable=True)
    return distance[:, :k], index[:, :k]
