"""Image sets by name as uint8 tensors (N, C, H, W): bundled, downloaded, or a folder of your own.

Looked for in the folder EBM_DATA, the checkout's data/, then the user's cache. torchvision holds the addresses and MD5
sums of its sets; `imagefiles` reads what was found. data/README.md says where a set comes from and where to put it.
"""

import difflib
import os
import shutil
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ebmlib.imagefiles import FASHION_SHA256, Raw, cached, file_hash, need, one_line, stack, torchvision_set, verify
from ebmlib.imagefiles import read as read_files

CHECKOUT = Path(__file__).resolve().parents[1] / "data"
BUNDLED = CHECKOUT / "fashion-mnist"  # what a notebook on the bundled set depends on


class Source(NamedTuple):
    """What `images` really returned; `note` is the banner sentence when it is not what was asked for."""

    name: str
    split: str
    fallback: bool = False
    note: str = ""


class Set(NamedTuple):
    """One line of the table below: how a set is called, split and stored, and where it comes from."""

    title: str
    splits: tuple[str, ...]  # empty: whatever subfolders there are
    places: tuple[str, ...]  # any one of these under a data folder is the set
    origin: str
    torchvision: str = ""  # the class with its parser, addresses and hashes
    size: int | None = None  # pixels when the caller names none


_BOTH = ("train", "test")
_CIFAR = "https://www.cs.toronto.edu/~kriz/cifar.html"
_LSUN = "https://www.yf.io/p/lsun"
SETS = {
    "fashion_mnist": Set("Fashion-MNIST", _BOTH, ("fashion-mnist",),
                         "https://github.com/zalandoresearch/fashion-mnist", "FashionMNIST"),
    "mnist": Set("MNIST", _BOTH, ("MNIST/raw",), "https://ossci-datasets.s3.amazonaws.com/mnist/", "MNIST"),
    "cifar10": Set("CIFAR-10", _BOTH, ("cifar-10-python.tar.gz", "cifar-10-batches-py"), _CIFAR, "CIFAR10"),
    "cifar100": Set("CIFAR-100", _BOTH, ("cifar-100-python.tar.gz", "cifar-100-python"), _CIFAR, "CIFAR100"),
    "svhn": Set("SVHN", (*_BOTH, "extra"), ("{split}_32x32.mat",),
                "http://ufldl.stanford.edu/housenumbers/", "SVHN"),
    "celeba": Set("CelebA", ("train", "valid", "test", "all"), ("celeba",),
                  "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html", "CelebA", 64),
    "lsun_church": Set("LSUN church", ("train", "val"), ("church_outdoor_{split}_lmdb",), _LSUN, size=64),
    "lsun_bedroom": Set("LSUN bedroom", ("train", "val"), ("bedroom_{split}_lmdb",), _LSUN, size=64),
    "celeba_hq": Set("CelebA-HQ", (), ("celeba_hq", "celeba_hq.zip", "celeba_hq.tar"),
                     "https://github.com/tkarras/progressive_growing_of_gans", size=256),
    "imagenet32": Set("ImageNet-32", ("train", "val"), ("imagenet32", "imagenet32.zip", "imagenet32.tar"),
                      "https://image-net.org/download-images.php", size=32),
    "folder": Set("A folder of images", (), (), ""),
}  # fmt: skip
NAMES = tuple(name for name in SETS if name != "folder")
POINTED = ("folder", "celeba_hq", "imagenet32")  # a path may follow these: "folder:photos"


def images(
    name: str | None,
    split: str = "train",
    *,
    size: int | None = None,
    fallback: bool = False,
    root: str | Path | None = None,
    download: bool = True,
    timeout: float = 60.0,
    hashes: Mapping[str, str] | None = None,
) -> tuple[Tensor, Source]:
    """The set as uint8 (N, C, H, W) and its true name; None means CIFAR-10. `name` is one of NAMES or "folder:PATH".

    Photographs are cropped to the central square, then resized with antialiasing to `size` pixels; 28 to 32 pads zeros.
    FileNotFoundError if the set is missing and cannot be downloaded, unless `fallback` puts Fashion-MNIST in its place.
    `root` replaces the search; `hashes` (file name to MD5, SHA-256 for Fashion-MNIST) replaces entries of the table.
    """
    kind, path = _parse("cifar10" if name is None else name, split)
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(f"size is {size!r}; it must be None or a whole number of pixels, at least 1")
    try:
        place = _locate(kind, path, split, root, download, timeout, hashes)
    except Missing as missing:
        if not fallback or kind == "fashion_mnist":
            raise
        stand_in = "train" if split in ("train", "all", "extra") else "test"
        x, source = images("fashion_mnist", stand_in, size=size, download=download, timeout=timeout)
        note = f"{SETS[kind].title} {missing.reason}: this run uses the bundled Fashion-MNIST instead."
        return x, source._replace(fallback=True, note=note)
    raw = _read(kind, place, split, hashes)
    size = size or SETS[kind].size
    x = cached(raw, cache_folder() / "processed", kind, size) if raw.stamp else stack(raw, size)
    return x, Source(name or kind, split)


