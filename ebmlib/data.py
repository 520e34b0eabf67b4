"""Image sets by name as uint8 tensors (N, C, H, W): bundled, downloaded, or a folder of your own.

Looked for in the folder EBM_DATA, the checkout's data/, then the user's cache; `imagefiles` reads what was found.
torchvision holds the addresses and hashes of its sets. data/README.md says where a set comes from and where to put it.
"""

import contextlib
import difflib
import hashlib
import json
import os
import socket
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ebmlib import imagefiles
from ebmlib.files import atomic, one_line

CHECKOUT = Path(__file__).resolve().parents[1] / "data"


class Source(NamedTuple):
    """What `images` really returned; `note` says in one sentence what stands in for the set, or what a folder gave.

    `name` has the absolute path of a folder. `sha256` is that of the images, where no published hash vouches for them.
    """

    name: str
    split: str
    fallback: bool = False
    note: str = ""
    sha256: str = ""


class Set(NamedTuple):
    """One line of the table below: how a set is called, split and stored, and where it comes from."""

    title: str
    splits: tuple[str, ...]  # empty: what its folders are named for (`imagefiles.by_split`)
    places: tuple[str, ...]  # any one of these under a data folder is the set
    origin: str
    size: int | None = None  # pixels when the caller names none


_BOTH, _VAL = ("train", "test"), ("train", "val")
_CIFAR, _LSUN = "https://www.cs.toronto.edu/~kriz/cifar.html", "https://www.yf.io/p/lsun"
_FASHION = "https://github.com/zalandoresearch/fashion-mnist"
_CELEBA = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
_CELEBA_HQ = "https://github.com/tkarras/progressive_growing_of_gans"
_IMAGENET = "https://image-net.org/download-images.php"
SETS = {
    "fashion_mnist": Set("Fashion-MNIST", _BOTH, ("fashion-mnist",), _FASHION),
    "mnist": Set("MNIST", _BOTH, ("MNIST/raw",), "https://ossci-datasets.s3.amazonaws.com/mnist/"),
    "cifar10": Set("CIFAR-10", _BOTH, ("cifar-10-python.tar.gz", "cifar-10-batches-py"), _CIFAR),
    "cifar100": Set("CIFAR-100", _BOTH, ("cifar-100-python.tar.gz", "cifar-100-python"), _CIFAR),
    "svhn": Set("SVHN", (*_BOTH, "extra"), ("{split}_32x32.mat",), "http://ufldl.stanford.edu/housenumbers/"),
    "celeba": Set("CelebA", ("train", "valid", "test", "all"), ("celeba",), _CELEBA, 64),
    "lsun_church": Set("LSUN church", _VAL, ("church_outdoor_{split}_lmdb",), _LSUN, 64),
    "lsun_bedroom": Set("LSUN bedroom", _VAL, ("bedroom_{split}_lmdb",), _LSUN, 64),
    "celeba_hq": Set("CelebA-HQ", (), ("celeba_hq", "celeba_hq.zip", "celeba_hq.tar"), _CELEBA_HQ, 256),
    "imagenet32": Set("ImageNet-32", _VAL, ("imagenet32", "imagenet32.zip", "imagenet32.tar"), _IMAGENET, 32),
    "folder": Set("A folder of images", (), (), ""),
    "npz": Set("A file of arrays", (), (), ""),
}
POINTED = ("folder", "npz", "celeba_hq", "imagenet32")  # a path may follow these: "folder:photos"
NAMES = tuple(name for name in SETS if name not in ("folder", "npz"))


