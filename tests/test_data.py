"""Each loader on a tiny set in its true format: pixels, crops, hashes, and what happens without the set."""

import gzip
import hashlib
import http.server
import os
import pickle
import re
import shutil
import socket
import sys
import threading
import time
from pathlib import Path

import formats
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from ebmlib import data, imagefiles
from ebmlib.metrics import images as metrics
from ebmlib.metrics.features import weights_of


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty home and checkout, so that no test sees or touches the user's cache."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("EBM_DATA", raising=False)
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    return tmp_path


@pytest.fixture
def away(home, monkeypatch):
    """Every address of CIFAR-10 and SVHN is a loopback port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/"
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", address + "cifar-10-python.tar.gz")
    table = {k: [address + f, f, h] for k, (_, f, h) in torchvision.datasets.SVHN.split_list.items()}
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", table)
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [address, address])
    return address


def same(x, expected):
    assert x.dtype == torch.uint8
    np.testing.assert_array_equal(x.numpy(), expected)


def sentence(caught, *parts):
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert str(part) in text
    return text


@pytest.mark.parametrize(("split", "part", "n"), [("train", "train", 60000), ("test", "t10k", 10000)])
def test_bundled_set_agrees_with_torchvision(home, split, part, n):
    raw = home / "images"
    raw.write_bytes(gzip.decompress((data.CHECKOUT / f"fashion-mnist/{part}-images-idx3-ubyte.gz").read_bytes()))
    x, source = data.images("fashion_mnist", split)
    same(x, torchvision.datasets.mnist.read_image_file(str(raw))[:, None].numpy())
    assert source._replace(note="") == data.Source("fashion_mnist", split)
    assert source.note.endswith("verified by the published hashes of its files")
    assert data.labels("fashion_mnist", split).bincount().tolist() == [n // 10] * 10


def test_readme_states_the_hashes_that_are_checked():
    table = dict(re.findall(r"`(\S+\.gz)` \|.*`([0-9a-f]{64})`", (data.CHECKOUT / "README.md").read_text()))
    assert table == imagefiles.FASHION_SHA256
    assert {path.name for path in (data.CHECKOUT / "fashion-mnist").iterdir()} == {*table, "LICENSE"}


def tiny_idx(folder):
    x, y = formats.noise(5, 28, 28), [3, 0, 9, 1, 1]
    return x, y, formats.idx(folder, {"train": (x, y), "t10k": (x[:2] + 1, y[:2])})


def test_fashion_mnist_files_and_damage(home, monkeypatch):
    x, y, files = tiny_idx(home / "fashion-mnist")
    with pytest.raises(RuntimeError) as caught:
        data.images("fashion_mnist", root=home)
    sentence(caught, home / "fashion-mnist/train-images-idx3-ubyte.gz", "damaged", "SHA-256")
    formats.known(monkeypatch, "fashion_mnist", formats.sha256(*files))
    same(data.images("fashion_mnist", root=home)[0], x[:, None])
    same(data.images("fashion_mnist", "test", root=home)[0], x[:2, None] + 1)
    assert data.labels("fashion_mnist", root=home).tolist() == y


def test_28_to_32_pads_and_other_sizes_resize(home, monkeypatch):
    x, _, files = tiny_idx(home / "fashion-mnist")
    formats.known(monkeypatch, "fashion_mnist", formats.sha256(*files))
    load = lambda size: data.images("fashion_mnist", root=home, size=size)[0]
    same(load(32), np.pad(x[:, None], ((0, 0), (0, 0), (2, 2), (2, 2))))
    same(load(28), x[:, None])
    halves = x.reshape(5, 14, 2, 14, 2).astype(float)
    # A triangle filter over four pixels a side, weights 1 3 3 1 over 8: not the plain mean of each 2 x 2 block.
    inner = load(14)[:, 0, 1:-1, 1:-1].numpy()
    w = np.array([1, 3, 3, 1]) / 8
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(float), (4, 4), axis=(1, 2))[:, 1:-1:2, 1:-1:2]
    assert np.abs(inner - np.einsum("nijab,a,b->nij", windows, w, w)).max() <= 1
    assert np.abs(inner - halves.mean((2, 4))[:, 1:-1, 1:-1]).max() > 5


@pytest.mark.parametrize("size", [0, 2.5, "64", True])
def test_bad_size(size):
    with pytest.raises(ValueError, match=r"size is .*a whole number"):
        data.images("fashion_mnist", size=size)


def test_mnist(home, monkeypatch):
    x, y, files = tiny_idx(home / "MNIST/raw")
    with pytest.raises(RuntimeError) as caught:
        data.images("mnist", root=home)
    sentence(caught, "train-images-idx3-ubyte.gz", "damaged", imagefiles.MNIST_MD5["train-images-idx3-ubyte"])
    formats.known(monkeypatch, "mnist", files)
    same(data.images("mnist", root=home)[0], x[:, None])
    same(data.images("mnist", "test", root=home, size=32)[0][..., 2:-2, 2:-2], x[:2, None] + 1)
    assert data.labels("mnist", root=home).tolist() == y
    assert sorted((home / "MNIST/raw").iterdir()) == files  # nothing was unpacked there
    for file in files:  # the same files unpacked, as other tools leave them
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()
    same(data.images("mnist", root=home)[0], x[:, None])
    assert data.labels("mnist", root=home).tolist() == y
    (home / "MNIST/raw/train-images-idx3-ubyte").write_bytes(b"short")
    with pytest.raises(RuntimeError, match="train-images-idx3-ubyte is damaged: the MD5 of its content"):
        data.images("mnist", root=home)


@pytest.mark.parametrize("name", ["cifar10", "flowers", "npz"])
def test_arrays_are_found_by_the_sets_name_by_their_own_and_by_a_path(home, capsys, name):
    """A set that the table knows, one that it does not, and a file anywhere."""
    color, gray = formats.noise(6, 8, 8, 3), formats.noise(4, 8, 8, seed=1)
    arrays = {"train_images": color, "train_labels": np.arange(6) % 3, "test_images": gray}
    path = home / ("elsewhere" if name == "npz" else "") / f"{'mine' if name == 'npz' else name}.npz"
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **arrays)
    called = f"npz:{path}" if name == "npz" else name
    found, source = data.images(called, root=home)
    same(found, color.transpose(0, 3, 1, 2))
    assert source.name == called
    assert f"{path.name}, not verified" in capsys.readouterr().out
    same(data.images(called, "test", root=home)[0], gray[:, None])
    assert data.labels(called, root=home).tolist() == [0, 1, 2, 0, 1, 2]
    chosen, source = data.images(called, root=home, classes=(0, 2))
    same(chosen, color[[0, 2, 3, 5]].transpose(0, 3, 1, 2))
    assert source.name == f"{called}[0,2]"
    for classes in ((), (0, 7)):
        with pytest.raises(ValueError, match="has the classes 0, 1, 2"):
            data.images(called, root=home, classes=classes)
    with pytest.raises(ValueError, match="has no labels"):
        data.labels(called, "test", root=home)
    with pytest.raises(ValueError, match="no single label per image"):
        data.images(called, "test", root=home, classes=(0,))


IMAGES = np.zeros((2, 8, 8), np.uint8)
BAD_ARRAYS = [
    ({"train_images": IMAGES.astype(np.float32)}, r"train_images of .* is float32 \(2, 8, 8\); uint8"),
    ({"train_images": np.zeros((2, 8, 8, 4), np.uint8)}, r"is uint8 \(2, 8, 8, 4\); uint8 \(N, H, W\)"),
    ({"train_images": IMAGES[:0]}, r"is uint8 \(0, 8, 8\)"),
    ({"train_images": IMAGES, "train_labels": np.zeros(3, int)}, "2 whole numbers are needed"),
    ({"train_images": IMAGES, "train_labels": np.zeros(2)}, r"is float64 \(2,\); 2 whole"),
    ({"test_images": IMAGES}, "has no split 'train', no array train_images; its splits: test"),
    ({"x": np.zeros(2)}, "its splits: none"),
]


@pytest.mark.parametrize(("arrays", "said"), BAD_ARRAYS)
def test_bad_arrays_are_one_sentence(home, arrays, said):
    np.savez(home / "mine.npz", **arrays)
    with pytest.raises(ValueError, match=said) as caught:
        data.images("mine", root=home)
    sentence(caught)
    (home / "mine.npz").write_bytes(b"no archive")
    with pytest.raises(RuntimeError, match=r"cannot be read as a \.npz file of arrays"):
        data.images("mine", root=home)


def tiny_cifar(root, kind="cifar10"):
    x, y = formats.noise(12, 3, 32, 32), list(range(12))
    if kind == "cifar10":
        batches = {f"data_batch_{k + 1}": (x[2 * k : 2 * k + 2], y[2 * k : 2 * k + 2], "labels") for k in range(5)}
        batches["test_batch"] = (x[10:], y[10:], "labels")
        meta, archive = ("cifar-10-batches-py", "batches.meta", "label_names"), "cifar-10-python.tar.gz"
    else:
        batches = {"train": (x[:10], y[:10], "fine_labels"), "test": (x[10:], y[10:], "fine_labels")}
        meta, archive = ("cifar-100-python", "meta", "fine_label_names"), "cifar-100-python.tar.gz"
    return x, formats.cifar(root, batches, meta, archive), root / meta[0], root / archive


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
@pytest.mark.parametrize("form", ["archive", "folder"])
def test_cifar(home, monkeypatch, kind, form):
    x, hashes, folder, archive = tiny_cifar(home / "sets", kind)
    if form == "archive":
        folder.rename(home / "elsewhere")
    else:
        archive.unlink()
    with pytest.raises(RuntimeError) as caught:
        data.images(kind, root=home / "sets")
    sentence(caught, "damaged", archive if form == "archive" else folder)
    formats.known(monkeypatch, kind, hashes)
    same(data.images(kind, root=home / "sets")[0], x[:10])
    same(data.images(kind, "test", root=home / "sets")[0], x[10:])
    assert data.labels(kind, "test", root=home / "sets").tolist() == [10, 11]


@pytest.mark.parametrize("name", ["data_batch_3", "batches.meta"])
def test_cifar_names_the_damaged_batch(home, monkeypatch, name):
    _, hashes, folder, archive = tiny_cifar(home)
    archive.unlink()
    formats.known(monkeypatch, "cifar10", hashes)
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(RuntimeError) as caught:
        data.images("cifar10", root=home)
    sentence(caught, f"{folder / name} is damaged")


def test_svhn(home, monkeypatch):
    x = formats.noise(4, 3, 32, 32)
    hashes = formats.svhn(home, "train", x, [1, 10, 9, 10])
    with pytest.raises(RuntimeError) as caught:
        data.images("svhn", root=home)
    sentence(caught, home / "train_32x32.mat", "damaged")
    formats.known(monkeypatch, "svhn", hashes)
    same(data.images("svhn", root=home)[0], x)
    assert data.labels("svhn", root=home).tolist() == [1, 0, 9, 0]
    with pytest.raises(FileNotFoundError, match=r"put test_32x32.mat or svhn.npz into"):
        data.images("svhn", "test", root=home, download=False)


def tiny_celeba(home):
    pictures = {f"{k + 1:06}.jpg": formats.encoded(formats.smooth(218, 178, k), "JPEG", quality=95) for k in range(6)}
    attributes = np.where(formats.noise(6, 40) > 127, 1, -1)
    return pictures, attributes, formats.celeba(home / "celeba", pictures, [0, 1, 0, 2, 1, 2], attributes.tolist())


@pytest.mark.parametrize("form", ["zip", "folder"])
def test_celeba(home, monkeypatch, form):
    pictures, attributes, hashes = tiny_celeba(home)
    formats.known(monkeypatch, "celeba", hashes)
    if form == "folder":
        (home / "celeba/img_align_celeba.zip").unlink()
        for name, content in pictures.items():
            formats.write(home / "celeba/img_align_celeba" / name, content)
    # A center crop of 178 x 178 from 178 x 218 keeps rows 20 to 197.
    crops = np.stack([formats.decoded(p)[20:198] for p in pictures.values()])
    x, source = data.images("celeba", root=home, size=178)
    same(x, crops[[0, 2]].transpose(0, 3, 1, 2))
    assert source.name == "celeba"
    assert len(data.images("celeba", "all", root=home, size=178)[0]) == 6
    small = data.images("celeba", "valid", root=home)[0]
    referee = np.asarray(Image.fromarray(crops[1]).resize((64, 64), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert small.shape == (2, 3, 64, 64)
    assert np.abs(small[0].numpy().astype(int) - referee).max() <= 1
    expected = torch.tensor(attributes[[3, 5]] > 0).long()
    assert torch.equal(data.labels("celeba", "test", root=home), expected)


def test_celeba_damage(home, monkeypatch):
    _, _, hashes = tiny_celeba(home)
    for file in ("img_align_celeba.zip", "list_eval_partition.txt"):
        formats.known(monkeypatch, "celeba", {**hashes, file: "0" * 32})
        with pytest.raises(RuntimeError) as caught:
            data.images("celeba", root=home)
        sentence(caught, home / "celeba" / file, "damaged")
    formats.packed(home / "celeba/img_align_celeba.zip", {"img_align_celeba/000001.jpg": b""})
    formats.known(monkeypatch, "celeba", {**hashes, **formats.md5(home / "celeba/img_align_celeba.zip")})
    with pytest.raises(RuntimeError, match=r"img_align_celeba.zip is incomplete: 000003.jpg is not in it"):
        data.images("celeba", root=home)


@pytest.mark.parametrize(("name", "folder"), [("lsun_church", "church_outdoor"), ("lsun_bedroom", "bedroom")])
def test_lsun(home, monkeypatch, name, folder):
    monkeypatch.chdir(home)
    tall, wide = formats.noise(70, 64, 3), formats.noise(64, 81, 3, seed=1)
    pictures = {"b": formats.encoded(wide, "WEBP"), "a": formats.encoded(tall, "WEBP")}
    formats.lsun(home / f"{folder}_train_lmdb", pictures)
    expected = np.stack([tall[3:67], wide[:, 8:72]]).transpose(0, 3, 1, 2)  # in the order of the keys
    same(data.images(name, root=home)[0], expected)
    soft = formats.smooth(300, 260)
    formats.lsun(home / f"{folder}_val_lmdb", {"a": formats.encoded(soft, "WEBP")})
    referee = Image.fromarray(soft[20:280]).resize((128, 128), Image.Resampling.BILINEAR)
    x = data.images(name, "val", root=home, size=128)[0]
    assert np.abs(x[0].permute(1, 2, 0).numpy().astype(int) - np.asarray(referee)).max() <= 1
    assert not list(home.glob("_cache*"))  # torchvision's reader would leave pickles in the current folder
    (home / "apart").mkdir()
    monkeypatch.chdir(home / "apart")
    judge = torchvision.datasets.LSUN(str(home), classes=[f"{folder}_train"])
    assert [np.array_equal(np.asarray(picture), x) for (picture, _), x in zip(judge, (tall, wide))] == [True, True]
    judge.dbs[0].env.close()  # a process may open it once
    with pytest.raises(ValueError, match=f"{name} has no labels"):
        data.labels(name, root=home)


def test_lsun_damage(home):
    formats.write(home / "bedroom_train_lmdb/data.mdb", b"not a database" * 1000)
    with pytest.raises(RuntimeError, match="bedroom_train_lmdb cannot be read as an LMDB folder"):
        data.images("lsun_bedroom", root=home)


def test_celeba_hq_from_folder_and_archives(home):
    x = formats.noise(3, 16, 16, 3)
    files = {f"{k}.{kind}": formats.encoded(x[k], kind.upper()) for k, kind in enumerate(("png", "webp", "png"))}
    for name, content in files.items():
        formats.write(home / "own/celeba_hq" / name, content)
    files |= {"__MACOSX/._0.png": b"junk", "notes.txt": b"text"}
    archives = [formats.packed(home / f"own/{name}", files) for name in ("hq.zip", "hq.tar")]
    expected = x.transpose(0, 3, 1, 2)
    same(data.images("celeba_hq", root=home / "own", size=16)[0], expected)
    for archive in archives:
        found, source = data.images(f"celeba_hq:{archive}", size=16)
        same(found, expected)
        assert source.name == f"celeba_hq:{archive}"
    assert data.images(f"celeba_hq:{archives[0]}")[0].shape == (3, 3, 256, 256)
    broken = formats.write(home / "own/bad.zip", archives[0].read_bytes()[:200])
    with pytest.raises(RuntimeError, match=r"bad.zip cannot be read as a folder, .zip or plain .tar"):
        data.images(f"celeba_hq:{broken}")


def test_imagenet32_batches(home):
    x, y = formats.noise(13, 3, 32, 32), [1, 1000, 7, 8, 9, *range(20, 28)]
    write = lambda name, content: formats.write(home / "imagenet32" / name, content)
    write("train_data_batch_1.npz", formats.npz(x[:2], y[:2]))
    for k in range(2, 11):  # 10 comes after 9
        write(f"train_data_batch_{k}.npz", formats.npz(x[k : k + 1], y[k : k + 1]))
    entry = {"data": x[11:].reshape(2, 3072), "labels": y[11:], "mean": x.mean(0).ravel()}
    write("val_data", pickle.dumps(entry, protocol=2))
    same(data.images("imagenet32", root=home)[0], x[:11])
    assert data.labels("imagenet32", root=home).tolist() == [label - 1 for label in y[:11]]
    same(data.images("imagenet32", "val", root=home)[0], x[11:])
    (home / "imagenet32/train_data_batch_7.npz").unlink()
    with pytest.raises(RuntimeError, match=r"imagenet32 must hold .* once each, not \[1, .*6, 8,"):
        data.images("imagenet32", root=home)
    archive = formats.packed(home / "batches.zip", {"out/train_data_batch_1.npz": formats.npz(x, y)})
    same(data.images(f"imagenet32:{archive}")[0], x)
    pictures(home / "own/imagenet32", train__n01__1=1, val__n01__1=2)  # or as images
    for split, value in (("train", 1), ("val", 2)):
        assert data.images("imagenet32", split, root=home / "own")[0].unique().tolist() == [value]


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("sprung"),)


def test_imagenet32_pickle_runs_no_code(home, monkeypatch):
    monkeypatch.chdir(home)
    formats.write(home / "imagenet32/val_data", pickle.dumps({"data": Trap(), "labels": [1]}))
    with pytest.raises(RuntimeError) as caught:
        data.images("imagenet32", "val", root=home)
    sentence(caught, "val_data cannot be read as a batch of images", "is not a NumPy array")
    assert not Path("sprung").exists()


@pytest.mark.parametrize("content", [b"", b"PK junk", formats.npz(formats.noise(2, 3, 32, 32), [1])])
def test_imagenet32_damage(home, content):
    formats.write(home / "imagenet32/val_data.npz", content)
    with pytest.raises(RuntimeError, match=r"val_data.npz cannot be read as a batch of images"):
        data.images("imagenet32", "val", root=home)


def test_folder(home):
    x = formats.noise(4, 20, 30, 3)
    gray = formats.noise(20, 30, seed=9)
    names = ["a.png", "b/c.webp", "d.PNG", "e.png"]
    for name, picture in zip(names, (*x[:3], gray)):
        formats.write(home / "mine" / name, formats.encoded(picture, "WEBP" if name.endswith("webp") else "PNG"))
    formats.write(home / "mine/.hidden.png", b"junk")
    expected = np.stack([*x[:3], np.repeat(gray[..., None], 3, -1)])[:, :, 5:25].transpose(0, 3, 1, 2)
    found, source = data.images(f"folder:{home / 'mine'}")
    same(found, expected)
    assert source.name == f"folder:{home / 'mine'}"
    jpeg = formats.write(home / "photos/a.jpg", formats.encoded(formats.smooth(40, 40), "JPEG"))
    same(data.images(f"folder:{home / 'photos'}")[0], formats.decoded(jpeg.read_bytes()).transpose(2, 0, 1)[None])


def test_a_turned_camera(home):
    x = formats.noise(8, 8, 3)
    tag = Image.Exif()
    tag[0x0112] = 6  # show it rotated by 90 degrees clockwise
    formats.write(home / "mine/a.png", formats.encoded(x, exif=tag.tobytes()))
    same(data.images(f"folder:{home / 'mine'}")[0], np.rot90(x, -1).transpose(2, 0, 1)[None])


def pictures(folder, **values):
    """One picture of 8 x 8 pixels of a value per name; "__" stands for a slash."""
    for name, value in values.items():
        formats.write(folder / f"{name.replace('__', '/')}.png", formats.encoded(np.full((8, 8, 3), value, np.uint8)))
    return f"folder:{folder}"


TRAIN, TEST = {"train__a": 1, "train__cat__b": 2}, {"test__c": 3}
SPLITS = [  # what is there, the values for training, for testing, and the counts of what training leaves out
    ({"car__a": 1, "bus__b": 2, "train__c": 3, "plane__d": 4}, [2, 1, 4, 3], [], ""),  # a class of vehicles
    (TRAIN, [1, 2], [], ""),
    (TRAIN | TEST, [1, 2], [3], "1 of split test"),
    ({"Train__a": 1, "TEST__b": 2}, [1], [2], "1 of split test"),
    ({"all__my__train__a": 1, "all__my__test__b": 2}, [1], [2], "1 of split test"),  # folders around all images
    (TRAIN | TEST | {"z": 4, "more__y": 5}, [1, 2], [3], "2 beside the folders of the splits"),
    (TEST | {"z": 4, "more__y": 5}, [5, 4], [3], "1 of split test"),
    (TRAIN | {"valid__c": 3, "z": 4}, [1, 2], [], "1 of split val, 1 beside the folders of the splits"),
    ({"cat__test__a": 1, "dog__train__b": 2}, [1, 2], [], ""),  # no splits: they lie in classes
]


@pytest.mark.parametrize("archive", ["", "zip", "tar"])
@pytest.mark.parametrize(("there", "train", "test", "left_out"), SPLITS)
def test_which_folders_are_splits(home, capsys, there, train, test, left_out, archive):
    name = pictures(home / "mine", **there)
    if archive:
        packed = shutil.make_archive(str(home / "packed"), archive, home / "mine")
        name = f"folder:{Path(packed).rename(home / f'packed.{archive.upper()}')}"
    values = lambda split: data.images(name, split)[0][:, 0, 0, 0].tolist()
    assert values("train") == train
    said = capsys.readouterr().out
    assert said.startswith(f"{name}, split train: {len(train)} images")
    assert left_out in said
    assert ("left out" in said) == bool(left_out)
    assert data.held_out(name) == ("test" if test else "val" if "valid__c" in there else "train")
    if test:
        assert values("test") == test
    else:
        with pytest.raises(ValueError, match=r"has no split 'test' \(.* of split train.*\): put its images into test/"):
            values("test")


def test_a_folder_reads_what_cameras_and_scanners_write_and_counts_the_rest(home, capsys):
    for ending, kind in (("png", "PNG"), ("bmp", "BMP"), ("tif", "TIFF"), ("TIFF", "TIFF"), ("jfif", "JPEG")):
        formats.write(home / f"mine/a.{ending}", formats.encoded(formats.smooth(8, 8), kind))
    for name in ("b.gif", "b.heic", "c.heic", "LICENSE", ".DS_Store", "__MACOSX/._a.png"):
        formats.write(home / "mine" / name, b"text")
    (home / "mine/gone.png").symlink_to(home / "nowhere.png")
    x, source = data.images(f"folder:{home / 'mine'}", size=8)
    assert len(x) == 5
    for number, kind in ((1, ".gif"), (2, ".heic"), (1, "without an ending"), (2, "hidden"), (1, "broken links")):
        assert f"{number} {kind}" in source.note
    (line,) = capsys.readouterr().out.splitlines()
    assert line == source.note
    data.images(f"folder:{home / 'mine'}", size=8)  # now from the cache
    assert capsys.readouterr().out.splitlines() == [line]
    shutil.rmtree(home / "mine")
    formats.write(home / "mine/b.gif", b"text")
    with pytest.raises(FileNotFoundError, match=r"holds no images \(.*\), only 1 .gif"):
        data.images(f"folder:{home / 'mine'}")


def test_linked_folders_are_read_once_and_loops_end(home):
    pictures(home / "elsewhere", a=1, b=2)
    name = pictures(home / "mine", z__c=3)
    (home / "mine/linked").symlink_to(home / "elsewhere")
    (home / "mine/again").symlink_to(home / "mine/z")
    (home / "mine/z/up").symlink_to(home / "mine")
    (home / "mine/itself").symlink_to("itself")
    x, source = data.images(name)
    assert x[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert source.note.endswith("left out: 1 broken links or special files")


def test_transparent_pixels_are_white_and_counted(home, capsys):
    square = np.full((16, 16, 4), 255, np.uint8)
    square[..., 3] = 0
    square[4:12, 4:12, 3] = 255  # a white square, which no viewer shows on white
    hidden = square.copy()
    hidden[..., :3] = formats.noise(16, 16, 3)
    hidden[4:12, 4:12, :3] = 0  # black on noise that nobody sees
    half = np.full((16, 16, 4), (0, 100, 200, 51), np.uint8)  # a fifth of it, four fifths of white
    for k, pixels in enumerate((square, hidden, half, np.full((16, 16, 4), 255, np.uint8))):
        formats.write(home / f"mine/{k}.png", formats.encoded(pixels))
    palette = Image.fromarray(square[..., 3] // 255, "L").convert("P")
    palette.save(home / "mine/palette.png", transparency=0)
    gray = Image.fromarray(square[..., [0, 3]].copy())
    gray.save(home / "mine/two.png")
    x = data.images(f"folder:{home / 'mine'}")[0]
    assert x[0].unique().tolist() == [255]
    inside = x.new_zeros(16, 16, dtype=torch.bool)
    inside[4:12, 4:12] = True
    assert torch.equal(x[1] == 0, inside.expand(3, -1, -1))
    assert x[1][:, ~inside].unique().tolist() == [255]
    assert x[2][:, 0, 0].tolist() == [204, 224, 244]
    assert x[4][:, ~inside].unique().tolist() == [255]
    assert x[4][:, inside].unique().tolist() == [1]
    assert x[5].unique().tolist() == [255]
    for _ in range(2):  # the second time from the cache
        assert "changed: 5 with transparency (put on white)" in capsys.readouterr().out
        data.images(f"folder:{home / 'mine'}")


def test_frames_and_crops_are_counted(home):
    first, second = (Image.fromarray(formats.noise(8, 12, 3, seed=k)) for k in (0, 1))
    (home / "mine").mkdir()
    first.save(home / "mine/a.tif", save_all=True, append_images=[second])
    x, source = data.images(f"folder:{home / 'mine'}")
    same(x, formats.noise(8, 12, 3)[None, :, 2:10].transpose(0, 3, 1, 2))
    for kind in ("1 with several frames (the first is read)", "1 cropped to the central square"):
        assert kind in source.note


def test_one_folder_has_one_name_and_other_pictures_another_digest(home, monkeypatch):
    monkeypatch.chdir(home)
    pictures(home / "pics", a=1, b=2)
    (home / "link").symlink_to("pics")
    sources = [data.images(f"folder:{path}")[1] for path in ("pics", "./pics", home / "pics", "link/../pics", "link")]
    assert {source[:3] for source in sources} == {(f"folder:{home / 'pics'}", "train", False)}
    (digest,) = {source.sha256 for source in sources}
    pictures(home / "copy", a=1, b=2)
    assert data.images(f"folder:{home / 'copy'}")[1].sha256 == digest
    with monkeypatch.context() as without_cache:
        without_cache.setenv("XDG_CACHE_HOME", "/dev/null")
        with pytest.warns(UserWarning, match="anew"):
            assert data.images("folder:pics")[1].sha256 == digest
    pictures(home / "pics", b=3)
    assert data.images("folder:pics")[1].sha256 != digest


def test_a_picture_of_the_size_and_time_of_the_one_before_is_read_anew(home):
    path, name = home / "pics/a.bmp", f"folder:{home / 'pics'}"
    for value in (1, 2):
        formats.write(path, formats.encoded(np.full((8, 8, 3), value, np.uint8), "BMP"))
        os.utime(path, (0, 0))
        assert data.images(name)[0].unique().tolist() == [value]


@pytest.mark.parametrize("why", ["no home", "a home closed to this user", "a home that is read-only"])
def test_without_a_cache_all_but_downloads_works(home, monkeypatch, why):
    name = pictures(home / "mine", a=1, b=2)
    monkeypatch.delenv("XDG_CACHE_HOME")
    refuse = OSError(13 if "closed" in why else 30, "Permission denied" if "closed" in why else "Read-only file system")
    if why == "no home":
        monkeypatch.delenv("HOME")
        monkeypatch.setattr("pwd.getpwuid", dict[int, str]().__getitem__)  # no entry for this user
    else:  # root may write anywhere, so that the system has to be played
        monkeypatch.setenv("HOME", "/closed")
        for call in ["mkdir"] + ["stat"] * ("closed" in why):
            real = getattr(Path, call)
            fake = lambda path, *a, real=real, **b: real(path, *a, **b) if "closed" not in str(path) else throw(refuse)
            monkeypatch.setattr(Path, call, fake)
    assert data.images("fashion_mnist", "test")[0].shape == (10000, 1, 28, 28)
    assert weights_of("Fashion-CNN").is_file()
    with pytest.warns(UserWarning, match="processed anew in every run.*XDG_CACHE_HOME") as said:
        x, _ = data.images(name)
    assert len(said) == 1
    assert x[:, 0, 0, 0].tolist() == [1, 2]
    with pytest.warns(UserWarning, match="not kept for the next time") as said:
        assert metrics.reference(x).shape == (2, 64)
    assert len(said) == 1
    with pytest.raises(FileNotFoundError) as caught:
        data.images("svhn")
    sentence(caught, "could not be downloaded", "home" if why == "no home" else refuse.strerror)


def throw(error):
    raise error


def test_folder_problems(home):
    folder = home / "mine"
    with pytest.raises(FileNotFoundError, match="mine names a file or folder that does not exist"):
        data.images(f"folder:{folder}", fallback=True)
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match="mine holds no images"):
        data.images(f"folder:{folder}")
    formats.write(folder / "a.png", formats.encoded(formats.noise(8, 8, 3)))
    formats.write(folder / "b.png", formats.encoded(formats.noise(9, 12, 3)))
    with pytest.raises(ValueError, match=r"the images differ in size \(8 and 9 pixels\): pass size"):
        data.images(f"folder:{folder}")
    assert data.images(f"folder:{folder}", size=8)[0].shape == (2, 3, 8, 8)
    whole = (folder / "b.png").read_bytes()
    for content in (whole[:60], b"text", np.zeros(0).tobytes()):
        (folder / "b.png").write_bytes(content)
        with pytest.raises(RuntimeError) as caught:
            data.images(f"folder:{folder}", size=8)
        sentence(caught, "1 of 2 files cannot be read as images: ", folder / "b.png")
    Image.fromarray(np.full((8, 8), 30000, np.uint16)).save(folder / "b.png")
    for k in range(4):
        formats.write(folder / f"c{k}.png", b"text")
    first = r"\S+b.png \(its pixels are of mode I;16, .*c0.png .*c1.png \(.*\), \.\.\.$"
    with pytest.raises(RuntimeError, match=f"5 of 6 files cannot be read as images: {first}"):
        data.images(f"folder:{folder}", size=8)
    assert [f.suffix for f in (home / "cache/ebmlib/processed").iterdir()] == [".npy"]  # no half-written file is left


def test_processed_once_and_never_changed(home):
    formats.write(home / "mine/a.png", formats.encoded(formats.noise(8, 8, 3)))
    x = data.images(f"folder:{home / 'mine'}", size=4)[0]
    (processed,) = (home / "cache/ebmlib/processed").iterdir()
    before = processed.stat().st_mtime_ns, hashlib.sha256(processed.read_bytes()).digest()
    first = x.clone()
    x.zero_()
    assert torch.equal(data.images(f"folder:{home / 'mine'}", size=4)[0], first)
    assert before == (processed.stat().st_mtime_ns, hashlib.sha256(processed.read_bytes()).digest())
    formats.write(home / "mine/a.png", formats.encoded(formats.noise(8, 9, 3, seed=1)))
    assert not torch.equal(data.images(f"folder:{home / 'mine'}", size=4)[0], first)


def test_unknown_names_and_splits():
    with pytest.raises(ValueError, match="is unknown") as caught:
        data.images("cifar-10")
    sentence(caught, "data set 'cifar-10' is unknown (did you mean cifar10?)", *data.NAMES, "folder:PATH")
    for name in ("banana", "", "folder", "folder:", "cifar10:x", 7):
        with pytest.raises(ValueError, match="is unknown"):
            data.images(name)
    with pytest.raises(ValueError, match="split 'valid' of cifar10 is unknown; allowed are train, test"):
        data.images("cifar10", "valid")


@pytest.mark.parametrize("name", [n for n in data.NAMES if n != "fashion_mnist"])
def test_missing_set_says_where_to_get_and_put_it(home, name):
    with pytest.raises(FileNotFoundError) as caught:
        data.images(name, download=False)
    spec = data.SETS[name]
    text = sentence(caught, spec.title, "is not on this machine", f"get it from {spec.origin} and put")
    for part in (spec.places[0].format(split="train"), data.CHECKOUT, home / "cache/ebmlib", "EBM_DATA"):
        assert str(part) in text


def test_the_split_to_judge_on():
    without_test = {"lsun_church": "val", "lsun_bedroom": "val", "imagenet32": "val", "celeba_hq": "train"}
    assert {name: data.held_out(name) for name in data.NAMES} == {n: "test" for n in data.NAMES} | without_test
    assert [data.held_out(f"{kind}:some/where") for kind in data.POINTED] == ["train"] * 4  # judged on themselves


def test_search_order(home, monkeypatch):
    places = [home / "own", home / "checkout", home / "cache/ebmlib"]
    x = formats.noise(2, 3, 32, 32)
    monkeypatch.setattr(data, "CHECKOUT", places[1])
    monkeypatch.setenv("EBM_DATA", str(places[0]))
    assert data.find("svhn") is None
    for k, place in reversed([*enumerate(places)]):
        formats.known(monkeypatch, "svhn", formats.svhn(place, "train", x, [k, k]))
        assert data.find("svhn") == place / "train_32x32.mat"
        assert data.labels("svhn").tolist() == [k, k]
    monkeypatch.delenv("EBM_DATA")
    assert data.find("svhn") == places[1] / "train_32x32.mat"
    assert data.find("svhn", "test") is None
    (places[1] / "MNIST/raw").mkdir(parents=True)  # one without its files is not the set
    assert data.find("mnist") is None


@pytest.mark.parametrize(("name", "title"), [(None, "CIFAR-10"), ("svhn", "SVHN")])
def test_fallback_says_so(away, home, name, title):
    began = time.monotonic()
    x, source = data.images(name, "test", fallback=True, size=32, timeout=30)
    assert x.shape == (10000, 1, 32, 32)
    assert source[:3] == ("fashion_mnist", "test", True)
    assert re.search(rf"{title}.*could not be downloaded \(.*refused\).*bundled Fashion-MNIST", source.note)
    with pytest.raises(FileNotFoundError, match=f"{title}.*could not be downloaded"):
        data.images(name, "test", timeout=30)
    assert time.monotonic() - began < 20
    assert not list((home / "cache/ebmlib").iterdir())


def test_fallback_never_hides_a_damaged_file(home):
    tiny_cifar(home)
    with pytest.raises(RuntimeError, match=r"cifar-10-python.tar.gz is damaged"):
        data.images(None, root=home, fallback=True)


@pytest.mark.parametrize("package", ["lmdb", "scipy", "gdown"])
def test_missing_package_is_named(home, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)  # Python's own way to make an import fail
    line = f"needs the package {package}: pip install 'ebmlib[data]'"
    formats.svhn(home, "train", formats.noise(1, 3, 32, 32), [1])
    (home / "bedroom_train_lmdb").mkdir()
    name = {"lmdb": "lsun_bedroom", "scipy": "svhn", "gdown": "celeba"}[package]
    with pytest.raises(FileNotFoundError if package == "gdown" else RuntimeError) as caught:
        data.images(name, root=home)
    sentence(caught, line)


@pytest.fixture
def server(home, monkeypatch):
    """A web server on the loopback: `files` are served, a path under /stall/ sends 1,000 bytes and then nothing."""
    files, done = {}, threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = files.get(Path(self.path).name)
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.path.startswith("/stall/"):
                self.wfile.write(content[:1000])
                done.wait(30)
            else:
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http_server.daemon_threads = True
    threading.Thread(target=http_server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http_server.server_port}", files
    done.set()
    http_server.shutdown()
    http_server.server_close()


def test_download_goes_to_the_cache_or_to_ebm_data(home, server, monkeypatch, capsys):
    address, files = server
    x, hashes, _, archive = tiny_cifar(home / "made")
    files[archive.name] = archive.read_bytes()
    formats.known(monkeypatch, "cifar10", hashes)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", f"{address}/{archive.name}")
    same(data.images(None)[0], x[:10])
    assert [p.name for p in (home / "cache/ebmlib").iterdir()] == [archive.name]
    monkeypatch.setenv("EBM_DATA", str(home / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "other"))
    same(data.images("cifar10", "test")[0], x[10:])
    assert [p.name for p in (home / "own").iterdir()] == [archive.name]
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 4
    assert printed[0].startswith("Downloading cifar-10-python.tar.gz to ")
    files.clear()
    same(data.images("cifar10")[0], x[:10])  # now it is here
    assert "Downloading" not in capsys.readouterr().out


def test_second_mirror_and_files_already_there(home, server, monkeypatch):
    address, files = server
    x, _, paths = tiny_idx(home / "made")
    files.update({p.name: p.read_bytes() for p in paths[1:]})
    formats.write(home / "own/MNIST/raw" / paths[0].name, paths[0].read_bytes())  # not on the server
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:1/", f"{address}/"])
    formats.known(monkeypatch, "mnist", paths)
    same(data.images("mnist", root=home / "own")[0], x[:, None])
    (home / "own/MNIST/raw" / paths[1].name).unlink()
    (home / "own/MNIST/raw" / paths[0].name).write_bytes(b"damaged")
    with pytest.raises(RuntimeError, match=f"{paths[0].name} is damaged"):
        data.images("mnist", root=home / "own")


@pytest.mark.parametrize("why", ["stall", "damaged", "short", "absent"])
def test_broken_download_leaves_nothing(home, server, monkeypatch, why):
    address, files = server
    _, hashes, _, archive = tiny_cifar(home / "made")
    content = archive.read_bytes()
    formats.known(monkeypatch, "cifar10", hashes)
    files[archive.name] = {"damaged": content[::-1], "short": content[:-7]}.get(why, content)
    if why == "absent":
        files.clear()
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", f"{address}/{why}/{archive.name}")
    began = time.monotonic()
    with pytest.raises(FileNotFoundError) as caught:
        data.images("cifar10", timeout=1.0)
    assert time.monotonic() - began < 10
    sentence(caught, "could not be downloaded", {"stall": "timed out", "absent": "404"}.get(why, "arrived damaged"))
    assert not list((home / "cache/ebmlib").iterdir())


def test_one_file_is_fetched_once(home, server, capsys):
    address, files = server
    files["weights"] = content = bytes(3000)
    file, sha256 = home / "new" / "folder" / "weights", hashlib.sha256(content).hexdigest()
    with pytest.raises(OSError, match="arrived damaged"):
        data.fetch([f"{address}/weights"], file, sha256[::-1])
    assert list(file.parent.iterdir()) == []
    data.fetch([f"{address}/weights"], file, sha256)
    assert [path.read_bytes() for path in file.parent.iterdir()] == [content]
    files.clear()
    capsys.readouterr()
    data.fetch([f"{address}/weights"], file, sha256)  # it is here
    assert capsys.readouterr().out == ""
    file.write_bytes(b"some other weights")
    with pytest.raises(RuntimeError, match=f"{file} is damaged"):
        data.fetch([f"{address}/weights"], file, sha256)


def test_unwritable_folder(home, server):
    (home / "own").write_text("a file where a folder should be")
    with pytest.raises(FileNotFoundError) as caught:
        data.images("cifar10", root=home / "own")
    sentence(caught, "could not be downloaded", "exists")


def test_dequantized_values_fill_their_cells_evenly():
    x = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(2000, 1, 1, 1)
    found = data.dequantized(x, torch.Generator().manual_seed(0))
    assert found.dtype == torch.float32
    assert float(found.min()) >= -1
    assert float(found.max()) < 1
    place = (found.double() + 1) * 128 - x.double()  # within the cell
    assert float(place.min()) > -1e-4
    assert float(place.max()) < 1 + 1e-4
    assert abs(float(place.mean()) - 0.5) < 5 * (1 / 12 / place.numel()) ** 0.5
    assert abs(float(place.var()) - 1 / 12) < 1e-3
    again = data.dequantized(x[:1], torch.Generator().manual_seed(0))
    assert torch.equal(again, data.dequantized(x[:1], torch.Generator().manual_seed(0)))
