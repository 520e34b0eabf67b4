"""Fashion-CNN: the small classifier of Fashion-MNIST whose features stand in for Inception's in FID and KID.

Every image becomes a gray 28 x 28 one first (`to_gray28`); a metric on these features has to say so.
"""

import hashlib
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ebmlib import data

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
SIDE = 28  # Fashion-MNIST's side
PADDED = 32  # gray sets of 28 pixels (Fashion-MNIST, MNIST) are padded to this side for nets that halve it
WEIGHTS = Path("checkpoints") / "fashion_cnn.safetensors"
MAKER = "data/checkpoints/make_fashion_cnn.py"


def to_gray28(x: Tensor) -> Tensor:
    """Images (N, C, H, W), float in [-1, 1] or uint8, as gray float32 (N, 1, 28, 28) in [-1, 1].

    Three channels become their ITU-R BT.601 luma. Gray 32 x 32 is a padded 28 x 28 and is cropped back;
    any other size is resized to 28 x 28, bilinear with antialiasing.
    """
    x = data.to_bytes(x).float()
    channels, side = x.shape[1], tuple(x.shape[2:])
    if channels == 3:
        x = torch.einsum("nchw,c->nhw", x, x.new_tensor(LUMA))[:, None]
    if channels == 1 and side == (PADDED, PADDED):
        edge = (PADDED - SIDE) // 2
        x = x[:, :, edge:-edge, edge:-edge]
    elif side != (SIDE, SIDE):
        x = F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
    return x / 127.5 - 1


def conversion(shape: tuple[int, ...]) -> str:
    """What `to_gray28` does to images of shape (N, C, H, W) or (C, H, W), in a few words; "" for gray 28 x 28."""
    channels, *side = shape[-3:]
    if channels == 1 and side == [PADDED, PADDED]:
        return "cropped to 28 x 28"
    return ", ".join(["gray"] * (channels != 1) + ["resized to 28 x 28"] * (side != [SIDE, SIDE]))


class FashionCNN(nn.Module):
    """A classifier of Fashion-MNIST: three convolutions, 64 features, ten classes.

    forward(x) gives the features (N, 64) after their ReLU, `logits(x)` the classes (N, 10), for x as in `to_gray28`.
    The bundled net's features have mean square 1 over the training images, which sets the scale of FID and KID.
    BatchNorm couples a batch in train mode only; metrics use the net under `evaluating`.
    """

    name = "Fashion-CNN"
    num_features = 64

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(  # (N, 1, 28, 28) -> (N, 56 * 7 * 7)
            *(nn.Conv2d(1, 32, 5, stride=2, padding=2), nn.BatchNorm2d(32), nn.ReLU()),  # 14 x 14
            *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU()),  # 7 x 7
            *(nn.Conv2d(64, 56, 3, padding=1), nn.BatchNorm2d(56), nn.ReLU()),
            *(nn.Flatten(), nn.Dropout(0.2)),
        )
        self.penultimate = nn.Linear(56 * 7 * 7, self.num_features)
        self.classes = nn.Linear(self.num_features, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = to_gray28(x).contiguous(memory_format=torch.channels_last)
        return F.relu(self.penultimate(self.body(x)))

    def logits(self, x: Tensor) -> Tensor:
        return self.classes(self(x))


def find_weights() -> Path:
    """The bundled weights, in the first of `data.roots` that has them; FileNotFoundError names all places."""
    places = [root / WEIGHTS for root in data.roots()]
    if found := [place for place in places if place.is_file()]:
        return found[0]
    raise FileNotFoundError(f"Fashion-CNN's weights are in none of {', '.join(map(str, places))}; {MAKER} makes them.")


def fashion_cnn(path: str | Path | None = None, device: str | torch.device = "cpu") -> FashionCNN:
    """The trained Fashion-CNN in eval mode, its file checked against the SHA-256 in the .json beside it.

    path: a .safetensors file, None for the bundled one. A missing or damaged file is named in the error.
    """
    from safetensors.torch import load

    path = find_weights() if path is None else Path(path)
    blob, note = path.read_bytes(), path.with_suffix(".json")
    if note.is_file() and hashlib.sha256(blob).hexdigest() != json.loads(note.read_text())["sha256"]:
        raise ValueError(f"{path} is damaged: its SHA-256 is not the one in {note.name}.")
    net = FashionCNN().float()  # whatever torch's default type is
    net.load_state_dict(load(blob))
    return net.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