def images(
    name: str | None, split: str = "train", *, size: int | None = None, classes: Sequence[int] | None = None,
    fallback: bool = False, root: str | Path | None = None, download: bool = True, timeout: float = 60.0,
) -> tuple[Tensor, Source]:  # fmt: skip
    """The set as uint8 (N, C, H, W) and its true name; None means CIFAR-10. `classes` keeps those with these labels.

    `name` is one of NAMES, "folder:PATH", "npz:PATH" (see `imagefiles.read_arrays`), or that of a .npz file in a folder
    that is searched. Photographs are cropped to the central square, then resized with antialiasing to `size` pixels; 28
    to 32 pads zeros. FileNotFoundError if the set is missing and cannot be downloaded, unless `fallback` puts
    Fashion-MNIST in its place. `root` replaces the search; a download ends after `timeout` seconds without data. One
    printed line says what was read, changed and left out, and whether it was verified.
    """
    name = "cifar10" if name is None else name
    kind, path = _parse(name, split, root)
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(f"size is {size!r}; it must be None or a whole number of pixels, at least 1")
    try:
        place = _locate(kind, path, split, root, download, timeout)
    except Missing as missing:
        if not fallback or kind == "fashion_mnist":
            raise
        stand_in = "train" if split in ("train", "all", "extra") else "test"
        x, source = images("fashion_mnist", stand_in, size=size, classes=classes, download=download, timeout=timeout)
        note = f"{SETS[kind].title} {missing.reason}: this run uses the bundled Fashion-MNIST instead."
        return x, source._replace(fallback=True, note=note)
    raw = imagefiles.read_set(kind, place, split)
    x, sha256, changes = _processed(raw, size or SETS[kind].size, kind)
    name = f"{kind}:{place.resolve()}" if ":" in name else name
    if classes is not None:
        x, name = x[of_classes(raw.labels, classes, name)], f"{name}[{','.join(map(str, classes))}]"
    kinds = {"changed": imagefiles.counted(changes), "left out": imagefiles.counted(raw.left_out or {})}
    note = f"{name}, split {split}: {len(x):,} images" + "".join(f"; {about}: {n}" for about, n in kinds.items() if n)
    note += f"; {raw.checked or 'not verified'}" * (raw.checked != "" or kind in NAMES)
    print(note, flush=True)
    return x, Source(name, split, note=note, sha256=sha256)


def of_classes(given: Tensor | None, classes: Sequence[int], name: str) -> Tensor:
    """Indices of the images with one of these labels; ValueError where a class has none."""
    if given is None or given.ndim != 1:
        raise ValueError(f"classes = {tuple(classes)}: {name} has no single label per image")
    there = given.unique().tolist()
    if not classes or {*classes} - {*there}:
        raise ValueError(f"classes = {tuple(classes)}: {name} has the classes {', '.join(map(str, there))}")
    return torch.isin(given, torch.tensor(list(classes))).nonzero()[:, 0]


def labels(name: str, split: str = "train", *, root: str | Path | None = None) -> Tensor:
    """Integer labels (N,), for CelebA the 40 attributes (N, 40) in {0, 1}, of a set that is already there.

    ValueError for a set without labels (LSUN, CelebA-HQ, folders), FileNotFoundError if it is missing.
    """
    kind, path = _parse(name, split, root)
    raw = imagefiles.read_set(kind, _locate(kind, path, split, root, False, 0.0), split)
    if raw.labels is None:
        raise ValueError(f"{name} has no labels")
    return raw.labels


def find(name: str, split: str = "train", root: str | Path | None = None) -> Path | None:
    """Path of the set: in the first of EBM_DATA, the checkout's data/ and the user's cache that has it, else None."""
    kind, path = _parse(name, split, root)
    if path:
        place = Path(path).expanduser()
        return place if place.exists() else None
    for folder in roots(root):
        for place in (*SETS[kind].places, f"{kind}.npz"):
            found = folder / place.format(split=split)
            if found.exists() and all(any(found.glob(part)) for part in _parts(kind, found)):
                return found
    return None


def held_out(name: str) -> str:
    """The split to judge on: the first of test, val and train that the set has."""
    kind, path = _parse(name, None)
    there = () if path else SETS[kind].splits
    if not there and (place := find(name, None)):
        there = imagefiles.splits(place)
    return next((split for split in ("test", "val") if split in there), "train")


def to_float(x: Tensor) -> Tensor:
    """Images as floats of torch's default type: uint8 as x / 127.5 - 1 in [-1, 1] (DRL, released code), or unscaled."""
    real = x.to(torch.get_default_dtype())
    return real / 127.5 - 1 if x.dtype == torch.uint8 else real


def to_bytes(x: Tensor) -> Tensor:
    """Images (N, C, H, W), float in [-1, 1] or uint8, as uint8: clamped and rounded, as a stored image is.

    A metric thus sees data and samples at the same precision. Values that are not finite, other types and other shapes
    are a ValueError.
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"images must have shape (N, 1, H, W) or (N, 3, H, W), got {tuple(x.shape)}.")
    if x.dtype == torch.uint8:
        return x
    if not x.is_floating_point():
        raise ValueError(f"images must be uint8 or float in [-1, 1], got {x.dtype}.")
    if not x.isfinite().all():
        raise ValueError(f"{int((~x.isfinite()).flatten(1).any(1).sum())} of {len(x)} images are not finite.")
    return ((x.detach() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def dequantized(x: Tensor, rng: torch.Generator | None = None) -> Tensor:
    """uint8 {0..255} to float32 in [-1, 1]: (x + u) / 128 - 1, u uniform in [0, 1), a cell 2 / 256 wide for each value.

    A density can be compared with these and not with the values themselves, where it has no bound.
    """
    return (x.float() + torch.rand(x.shape, generator=rng, device=x.device)) / 128 - 1


def cache_folder() -> Path:
    """The user's cache: $XDG_CACHE_HOME/ebmlib, else ~/.cache/ebmlib; OSError if there is no home folder either."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ebmlib"
    except RuntimeError:
        raise OSError("there is no home folder, and XDG_CACHE_HOME is not set") from None


