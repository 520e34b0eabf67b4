"""Image sets in the formats they are published in: check, parse, crop.

A reader returns a `Raw`; nothing here searches, downloads or resizes (that is `data`).
"""

import gzip
import hashlib
import importlib
import io
import os
import pickle
import re
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ebmlib.files import one_line

FASHION_SHA256 = {
    "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
}
TORCHVISION = {
    "fashion_mnist": "FashionMNIST", "mnist": "MNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100",
    "svhn": "SVHN", "celeba": "CelebA",
}  # fmt: skip
CELEBA_TABLES = ("list_eval_partition.txt", "list_attr_celeba.txt")
MNIST_MD5 = {  # of the unpacked files: their .gz files differ by when and by what they were packed
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff")
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
Reader = Callable[[], bytes]


class Raw(NamedTuple):
    """A set as its files hold it: `chunks()` yields uint8 (k, C, H, W), n images in all.

    `stamp` names the files' states if the set is large and should be processed once, and is empty otherwise. `changes`
    counts, by kind, the images that `chunks` changed, and `left_out` the files of a folder that are not among them.
    """

    n: int
    chunks: Callable[[], Iterator[Tensor]]
    labels: Tensor | None = None
    stamp: tuple = ()
    changes: Mapping[str, int] | None = None
    left_out: Mapping[str, int] | None = None
    checked: str = ""  # how the files are known to be the set


def read_set(kind: str, place: Path, split: str) -> Raw:
    """The set of that kind at `place`; RuntimeError names a damaged file, or a missing package."""
    if place.suffix == ".npz":
        return read_arrays(place, split)
    if kind == "fashion_mnist":  # without torchvision, whose import takes a second: every notebook starts here
        return _read_idx(place, split, FASHION_SHA256)
    if kind.startswith("lsun"):
        return _read_lsun(place)
    if kind not in TORCHVISION:  # a folder or an archive
        batches = _batches(place, split) if kind == "imagenet32" else {}
        return _read_batches(place, batches) if batches else _read_pictures(place, *_of_split(place, split))
    cls = torchvision_class(kind)
    if kind == "mnist":
        return _read_idx(place, split, MNIST_MD5)
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
    if file_hash(path, expected) != expected:
        name = "SHA-256" if len(expected) == 64 else "MD5"
        raise RuntimeError(f"{path} is damaged: its {name} is not {expected}; delete it and get it again")


def need(package: str, what: str) -> Any:
    """The optional package, or a RuntimeError with its install line."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError:
        raise RuntimeError(f"{what} needs the package {package}: pip install 'ebmlib[data]'") from None


def torchvision_class(kind: str) -> Any:
    """torchvision's class of a data set, which holds its addresses and MD5 sums."""
    return getattr(importlib.import_module("torchvision.datasets"), TORCHVISION[kind])


def _whole(x, y, checked: str = "verified by the published hashes of its files") -> Raw:
    x = torch.as_tensor(np.ascontiguousarray(x))
    return Raw(len(x), lambda: iter([x]), None if y is None else torch.as_tensor(y, dtype=torch.long), checked=checked)


def read_arrays(place: Path, split: str) -> Raw:
    """A split of a .npz file: `<split>_images` uint8 (N, H, W) or (N, H, W, C), C 1 or 3, and `<split>_labels` (N, ..).

    Labels are whole numbers, and may be missing. ValueError in one sentence for anything else.
    """
    try:
        with np.load(place, allow_pickle=False) as held:
            found = {key: held[key] for key in (f"{split}_images", f"{split}_labels") if key in held}
    except Exception as error:  # a damaged file raises nearly anything
        raise RuntimeError(f"{place} cannot be read as a .npz file of arrays: {one_line(error)}") from None
    if f"{split}_images" not in found:
        there = ", ".join(splits(place)) or "none"
        raise ValueError(f"{place} has no split {split!r}, no array {split}_images; its splits: {there}")
    x, y = found[f"{split}_images"], found.get(f"{split}_labels")
    x = x[..., None] if x.ndim == 3 else x
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[3] not in (1, 3) or not len(x):
        given = f"{x.dtype} {found[f'{split}_images'].shape}"
        raise ValueError(f"{split}_images of {place} is {given}; uint8 (N, H, W) or (N, H, W, C), C 1 or 3, is needed")
    if y is not None and (y.dtype.kind not in "iu" or len(y) != len(x)):
        raise ValueError(f"{split}_labels of {place} is {y.dtype} {y.shape}; {len(x)} whole numbers are needed")
    return _whole(x.transpose(0, 3, 1, 2), y, f"arrays of {place.name}, not verified")


def _read_idx(place: Path, split: str, hashes: Mapping[str, str]) -> Raw:
    # Read directly: torchvision would first unpack 55 MB.
    part = "train" if split == "train" else "t10k"
    arrays = []
    for file, header in ((f"{part}-images-idx3-ubyte", 16), (f"{part}-labels-idx1-ubyte", 8)):
        packed, path = place / f"{file}.gz", place / file
        if packed.name in hashes:
            verify(packed, hashes[packed.name])
        try:
            held = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
        except (OSError, EOFError, zlib.error):
            held = b""
        if file in hashes and hashlib.md5(held).hexdigest() != hashes[file]:
            where = path if path.exists() else packed
            raise RuntimeError(f"{where} is damaged: the MD5 of its content is not {hashes[file]}; get it again")
        arrays.append(np.frombuffer(held, np.uint8, offset=header).copy())
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
    members = {Path(name).name: (name, get) for name, get in _files(where) if get}
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

    changes: Counter[str] = Counter()

    def chunks():
        with opened() as base, base.begin() as transaction:
            encoded = ((key.decode(errors="replace"), partial(bytes, value)) for key, value in transaction.cursor())
            yield from _pictures(encoded, f"{place}:", changes)

    return Raw(n, chunks, stamp=_stamp(place / "data.mdb"), changes=changes)


def _read_pictures(place: Path, members: Mapping[str, Reader], left_out: Counter[str] | None = None) -> Raw:
    changes: Counter[str] = Counter()
    chunks = partial(_pictures, members.items(), f"{place}{'/' if place.is_dir() else ':'}", changes)
    return Raw(len(members), chunks, None, _stamp(place, members), changes, left_out)


def _pictures(encoded: Iterable[tuple[str, Reader]], where: str, changes: Counter[str]) -> Iterator[Tensor]:
    """Decode (name, reader) pairs; RuntimeError at the end counts those that are unreadable and names the first."""
    changes.clear()
    unreadable, count = [], 0
    for name, get in encoded:
        count += 1
        try:
            picture = _picture(get, changes)
        except Exception as error:  # decoders raise nearly anything on a damaged file
            unreadable.append(f"{where}{name} ({one_line(error)})")
            continue
        yield picture
    if unreadable:
        first = ", ".join(unreadable[:3]) + ", ..." * (len(unreadable) > 3)
        raise RuntimeError(f"{len(unreadable)} of {count} files cannot be read as images: {first}")


def _picture(get: Reader, changes: Counter[str]) -> Tensor:
    """An encoded image as uint8 (1, 3, s, s): upright, RGB on white, the central square of the shorter side s."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(get())) as image:
        if image.mode[0] in "IF":  # PIL clips these to white without a word
            raise ValueError(f"its pixels are of mode {image.mode}, 8 bits per channel are needed")
        changes["with several frames (the first is read)"] += getattr(image, "n_frames", 1) > 1
        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            changes["with transparency (put on white)"] += image.getextrema()[3][0] < 255
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
    side = min(image.size)
    changes["cropped to the central square"] += max(image.size) > side
    left, top = (image.width - side) // 2, (image.height - side) // 2  # CelebA, 178 x 218: rows 20 to 197
    pixels = np.array(image.crop((left, top, left + side, top + side)))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def splits(place: Path) -> Iterable[str]:
    """The splits that there are in a .npz file, or in a folder or archive (see `by_split`)."""
    if place.suffix != ".npz":
        return by_split(place)[0]
    with np.load(place, allow_pickle=False) as held:
        return [name.removesuffix("_images") for name in held.files if name.endswith("_images")]


def _of_split(place: Path, split: str) -> tuple[dict[str, Reader], Counter[str]]:
    """The images of a split, and what else is in a folder or archive, counted by kind."""
    images, left_out = by_split(place)
    wanted = SPLIT_FOLDERS.get(split.lower(), split)
    for other in (split for split in images if split != wanted):
        left_out[f"of split {other}" if other else "beside the folders of the splits"] = len(images[other])
    if not images:
        there = f", only {counted(left_out)}" * bool(left_out)
        raise FileNotFoundError(f"{place} holds no images ({', '.join(IMAGE_ENDINGS)}){there}")
    if wanted not in images:
        raise ValueError(f"{place} has no split {split!r} ({counted(left_out)}): put its images into {split}/ there")
    return images[wanted], left_out


def by_split(place: Path) -> tuple[dict[str, dict[str, Reader]], Counter[str]]:
    """The images of a folder, .zip or .tar by split (train, val, test, or "": none), and its other files by kind.

    Folders with a name of SPLIT_FOLDERS, in any case, are splits if one of them is val or test. They are in `place`, or
    in a folder there that holds all. Without a training folder the other images are for training; beside one, for none.
    """
    images, left_out = {}, Counter()
    for name, get in _files(place):
        if get is None:
            left_out["broken links or special files"] += 1
        elif any(part.startswith((".", "__MACOSX")) for part in Path(name).parts):
            left_out["hidden"] += 1
        elif name.lower().endswith(IMAGE_ENDINGS):
            left_out["replaced by a later file of the same name"] += name in images
            images[name] = get
        else:
            left_out[Path(name).suffix.lower() or "without an ending"] += 1
    folders = [Path(name).parts[:-1] for name in images]
    around = os.path.commonprefix(folders)  # noqa: RUF071 (tuples: the folders that hold all, as in many archives)
    level = next((i for i, part in enumerate(around) if part.lower() in SPLIT_FOLDERS), len(around))
    found = [SPLIT_FOLDERS.get("".join(parts[level : level + 1]).lower(), "") for parts in folders]
    are_splits = "val" in found or "test" in found  # else a folder called train is a class like the others
    rest, split_images = "" if are_splits and "train" in found else "train", {}
    for (name, get), split in zip(images.items(), found, strict=True):
        split_images.setdefault((are_splits and split) or rest, {})[name] = get
    return split_images, left_out


def counted(kinds: Mapping[str, int] | None) -> str:
    """Counts as a part of a sentence: "12 .txt, 1 hidden"."""
    return ", ".join(f"{n:,} {kind}" for kind, n in (kinds or {}).items() if n)


def _files(place: Path) -> list[tuple[str, Reader | None]]:
    """(name, reader) of all in a folder, .zip or .tar but folders, sorted by name; no reader where it is no file."""
    try:
        if place.is_dir():
            named = ((path.relative_to(place).as_posix(), path) for path in _walk(place))
            found = [(name, path.read_bytes if path.is_file() else None) for name, path in named]
        elif place.suffix.lower() == ".zip":
            archive = zipfile.ZipFile(place)
            found = [(m.filename, partial(archive.read, m)) for m in archive.infolist() if not m.is_dir()]
        else:
            tar = tarfile.open(place, "r:")  # noqa: SIM115 (its readers come later)
            read = lambda m: tar.extractfile(m).read()
            found = [(m.name, partial(read, m) if m.isfile() or m.islnk() else None) for m in tar if not m.isdir()]
    except (OSError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise RuntimeError(f"{place} cannot be read as a folder, .zip or plain .tar: {one_line(error)}") from None
    return sorted(found, key=lambda f: f[0])


def _walk(place: Path) -> Iterator[Path]:
    """All that is below a folder but folders; linked folders are entered last and each only once, so loops end."""
    seen, places = set(), [place]
    for start in places:  # grows by the linked folders
        for folder, inner, files in os.walk(start):
            if os.path.realpath(folder) in seen:
                inner.clear()
                continue
            seen.add(os.path.realpath(folder))
            places += [path for name in inner if (path := Path(folder, name)).is_symlink()]
            yield from (Path(folder, name) for name in files)


def _batches(place: Path, split: str) -> dict[str, Reader]:
    """Downsampled ImageNet: train_data_batch_1 to 10 in the order of their numbers, or val_data; .npz or pickle."""
    pattern = re.compile(r"train_data_batch_(\d+)(\.npz)?" if split == "train" else r"val_data()(\.npz)?")
    found = [(pattern.fullmatch(Path(name).name), name, get) for name, get in _files(place) if get]
    numbered = sorted(((int(m[1] or 0), name, get) for m, name, get in found if m), key=lambda f: f[:2])
    if split == "train" and [number for number, *_ in numbered] != [*range(1, len(numbered) + 1)]:
        raise RuntimeError(f"{place} must hold train_data_batch_1, 2, ... once each, not {[n for n, *_ in numbered]}")
    return {name: get for _, name, get in numbered}


def _read_batches(place: Path, batches: Mapping[str, Reader]) -> Raw:
    y = np.concatenate([_batch(place, name, get)[1] for name, get in batches.items()])
    pictures = lambda name, get: torch.from_numpy(_batch(place, name, get)[0].reshape(-1, 3, 32, 32))
    chunks = lambda: (pictures(name, get) for name, get in batches.items())
    # Labels count from 1 in these files.
    return Raw(len(y), chunks, torch.from_numpy(y.astype(np.int64)) - 1, _stamp(place, batches))


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


def _stamp(place: Path, members: Iterable[str] = ()) -> tuple:
    """The state of files in a folder, or of the archive or data base that holds them."""
    states = ((path, path.stat()) for path in ([place / name for name in members] if place.is_dir() else [place]))
    # The change time as well: another picture may have the size and the modification time of the one it replaces.
    return (*((str(p.resolve()), s.st_size, s.st_mtime_ns, s.st_ctime_ns) for p, s in states), *members)
