"""Inception of 2015, whose features and classes give FID, KID and the inception score that papers print.

torch-fidelity's port of TensorFlow's weights, run by torchmetrics. A score on other weights is not called plain FID.
"""

import hashlib
import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

from ebmlib import data

NAME = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{NAME}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


class Inception(nn.Module):
    """FID's Inception: forward(x) gives features (N, 2048), `classes(features)` the logits (N, 1008) of its score.

    x: images (N, C, H, W), float in [-1, 1] or uint8; gray is repeated to RGB. They are resized to 299 x 299 as
    TensorFlow 1 does it, as in the papers' code; torchmetrics' own default has an antialias that moves FID. `standard`
    says whether the weights are the published ones, by their SHA-256. RuntimeError if torch-fidelity is missing,
    ValueError if the file holds no such weights.
    """

    num_features = 2048

    def __init__(self, weights: str | Path) -> None:
        super().__init__()
        found = hashlib.sha256(Path(weights).read_bytes()).hexdigest()
        self.standard = found == SHA256
        self.name = "Inception" if self.standard else f"Inception with weights {found[:8]}"
        self.body = _net(Path(weights)).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(data.to_bytes(x).expand(-1, 3, -1, -1))

    def classes(self, features: Tensor) -> Tensor:
        """Logits without the last layer's bias, as in the code that defined the score (Salimans et al., 2016)."""
        return features @ self.body.fc.weight.T


def _net(weights: Path) -> nn.Module:
    from torchmetrics.image.fid import NoTrainInceptionV3

    named = {"name": "inception-v3-compat", "features_list": ["2048"], "antialias": False}
    try:
        with torch.random.fork_rng(devices=[]):  # the weights that are drawn before the file's replace them
            return NoTrainInceptionV3(feature_extractor_weights_path=str(weights), **named)
    except ModuleNotFoundError:
        raise RuntimeError("torch-fidelity is not installed") from None
    except Exception as error:  # whatever a damaged or foreign file makes torch.load raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{weights} does not hold the weights of Inception: {reason.rstrip(':.')}.") from None


def load(weights: str | Path | None = None, timeout: float = 60.0) -> Inception:
    """FID's Inception with weights from a file; None: the standard ones, from their place, else downloaded.

    Looked for where Fashion-CNN's are, then in torch's hub folder (under TORCH_HOME), where a download goes; it ends
    after `timeout` seconds without data. RuntimeError, one sentence, where torch-fidelity or the weights are missing,
    or where a file of their name is another one.
    """
    need = "plain FID, KID and IS need torch-fidelity (pip install 'ebmlib[fid]') and its Inception weights"
    if importlib.util.find_spec("torch_fidelity") is None:
        raise RuntimeError(f"{need}: torch-fidelity is not installed.")
    if weights is not None:
        return Inception(weights)
    folders = [*(root / "checkpoints" for root in data.roots()), Path(torch.hub.get_dir()) / "checkpoints"]
    folder = next((folder for folder in folders if (folder / NAME).is_file()), folders[-1])
    try:
        data.fetch([URL], folder / NAME, SHA256, timeout)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        looked = ", ".join(map(str, folders))
        raise RuntimeError(f"{need}, {NAME} from {URL} in one of {looked}: {reason}.") from None
    return Inception(folder / NAME)