def roots(root: str | Path | None = None) -> list[Path]:
    """The folders that are searched: `root`, or EBM_DATA, the checkout's data/ and the user's cache, in this order.

    A cache in a home that is not there or is closed to this user is left out.
    """
    if root:
        return [Path(root).expanduser()]
    own = os.environ.get("EBM_DATA")
    places = [*([Path(own).expanduser()] if own else []), CHECKOUT]
    with contextlib.suppress(OSError):
        (cache := cache_folder()).exists()
        places.append(cache)
    return places


class Missing(FileNotFoundError):
    """A set that is not here and cannot be downloaded; `reason` is the part that the banner repeats."""

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


def _parse(name: str, split: str | None, root: str | Path | None = None) -> tuple[str, str]:
    kind, colon, path = name.partition(":") if isinstance(name, str) else (repr(name), "", "")
    pointed = bool(path) and kind in POINTED if colon else kind not in ("folder", "npz")
    if not colon and kind not in SETS:
        files = [file for folder in roots(root) if (file := folder / f"{kind}.npz").is_file()]
        if files:
            return "npz", str(files[0])
    if kind not in SETS or not pointed:
        near = difflib.get_close_matches(kind.lower().replace("-", "_"), SETS, n=1, cutoff=0.5)
        hint = f" (did you mean {near[0] + ':PATH' * (near[0] in ('folder', 'npz'))}?)" if near else ""
        own = "folder:PATH, npz:PATH and the name of a .npz file in a data folder"
        raise ValueError(f"data set {name!r} is unknown{hint}; allowed are {', '.join(NAMES)}, {own}")
    allowed = SETS[kind].splits
    if allowed and split not in (*allowed, None):
        raise ValueError(f"split {split!r} of {kind} is unknown; allowed are {', '.join(allowed)}")
    return kind, path


def _parts(kind: str, place: Path) -> list[str]:
    """Patterns of files without which a folder is not the set."""
    if place.suffix == ".npz":
        return []
    if kind == "celeba":
        pictures = "img_align_celeba"
        return [*imagefiles.CELEBA_TABLES, pictures if (place / pictures).is_dir() else f"{pictures}.zip"]
    if kind == "mnist":  # packed or not
        return [file.removesuffix(".gz") + "*" for file in imagefiles.FASHION_SHA256]
    return list(imagefiles.FASHION_SHA256) if kind == "fashion_mnist" else []


def _locate(kind: str, path: str, split: str, root: str | Path | None, download: bool, timeout: float) -> Path:
    place = find(f"{kind}:{path}" if path else kind, split, root)
    if place is not None:
        return place
    if path:
        raise FileNotFoundError(f"{kind}:{path} names a file or folder that does not exist")
    spec, reason = SETS[kind], "is not on this machine"
    if download and kind in imagefiles.TORCHVISION:
        try:
            # Never into the checkout: a download must not look like a file of the repository.
            folder = Path(root or os.environ.get("EBM_DATA") or cache_folder()).expanduser()
            for file, md5, addresses in _remote_files(kind, split):
                fetch(addresses, folder / file, md5, timeout)
            return find(kind, split, root)
        except OSError as error:
            reason += f" and could not be downloaded ({one_line(error)})"
    put = " or ".join(p.format(split=split) for p in (*spec.places, f"{kind}.npz"))
    looked = ", ".join(map(str, roots(root)))
    message = f"{spec.title} (split {split}) {reason}: get it from {spec.origin} and put {put} into one of {looked}"
    raise Missing(message + ", or into a folder that EBM_DATA names", reason)


def _remote_files(kind: str, split: str) -> list[tuple[str, str, list[str]]]:
    """(path under the data folder, MD5, addresses) of each file; for CelebA, Google Drive ids are the addresses."""
    cls, place = imagefiles.torchvision_class(kind), SETS[kind].places[0]
    if kind in ("fashion_mnist", "mnist"):
        return [(f"{place}/{file}", md5, [mirror + file for mirror in cls.mirrors]) for file, md5 in cls.resources]
    if kind == "svhn":
        address, file, md5 = cls.split_list[split]
        return [(file, md5, [address])]
    if kind == "celeba":
        return [(f"{place}/{file}", md5, [drive_id]) for drive_id, md5, file in cls.file_list]
    return [(cls.filename, cls.tgz_md5, [cls.url])]