def labels(
    name: str, split: str = "train", *, root: str | Path | None = None, hashes: Mapping[str, str] | None = None
) -> Tensor:
    """Integer labels (N,), for CelebA the 40 attributes (N, 40) in {0, 1}, of a set that is already there.

    ValueError for a set without labels (LSUN, CelebA-HQ, folders), FileNotFoundError if it is missing.
    """
    kind, path = _parse(name, split)
    raw = _read(kind, _locate(kind, path, split, root, False, 0.0, hashes), split, hashes)
    if raw.labels is None:
        raise ValueError(f"{name} has no labels")
    return raw.labels


def find(name: str, split: str = "train", root: str | Path | None = None) -> Path | None:
    """Where the set stands: the first of EBM_DATA, the checkout's data/ and the user's cache with it, else None."""
    kind, path = _parse(name, split)
    if path:
        return Path(path).expanduser() if Path(path).expanduser().exists() else None
    for folder in _roots(root):
        for place in SETS[kind].places:
            found = folder / place.format(split=split)
            if found.exists() and all((found / part).exists() for part in _parts(kind, found)):
                return found
    return None


def held_out(name: str) -> str:
    """The split to judge on: the first of test, val and train that the set has; at a path of one's own it is train."""
    kind, path = _parse(name, "train")
    there = () if path else SETS[kind].splits
    return next((split for split in ("test", "val") if split in there), "train")


def to_float(x: Tensor) -> Tensor:
    """uint8 {0..255} to float32 in [-1, 1]: x / 127.5 - 1 (DRL, released code)."""
    return x.float() / 127.5 - 1


def dequantized(x: Tensor, rng: torch.Generator | None = None) -> Tensor:
    """uint8 {0..255} to float32 in [-1, 1]: (x + u) / 128 - 1, u uniform in [0, 1), a cell 2 / 256 wide for each value.

    A density can be compared with these and not with the values themselves, where it has no bound.
    """
    return (x.float() + torch.rand(x.shape, generator=rng, device=x.device)) / 128 - 1


def cache_folder() -> Path:
    """The user's cache: $XDG_CACHE_HOME/ebmlib, else ~/.cache/ebmlib."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ebmlib"


# ---------------------------------------------------------------------------------------------------------- finding


class Missing(FileNotFoundError):
    """A set that is neither here nor to be had; `reason` is the part that the banner repeats."""

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


def _roots(root: str | Path | None) -> list[Path]:
    if root is not None:
        return [Path(root).expanduser()]
    own = os.environ.get("EBM_DATA")
    return [*([Path(own).expanduser()] if own else []), CHECKOUT, cache_folder()]


def _download_root(root: str | Path | None) -> Path:
    # The first or the last of the search, never the checkout: a download must not look like a file of the repository.
    return Path(root or os.environ.get("EBM_DATA") or cache_folder()).expanduser()


def _parse(name: str, split: str) -> tuple[str, str]:
    kind, colon, path = name.partition(":") if isinstance(name, str) else (repr(name), "", "")
    pointed = bool(path) and kind in POINTED if colon else kind != "folder"
    if kind not in SETS or not pointed:
        near = difflib.get_close_matches(kind.lower().replace("-", "_"), SETS, n=1, cutoff=0.5)
        hint = f" (did you mean {near[0].replace('folder', 'folder:PATH')}?)" if near else ""
        raise ValueError(f"data set {name!r} is unknown{hint}; allowed are {', '.join(NAMES)} and folder:PATH")
    allowed = SETS[kind].splits
    if allowed and split not in allowed:
        raise ValueError(f"split {split!r} of {kind} is unknown; allowed are {', '.join(allowed)}")
    return kind, path


def _parts(kind: str, place: Path) -> list[str]:
    """Files without which a folder is not the set."""
    if kind in ("fashion_mnist", "mnist"):
        return list(FASHION_SHA256)  # both sets use the same four names
    if kind == "celeba":
        tables = [file for _, _, file in torchvision_set("CelebA").file_list if file.endswith(".txt")]
        return [*tables, "img_align_celeba" if (place / "img_align_celeba").is_dir() else "img_align_celeba.zip"]
    return []


def _locate(kind, path, split, root, download, timeout, hashes) -> Path:
    place = find(f"{kind}:{path}" if path else kind, split, root)
    if place is not None:
        return place
    if path:
        raise FileNotFoundError(f"{kind}:{path} names a file or folder that does not exist")
    spec, reason = SETS[kind], "is not on this machine"
    if download and spec.torchvision:
        try:
            _download(kind, split, _download_root(root), timeout, hashes or {})
            return find(kind, split, root)
        except OSError as error:
            reason += f" and could not be downloaded ({one_line(error)})"
    put = " or ".join(p.format(split=split) for p in spec.places)
    looked = ", ".join(str(folder) for folder in _roots(root))
    message = f"{spec.title} (split {split}) {reason}: get it from {spec.origin} and put {put} into one of {looked}"
    raise Missing(message + ", or into a folder that EBM_DATA names", reason)


def _read(kind: str, place: Path, split: str, hashes: Mapping[str, str] | None) -> Raw:
    return read_files(kind, place, split, torchvision=SETS[kind].torchvision, hashes=hashes or {})


# ------------------------------------------------------------------------------------------------------ downloading


def _remote_files(kind: str, split: str, hashes: Mapping[str, str]) -> list[tuple[str, str, list[str]]]:
    """(path under the data folder, hash, addresses) of a set's files; for CelebA the address is a Google Drive id."""
    cls = torchvision_set(SETS[kind].torchvision, hashes)
    place = SETS[kind].places[0]
    if kind in ("fashion_mnist", "mnist"):
        known = {**FASHION_SHA256, **hashes} if kind == "fashion_mnist" else dict(cls.resources)
        return [(f"{place}/{file}", known[file], [m + file for m in cls.mirrors]) for file, _ in cls.resources]
    if kind == "svhn":
        address, file, md5 = cls.split_list[split]
        return [(file, md5, [address])]
    if kind == "celeba":
        return [(f"{place}/{file}", md5, [drive_id]) for drive_id, md5, file in cls.file_list]
    return [(cls.filename, cls.tgz_md5, [cls.url])]


