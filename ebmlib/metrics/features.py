"""Judges: small classifiers whose features stand in for Inception's in FID and KID.

"Fashion-CNN" and "MNIST-CNN" see gray 28 x 28 images, "CIFAR-CNN" color 32 x 32. What an image is turned into first is
part of a score's name (`Judge.conversion`).
"""

import hashlib
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebmlib import data

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
PADDED, SIDE = 32, 28  # gray sets of 28 pixels (Fashion-MNIST, MNIST) are padded to 32 for nets that halve it
MAKER = "data/checkpoints/make_judges.py"


def prepared(x: Tensor, channels: int, side: int) -> Tensor:
    """Images (N, C, H, W), float in [-1, 1] or uint8, as float32 (N, channels, side, side) in [-1, 1].

    Color becomes gray by its ITU-R BT.601 luma, gray becomes color by repetition. Gray 32 x 32 is a padded 28 x 28 and
    is cropped back for side 28; any other size is resized, bilinear with antialiasing.
    """
    x = data.to_bytes(x).float()
    padded = tuple(x.shape[1:]) == (1, PADDED, PADDED) and side == SIDE
    if x.shape[1] == 3 and channels == 1:
        x = torch.einsum("nchw,c->nhw", x, x.new_tensor(LUMA))[:, None]
    if padded:
        edge = (PADDED - SIDE) // 2
        x = x[:, :, edge:-edge, edge:-edge]
    elif tuple(x.shape[2:]) != (side, side):
        x = F.interpolate(x, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    return x.expand(-1, channels, -1, -1) / 127.5 - 1


class Judge(nn.Module):
    """A classifier with a layer of 64 features before its ten classes.

    forward(x) gives the features (N, 64) after their ReLU and `logits(x)` the classes (N, 10), for images as `prepared`
    takes them. The features of a bundled judge have mean square 1 over its training images, which sets the scale of FID
    and KID. BatchNorm couples a batch in train mode only; metrics use the net under `evaluating`.
    """

    num_features = 64

    def __init__(self, name: str, body: nn.Module, numbers: int, channels: int, side: int) -> None:
        super().__init__()
        self.name, self.channels, self.side = name, channels, side
        self.body = body  # (N, channels, side, side) -> (N, numbers)
        self.penultimate = nn.Linear(numbers, self.num_features)
        self.classes = nn.Linear(self.num_features, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = prepared(x, self.channels, self.side).contiguous(memory_format=torch.channels_last)
        return F.relu(self.penultimate(self.body(x)))

    def logits(self, x: Tensor) -> Tensor:
        return self.classes(self(x))

    def conversion(self, shape: tuple[int, ...]) -> str:
        """What `prepared` does to images of shape (N, C, H, W) or (C, H, W), in a few words; "" for nothing."""
        channels, *side = shape[-3:]
        done = [] if channels == self.channels else ["gray" if self.channels == 1 else "gray repeated"]
        if channels == self.channels == 1 and side == [PADDED, PADDED] and self.side == SIDE:
            done.append(f"cropped to {SIDE} x {SIDE}")
        elif side != [self.side, self.side]:
            done.append(f"resized to {self.side} x {self.side}")
        return ", ".join(done)


class Residual(nn.Module):
    """Two 3x3 convolutions with BatchNorm beside a shortcut; stride 2 halves the sides."""

    def __init__(self, inner: int, outer: int, stride: int = 1) -> None:
        super().__init__()
        self.main = nn.Sequential(
            *(nn.Conv2d(inner, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU()),
            *(nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer)),
        )
        project = [nn.AvgPool2d(2), nn.Conv2d(inner, outer, 1, bias=False)] if stride == 2 else []
        self.shortcut = nn.Sequential(*project)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.main(x) + self.shortcut(x))


def _gray() -> tuple[nn.Module, int, int, int]:
    """Three convolutions; 28, 14 and 7 pixels."""
    body = nn.Sequential(
        *(nn.Conv2d(1, 32, 5, stride=2, padding=2), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.Conv2d(64, 56, 3, padding=1), nn.BatchNorm2d(56), nn.ReLU()),
        *(nn.Flatten(), nn.Dropout(0.2)),
    )
    return body, 56 * 7 * 7, 1, SIDE


def _color() -> tuple[nn.Module, int, int, int]:
    """A stem and four residual blocks; 32, 16 and 8 pixels."""
    body = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(Residual(32, 64, 2), Residual(64, 64), Residual(64, 96, 2), Residual(96, 96)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    return body, 96, 3, 32


BODIES = {"Fashion-CNN": _gray, "MNIST-CNN": _gray, "CIFAR-CNN": _color}
TRAINED_ON = {"Fashion-CNN": "fashion_mnist", "MNIST-CNN": "mnist", "CIFAR-CNN": "cifar10"}


def untrained(name: str) -> Judge:
    """The judge of this name with random weights."""
    if name not in BODIES:
        raise ValueError(f"judge {name!r} is unknown; allowed are {', '.join(BODIES)}")
    return Judge(name, *BODIES[name]())


def judge_of(dataset: str, channels: int) -> str:
    """The name of the judge that fits a data set: MNIST's own, else by the images' channels."""
    return "CIFAR-CNN" if channels == 3 else "MNIST-CNN" if dataset == "mnist" else "Fashion-CNN"


def file_of(name: str) -> Path:
    """The file of a judge's weights under a data folder."""
    return Path("checkpoints") / f"{name.lower().replace('-', '_')}.safetensors"


def weights_of(name: str) -> Path:
    """A judge's bundled weights, in the first of `data.roots` that has them; FileNotFoundError names all places."""
    places = [root / file_of(name) for root in data.roots()]
    if found := [place for place in places if place.is_file()]:
        return found[0]
    raise FileNotFoundError(f"{name}'s weights are in none of {', '.join(map(str, places))}; {MAKER} makes them.")


def trained(name: str = "Fashion-CNN", path: str | Path | None = None, device: str | torch.device = "cpu") -> Judge:
    """The trained judge of this name in eval mode, its file checked against the SHA-256 in the .json beside it.

    path: a .safetensors file, None for the bundled one. A missing or damaged file is named in the error.
    """
    from safetensors.torch import load

    net = untrained(name).float()  # whatever torch's default type is
    path = weights_of(name) if path is None else Path(path)
    blob, note = path.read_bytes(), path.with_suffix(".json")
    if note.is_file() and hashlib.sha256(blob).hexdigest() != json.loads(note.read_text())["sha256"]:
        raise ValueError(f"{path} is damaged: its SHA-256 is not the one in {note.name}.")
    net.load_state_dict(load(blob))  # bfloat16 weights become the float32 ones that they round
    return net.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