def _resized(x: Tensor, size: int | None) -> Tensor:
    """uint8 (N, C, H, W) to `size` pixels, bilinear with antialiasing; gray 28 to 32 is padded with the background."""
    if size is None or tuple(x.shape[-2:]) == (size, size):
        return x
    if tuple(x.shape[1:]) == (1, 28, 28) and size == 32:
        return torch.nn.functional.pad(x, (2, 2, 2, 2))  # zeros; resizing would blur every stroke
    return torch.nn.functional.interpolate(x, (size, size), mode="bilinear", antialias=True)


def _processed(raw: imagefiles.Raw, size: int | None, kind: str) -> tuple[Tensor, str, dict[str, int]]:
    """All images at `size` pixels (None: as they are), uint8 (N, C, H, W); their SHA-256 and the counts of changes.

    A large set is processed once into a .npy file in the cache, and mapped into memory, copy on write: the file stays.
    Without a cache that can be written, they are computed anew, with a warning. Other sets have no SHA-256.
    """
    if not raw.stamp:
        return torch.cat([_resized(chunk, size) for chunk in raw.chunks()]), "", {}
    key = hashlib.sha256(repr((2, kind, size, raw.stamp)).encode()).hexdigest()[:20]  # 2: version of the processing
    try:
        file = cache_folder() / "processed" / f"{kind}-{size or 'as-is'}-{key}.npy"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic(file) as draft:
                _write(raw, size, draft)
        x = np.load(file, mmap_mode="c")
        with open(file, "rb") as behind:
            behind.seek(x.offset + x.nbytes)
            about = json.load(behind)
        return torch.from_numpy(x), about["sha256"], about["changes"]
    except OSError as error:
        advice = "set XDG_CACHE_HOME to a folder that can be written"
        warnings.warn(f"the images are processed anew in every run ({one_line(error)}): {advice}", stacklevel=3)
    x = torch.cat([*_chunks(raw, size)])
    return x, hashlib.sha256(x.numpy().tobytes() + repr(tuple(x.shape)).encode()).hexdigest(), raw.changes


def _chunks(raw: imagefiles.Raw, size: int | None) -> Iterator[Tensor]:
    """The chunks at `size` pixels; ValueError where images differ in size, RuntimeError where some are missing."""
    shape, count = None, 0
    for chunk in raw.chunks():
        x = _resized(chunk, size)
        shape = shape or x.shape[1:]
        if x.shape[1:] != shape:
            raise ValueError(f"the images differ in size ({shape[1]} and {x.shape[2]} pixels): pass size")
        count += len(x)
        yield x
    if count != raw.n or not count:
        raise RuntimeError(f"{count} images were found where {raw.n or 'at least one'} should be")


def _write(raw: imagefiles.Raw, size: int | None, path: Path) -> None:
    """A .npy file, with its SHA-256 and the counts of changes as JSON behind the array."""
    # Plain writes, not a writable memory map: on a full disk a map kills the process where a write raises.
    total, shape = hashlib.sha256(), None
    with open(path, "wb") as file:
        for x in _chunks(raw, size):
            if shape is None:
                shape = (raw.n, *x.shape[1:])
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            rows = x.numpy().tobytes()  # row by row, whatever the strides
            total.update(rows)
            file.write(rows)
        total.update(repr(shape).encode())
        file.write(json.dumps({"sha256": total.hexdigest(), "changes": raw.changes}).encode())


def fetch(addresses: Sequence[str], file: Path, expected: str, timeout: float = 60.0) -> None:
    """Download a file from the first address that has it, unless it is there; it gets its name once its hash is right.

    expected: its SHA-256 or MD5. OSError if it cannot be had, or if a server sends nothing for `timeout` seconds (gdown
    waits for as long as Google Drive lets it); RuntimeError if another file has its name.
    """
    if file.exists():
        return imagefiles.verify(file, expected)
    print(f"Downloading {file.name} to {file.parent} (gives up after {timeout:g} s without data)", flush=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout)  # of new connections: an error where nothing comes for so long
    try:
        with atomic(file) as draft:
            _get(addresses, draft)
            if imagefiles.file_hash(draft, expected) != expected:
                raise OSError(f"{file.name} arrived damaged: its hash is not {expected}")
    finally:
        socket.setdefaulttimeout(before)


def _get(addresses: Sequence[str], path: Path) -> None:
    for address in addresses:
        try:
            if "://" in address:
                return torch.hub.download_url_to_file(address, str(path), progress=False)
            gdown = imagefiles.need("gdown", "the download")
            return gdown.download(id=address, output=str(path), quiet=True, use_cookies=False)
        except Exception as error:  # gdown has exceptions of its own
            if address == addresses[-1]:
                raise OSError(one_line(error)) from error