def _download(kind: str, split: str, root: Path, timeout: float, hashes: Mapping[str, str]) -> None:
    """Fetch what is missing; a file gets its name only after its hash was checked. OSError if it cannot be had."""
    print(f"Downloading {SETS[kind].title} to {root} (gives up after {timeout:g} s without data)", flush=True)
    root.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".download-", dir=root))
    try:
        for file, expected, addresses in _remote_files(kind, split, hashes):
            _obtain(root / file, expected, addresses, scratch, timeout)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def fetch(address: str, file: Path, expected: str, timeout: float = 60.0) -> None:
    """Download one file, unless it is there, into a folder that is made if need be; it appears only with its hash.

    expected: its SHA-256 or MD5. OSError if it cannot be had, RuntimeError if what stands there is another file.
    """
    if file.exists():
        return verify(file, expected)
    print(f"Downloading {file.name} to {file.parent} (gives up after {timeout:g} s without data)", flush=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".download-", dir=file.parent))
    try:
        _obtain(file, expected, [address], scratch, timeout)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _obtain(file: Path, expected: str, addresses: list[str], scratch: Path, timeout: float) -> None:
    if file.exists():
        verify(file, expected)
        return
    part = scratch / file.name
    _watched(lambda: _fetch(addresses, part, timeout), scratch, timeout)
    if not part.exists() or file_hash(part, expected) != expected:
        raise OSError(f"{part.name} arrived damaged: its hash is not {expected}")
    file.parent.mkdir(parents=True, exist_ok=True)
    os.replace(part, file)


def _fetch(addresses: list[str], path: Path, timeout: float) -> None:
    for address in addresses:
        try:
            if "://" not in address:
                need("gdown", "the download").download(id=address, output=str(path), quiet=True, use_cookies=False)
                return
            request = urllib.request.Request(address, headers={"User-Agent": "ebmlib"})
            with urllib.request.urlopen(request, timeout=timeout) as response, open(path, "wb", buffering=0) as file:
                while chunk := response.read1(1 << 16):
                    file.write(chunk)
            return
        except Exception as error:  # gdown has exceptions of its own
            if address == addresses[-1]:
                raise OSError(one_line(error)) from error


def _watched(work: Callable[[], None], folder: Path, timeout: float) -> None:
    # Socket timeouts miss name look-ups, hosts with many dead addresses and gdown: what counts is bytes on the disk.
    outcome: list[BaseException] = []

    def run():
        try:
            work()
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)  # daemon: a hanging connection must not hold the process
    thread.start()
    seen, since = -1, time.monotonic()
    while thread.is_alive():
        thread.join(0.1)
        size = sum(file.stat().st_size for file in folder.iterdir() if file.exists())
        if size != seen:
            seen, since = size, time.monotonic()
        elif time.monotonic() - since > timeout:
            raise TimeoutError(f"no data for {timeout:g} s")
    if outcome:
        raise outcome[0]
