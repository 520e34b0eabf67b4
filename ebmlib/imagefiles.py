"""Image sets in the formats they are published in: check, parse, crop, resize, and keep large ones processed.

A reader returns a `Raw`; nothing here searches or downloads (that is `data`).
"""

import gzip
import hashlib
import importlib
import io
import pickle
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ebmlib.files import atomic

FASHION_SHA256 = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
# torchvision's classes, which hold addresses and MD5 sums.
TORCHVISION = {
    "fashion_mnist": "FashionMNIST", "mnist": "MNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100",
    "svhn": "SVHN", "celeba": "CelebA",
}  # fmt: skip
CELEBA_TABLES = ("list_eval_partition.txt", "list_attr_celeba.txt")
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
Reader = Callable[[], bytes]


class Raw(NamedTuple):
    """A set as its files hold it: `chunks()` yields uint8 (k, C, H, W), n images in all.

    `stamp` names the files' states if the set is large and should be processed once, and is empty otherwise.
    """

    n: int
    chunks: Callable[[], Iterator[Tensor]]
    labels: Tensor | None = None
    stamp: tuple = ()


def read_set(kind: str, place: Path, split: str) -> Raw:
    """The set of that kind at `place`; RuntimeError names a damaged file, or a missing package."""
    if kind == "fashion_mnist":  # without torchvision, whose import takes a second: every notebook starts here
        return _read_idx(place, split, FASHION_SHA256)
    if kind.startswith("lsun"):
        return _read_lsun(place)
    if kind not in TORCHVISION:  # a folder or an archive
        batches = _batches(place, split) if kind == "imagenet32" else {}
        return _read_batches(place, batches) if batches else _read_pictures(place, _of_split(place, split))
    cls = torchvision_class(kind)
    if kind == "mnist":
        return _read_idx(place, split, dict(cls.resources))
    if kind == "celeba":
        return _read_celeba(cls, place, split)
    if kind == "svhn":
        need("scipy", "SVHN")
        verify(place, cls.split_list[split][2])
        data = cls(place.parent, split=split)
        return _whole(data.data, data.labels)
    return _read_cifar(cls, place, split)


def file_hash(path: Path, like: str) -> str:
    """SHA-256 or MD5 of a file in hexadecimal, whichever has the length of `like`."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256" if len(like) == 64 else "md5").hexdigest()


def verify(path: Path, expected: str) -> None:
    """RuntimeError that names the file if its hash is another one, FileNotFoundError if it is not there."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing")
    if file_hash(path, expected) != expected:
        name = "SHA-256" if len(expected) == 64 else "MD5"
        raise RuntimeError(f"{path} is damaged: its {name} is not {expected}; delete it and get it again")


def one_line(error: BaseException) -> str:
    """What an exception says, without line breaks and the final dot."""
    inner = getattr(error, "reason", None)  # urllib wraps what really happened
    text = str(inner if isinstance(inner, BaseException) else error) or type(error).__name__
    return " ".join(text.split()).rstrip(".")


def need(package: str, what: str) -> Any:
    """The optional package, or a RuntimeError with its install line."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError:
        raise RuntimeError(f"{what} needs the package {package}: pip install 'ebmlib[data]'") from None


def torchvision_class(kind: str) -> Any:
    """torchvision's class of a data set."""
    return getattr(importlib.import_module("torchvision.datasets"), TORCHVISION[kind])


def _whole(x, y) -> Raw:
    x = torch.as_tensor(np.ascontiguousarray(x))
    return Raw(len(x), lambda: iter([x]), torch.as_tensor(y, dtype=torch.long))


def _read_idx(place: Path, split: str, hashes: Mapping[str, str]) -> Raw:
    # Read directly: torchvision would first unpack 55 MB.
    part = "train" if split == "train" else "t10k"
    arrays = []
    for file, header in ((f"{part}-images-idx3-ubyte.gz", 16), (f"{part}-labels-idx1-ubyte.gz", 8)):
        verify(place / file, hashes[file])
        arrays.append(np.frombuffer(gzip.decompress((place / file).read_bytes()), np.uint8, offset=header).copy())
    return _whole(arrays[0].reshape(-1, 1, 28, 28), arrays[1])


def _read_cifar(cls, place: Path, split: str) -> Raw:
    with tempfile.TemporaryDirectory() as scratch:
        root = place.parent
        if place.is_file():
            verify(place, cls.tgz_md5)
            root = Path(scratch)
            shutil.unpack_archive(place, root, filter="data")
        for file, md5 in [*cls.train_list, *cls.test_list, (cls.meta["filename"], cls.meta["md5"])]:
            verify(root / cls.base_folder / file, md5)
        data = cls(root, train=split == "train")
    return _whole(data.data.transpose(0, 3, 1, 2), data.targets)


