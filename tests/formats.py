"""Writers of tiny image sets in the formats they are published in. Each returns the hash table that its files have."""

import gzip
import hashlib
import io
import pickle
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ebmlib import imagefiles


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(height, width, seed=0):
    """A picture without fine detail, so that two correct antialiased resizes agree within rounding."""
    y, x = np.mgrid[:height, :width] / 40.0
    planes = [np.sin(x * (k + 1) + seed) + np.cos(y * (2 - k / 2)) for k in range(3)]
    return (np.stack(planes, -1) * 60 + 127).astype(np.uint8)


def encoded(pixels, kind="PNG", **options):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, kind, **({"lossless": True} if kind == "WEBP" else {}), **options)
    return content.getvalue()


def decoded(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def hashes(kind, *paths):
    return {Path(p).name: hashlib.new(kind, Path(p).read_bytes()).hexdigest() for p in paths}


md5, sha256 = partial(hashes, "md5"), partial(hashes, "sha256")


def known(monkeypatch, kind, found):
    """Let the tables of hashes of a set hold these of tiny files (name to MD5, SHA-256 for Fashion-MNIST).

    For MNIST `found` is the files' paths: its table has the hashes of what they hold.
    """
    if kind == "fashion_mnist":
        monkeypatch.setattr(imagefiles, "FASHION_SHA256", found)
        return
    cls = imagefiles.torchvision_class(kind)
    new = lambda file, md5: found.get(file, md5)
    if kind == "mnist":
        unpacked = {Path(p).stem: hashlib.md5(gzip.decompress(Path(p).read_bytes())).hexdigest() for p in found}
        monkeypatch.setattr(imagefiles, "MNIST_MD5", unpacked)
        found = md5(*found)
        table = {"resources": [(f, new(f, md5)) for f, md5 in cls.resources]}
    elif kind == "svhn":
        table = {"split_list": {k: [url, f, new(f, md5)] for k, (url, f, md5) in cls.split_list.items()}}
    elif kind == "celeba":
        table = {"file_list": [(drive_id, new(f, md5), f) for drive_id, md5, f in cls.file_list]}
    else:
        table = {part: [[f, new(f, md5)] for f, md5 in getattr(cls, part)] for part in ("train_list", "test_list")}
        table["tgz_md5"] = new(cls.filename, cls.tgz_md5)
        table["meta"] = {**cls.meta, "md5": new(cls.meta["filename"], cls.meta["md5"])}
    for name, value in table.items():
        monkeypatch.setattr(cls, name, value)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def idx(folder, sets):
    """Gzipped IDX files of {"train": (x, y), "t10k": (x, y)}: magic 0x803 or 0x801, big-endian sizes, bytes."""
    for part, (x, y) in sets.items():
        header = np.array([0x803, *x.shape], ">i4").tobytes()
        write(folder / f"{part}-images-idx3-ubyte.gz", gzip.compress(header + x.tobytes()))
        labels = np.array([0x801, len(y)], ">i4").tobytes() + bytes(y)
        write(folder / f"{part}-labels-idx1-ubyte.gz", gzip.compress(labels))
    return sorted(folder.glob("*.gz"))


def cifar(root, batches, meta, archive):
    """Pickled batches {file: (x (n, 3, 32, 32), labels, label key)} in their folder, packed as .tar.gz as well."""
    folder = root / meta[0]
    files = []
    for name, (x, y, key) in batches.items():
        entry = {"batch_label": name, key: list(y), "data": x.reshape(len(x), 3072), "filenames": ["x.png"] * len(x)}
        files.append(write(folder / name, pickle.dumps(entry, protocol=2)))
    files.append(write(folder / meta[1], pickle.dumps({meta[2]: ["a", "b", "c"]}, protocol=2)))
    with tarfile.open(root / archive, "w:gz") as tar:
        tar.add(folder, arcname=meta[0])
    return md5(*files, root / archive)


def svhn(root, split, x, y):
    """The cropped digits' .mat: X is (32, 32, 3, n), y is (n, 1) with 10 for the digit zero."""
    from scipy.io import savemat

    root.mkdir(parents=True, exist_ok=True)
    path = root / f"{split}_32x32.mat"
    savemat(path, {"X": np.ascontiguousarray(x.transpose(2, 3, 1, 0)), "y": np.array(y, np.uint8)[:, None]})
    return md5(path)


def celeba(folder, pictures, parts, attributes):
    """The zip of JPEG pictures {name: bytes} and the five tables; `parts` are 0, 1, 2 for train, valid, test."""
    names = list(pictures)
    packed(folder / "img_align_celeba.zip", {f"img_align_celeba/{name}": pictures[name] for name in names})

    def table(file, rows, head=()):
        lines = [*head, *(" ".join([name, *map(str, row)]) for name, row in zip(names, rows))]
        write(folder / file, ("\n".join(lines) + "\n").encode())

    n = len(names)
    table("list_eval_partition.txt", [[p] for p in parts])
    table("identity_CelebA.txt", [[k + 1] for k in range(n)])
    table("list_bbox_celeba.txt", [[1, 2, 3, 4]] * n, [str(n), "image_id x_1 y_1 width height"])
    table("list_landmarks_align_celeba.txt", [range(10)] * n, [str(n), " ".join(f"p{k}" for k in range(10))])
    table("list_attr_celeba.txt", attributes, [str(n), " ".join(f"a{k}" for k in range(len(attributes[0])))])
    return md5(*folder.iterdir())


def lsun(folder, pictures):
    import lmdb

    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=1 << 24) as base, base.begin(write=True) as transaction:
        for key, content in pictures.items():
            transaction.put(key.encode(), content)


def packed(path, files):
    """{name: bytes} as a .zip or .tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w") as tar:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def npz(x, y):
    content = io.BytesIO()
    np.savez(content, data=x.reshape(len(x), 3072), labels=np.array(y), mean=x.mean(0).ravel())
    return content.getvalue()