def _read_celeba(cls, place: Path, split: str) -> Raw:
    # Not torchvision's reader, which insists on unpacked pictures: they are read straight from the zip.
    archive, folder = place / "img_align_celeba.zip", place / "img_align_celeba"
    where = folder if folder.is_dir() else archive
    md5 = {file: md5 for _, md5, file in cls.file_list}
    for file in (*CELEBA_TABLES, *([archive.name] if where == archive else [])):
        verify(place / file, md5[file])
    parts, attributes = ([line.split() for line in (place / file).read_text().splitlines()] for file in CELEBA_TABLES)
    number = {"train": "0", "valid": "1", "test": "2"}.get(split)  # None: all
    names = [name for name, part in parts if number in (part, None)]
    values = {name: row for name, *row in attributes[2:]}  # after their count and their names
    members = {Path(name).name: (name, get) for name, get in _entries(where, IMAGE_ENDINGS)}
    if lost := [name for name in names if name not in members]:
        raise RuntimeError(f"{where} is incomplete: {lost[0]} is not in it")
    labels = torch.tensor([[value == "1" for value in values[name]] for name in names]).long()
    return _read_pictures(where, dict(members[name] for name in names))._replace(labels=labels)


def _read_lsun(place: Path) -> Raw:
    # Not torchvision's reader: it pickles its list of keys into the current folder and trusts such a file next time.
    lmdb = need("lmdb", "LSUN")
    opened = partial(lmdb.open, str(place), readonly=True, lock=False, readahead=False, meminit=False)
    try:
        with opened() as base:
            n = base.stat()["entries"]
    except lmdb.Error as error:
        raise RuntimeError(f"{place} cannot be read as an LMDB folder: {one_line(error)}") from None

    def chunks():
        with opened() as base, base.begin() as transaction:
            for key, value in transaction.cursor():
                yield _picture(lambda value=value: bytes(value), f"{place}:{key.decode(errors='replace')}")

    return Raw(n, chunks, stamp=_stamp(place / "data.mdb"))


def _read_pictures(place: Path, members: Mapping[str, Reader]) -> Raw:
    if not members:
        raise FileNotFoundError(f"{place} holds no images ({', '.join(IMAGE_ENDINGS)})")
    between = "/" if place.is_dir() else ":"
    chunks = lambda: (_picture(get, f"{place}{between}{name}") for name, get in members.items())
    return Raw(len(members), chunks, stamp=_stamp_of(place, members))


def _picture(get: Reader, name: str) -> Tensor:
    """An encoded image as uint8 (1, 3, s, s): upright, RGB, the central square of the shorter side s."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(get())) as image:
            if image.mode[0] in "IF":  # PIL clips these to white without a word
                raise ValueError(f"its pixels are of mode {image.mode}, 8 bits a channel are wanted")
            image = ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # decoders raise nearly anything on a damaged file
        raise RuntimeError(f"{name} cannot be read as an image: {one_line(error)}") from None
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2  # CelebA, 178 x 218: rows 20 to 197
    pixels = np.array(image.crop((left, top, left + side, top + side)))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def _of_split(place: Path, split: str) -> dict[str, Reader]:
    """The images under train/, val/, ... if there is such a part; without one, all images are "train"."""
    members = dict(_entries(place, IMAGE_ENDINGS))
    chosen = {name: get for name, get in members.items() if split in Path(name).parts[:2]}
    if not chosen and split != "train":
        raise ValueError(f"{place} has no split {split!r}: put its images into a folder {split}/ there, or use train")
    return chosen or members


def _entries(place: Path, endings: tuple[str, ...] = ("",)) -> Iterator[tuple[str, Reader]]:
    """(name, reader) of every file in a folder, .zip or .tar, sorted by name; hidden files are left out."""
    try:
        if place.is_dir():
            names = (file.relative_to(place).as_posix() for file in place.rglob("*") if file.is_file())
            found = [(name, (place / name).read_bytes) for name in names]
        elif place.suffix == ".zip":
            archive = zipfile.ZipFile(place)
            found = [(m.filename, lambda m=m: archive.read(m)) for m in archive.infolist() if not m.is_dir()]
        else:
            tar = tarfile.open(place, "r:")  # noqa: SIM115 (its readers come later)
            found = [(m.name, lambda m=m: tar.extractfile(m).read()) for m in tar if m.isfile()]
    except (zipfile.BadZipFile, tarfile.TarError) as error:
        raise RuntimeError(f"{place} cannot be read as a folder, .zip or plain .tar: {one_line(error)}") from None
    for name, get in sorted(found, key=lambda f: f[0]):
        hidden = any(part.startswith((".", "__MACOSX")) and part != "." for part in Path(name).parts)
        if name.lower().endswith(endings) and not hidden:
            yield name, get


def _batches(place: Path, split: str) -> dict[str, Reader]:
    """Downsampled ImageNet: train_data_batch_1 to 10 in the order of their numbers, or val_data; .npz or pickle."""
    pattern = re.compile(r"train_data_batch_(\d+)(\.npz)?" if split == "train" else r"val_data()(\.npz)?")
    found = [(pattern.fullmatch(Path(name).name), name, get) for name, get in _entries(place)]
    numbered = sorted(((int(m[1] or 0), name, get) for m, name, get in found if m), key=lambda f: f[:2])
    return {name: get for _, name, get in numbered}


def _read_batches(place: Path, batches: Mapping[str, Reader]) -> Raw:
    y = np.concatenate([_batch(place, name, get)[1] for name, get in batches.items()])
    pictures = lambda name, get: torch.from_numpy(_batch(place, name, get)[0].reshape(-1, 3, 32, 32))
    chunks = lambda: (pictures(name, get) for name, get in batches.items())
    # Labels count from 1 in these files.
    return Raw(len(y), chunks, torch.from_numpy(y.astype(np.int64)) - 1, _stamp_of(place, batches))


def _batch(place: Path, name: str, get: Reader) -> tuple[np.ndarray, np.ndarray]:
    try:
        content = io.BytesIO(get())
        npz = name.endswith(".npz")
        batch = np.load(content, allow_pickle=False) if npz else _ArraysOnly(content, encoding="latin1").load()
        x, y = batch["data"], np.asarray(batch["labels"])
        if x.dtype != np.uint8 or x.shape != (len(y), 3072):
            raise ValueError(f"{x.dtype} {x.shape} with {len(y)} labels, uint8 (N, 3072) is expected")
    except Exception as error:  # a damaged pickle raises nearly anything
        raise RuntimeError(f"{place}: {name} cannot be read as a batch of images: {one_line(error)}") from None
    return x, y


class _ArraysOnly(pickle.Unpickler):
    """Unpickles plain values and NumPy arrays; anything else in a file could run code, and is refused."""

    arrays = frozenset({"_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer"})

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) != ("_codecs", "encode") and (module.split(".")[0] != "numpy" or name not in self.arrays):
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is not a NumPy array")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def resized(x: Tensor, size: int | None) -> Tensor:
    """uint8 (N, C, H, W) to `size` pixels, bilinear with antialiasing; gray 28 to 32 is padded with the background."""
    if size is None or tuple(x.shape[-2:]) == (size, size):
        return x
    if tuple(x.shape[1:]) == (1, 28, 28) and size == 32:
        return torch.nn.functional.pad(x, (2, 2, 2, 2))  # zeros; resizing would blur every stroke
    return torch.nn.functional.interpolate(x, (size, size), mode="bilinear", antialias=True)


def processed(raw: Raw, size: int | None, folder: Path, kind: str) -> Tensor:
    """All images of a set at `size` pixels (None: as they are), uint8 (N, C, H, W).

    A large set is processed once into a .npy file in `folder` and mapped into memory, copy on write: the file stays.
    """
    if not raw.stamp:
        return torch.cat([resized(chunk, size) for chunk in raw.chunks()])
    key = hashlib.sha256(repr((1, kind, size, raw.stamp)).encode()).hexdigest()[:20]  # 1: version of the processing
    file = folder / f"{kind}-{size or 'as-is'}-{key}.npy"
    if not file.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with atomic(file) as draft:
                _write(raw, size, draft)
        except OSError as error:
            raise RuntimeError(f"{file} cannot be written ({one_line(error)}): set XDG_CACHE_HOME elsewhere") from None
    return torch.from_numpy(np.load(file, mmap_mode="c"))


def _write(raw: Raw, size: int | None, path: Path) -> None:
    # Plain writes, not a writable memory map: on a full disk a map kills the process where a write raises.
    shape, written = None, 0
    with open(path, "wb") as file:
        for chunk in raw.chunks():
            x = resized(chunk, size).numpy()
            if shape is None:
                shape = x.shape[1:]
                header = {"descr": "|u1", "fortran_order": False, "shape": (raw.n, *shape)}
                np.lib.format.write_array_header_1_0(file, header)
            if x.shape[1:] != shape:
                raise ValueError(f"the images differ in size ({shape[1]} and {x.shape[2]} pixels): pass size")
            file.write(x.tobytes())  # tobytes: row by row, whatever the strides
            written += len(x)
    if written != raw.n or not written:
        raise RuntimeError(f"{written} images were found where {raw.n or 'at least one'} should be")


def _stamp(*paths: Path) -> tuple:
    return tuple((str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in paths)


def _stamp_of(place: Path, members: Mapping[str, Reader]) -> tuple:
    """The state of files in a folder, or of the archive that holds them."""
    return (*_stamp(*([place / name for name in members] if place.is_dir() else [place])), tuple(members))
