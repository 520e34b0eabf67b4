"""Train Fashion-CNN, the feature net behind the book's FID and KID: `python data/checkpoints/make_fashion_cnn.py`.

Writes fashion_cnn.safetensors and fashion_cnn.json (accuracy, seconds, seed, hardware, SHA-256) beside this file.
One core, about four minutes. The test set is used once, after the last iteration; nothing is chosen by it.
"""

import argparse
import hashlib
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a net this small gains nothing from a second thread

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from ebmlib import data
from ebmlib.metrics.features import WEIGHTS, FashionCNN
from ebmlib.page import results

BATCH = 128
LEARNING_RATE = 3e-3  # the peak of one cycle
WEIGHT_DECAY = 0.01
SHIFT = 2  # pixels; garments are centered, samples of a model not quite


def augment(x: Tensor, rng: torch.Generator) -> Tensor:
    """Flips each image (N, 1, 28, 28) with probability 1/2 and shifts the batch by up to SHIFT pixels."""
    flip = torch.rand(len(x), generator=rng) < 0.5
    x = torch.where(flip[:, None, None, None], x.flip(-1), x)
    down, right = torch.randint(0, 2 * SHIFT + 1, (2,), generator=rng).tolist()
    return F.pad(x, (SHIFT,) * 4)[:, :, down : down + 28, right : right + 28]  # 0 is the background


def train(x: Tensor, y: Tensor, epochs: int, seed: int) -> FashionCNN:
    """Fits the net to images x (uint8) and labels y with AdamW and one learning-rate cycle."""
    torch.manual_seed(seed)  # initial weights and dropout draw from the global generator
    rng = torch.Generator().manual_seed(seed)
    net = FashionCNN().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    steps = len(x) // BATCH
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * steps, pct_start=0.2)
    for epoch in range(epochs):
        order, total = torch.randperm(len(x), generator=rng), 0.0
        for chosen in order[: steps * BATCH].split(BATCH):
            loss = F.cross_entropy(net.logits(augment(x[chosen], rng)), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cycle.step()
            total += loss.item()
        print(f"epoch {epoch + 1} of {epochs}: mean loss {total / steps:.4f}", flush=True)
    return net.eval()


@torch.no_grad()
def normalize(net: FashionCNN, x: Tensor) -> None:
    """Scales the features to mean square 1 over x and undoes it in the classes: FID and KID depend on the scale."""
    scale = torch.stack([net(part).double().square().mean() for part in x.split(500)]).mean().sqrt().float()
    net.penultimate.weight.div_(scale)  # before a ReLU, which commutes with a positive factor
    net.penultimate.bias.div_(scale)
    net.classes.weight.mul_(scale)


@torch.no_grad()
def accuracy(net: FashionCNN, x: Tensor, y: Tensor) -> float:
    return torch.cat([net.logits(part).argmax(1) for part in x.split(500)]).eq(y).double().mean().item()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--epochs", type=int, default=10)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, default=Path(__file__).parent / WEIGHTS.name)
    options = options.parse_args()
    torch.set_num_threads(1)
    x, source = data.images("fashion_mnist", "train")
    started, started_cpu = time.perf_counter(), time.process_time()
    net = train(x, data.labels("fashion_mnist", "train"), options.epochs, options.seed)
    normalize(net, x)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - started_cpu
    test, _ = data.images("fashion_mnist", "test")
    correct = accuracy(net, test, data.labels("fashion_mnist", "test"))
    blob = save({key: value.contiguous() for key, value in net.state_dict().items()})
    options.out.write_bytes(blob)
    note = {
        "net": "ebmlib.metrics.features.FashionCNN",
        "dataset": source.name,
        "test_accuracy": correct,
        "epochs": options.epochs,
        "seed": options.seed,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),  # less than seconds where the core was shared
        "hardware": results.hardware(),
        "torch": torch.__version__.split("+")[0],
        "bytes": len(blob),
        "sha256": hashlib.sha256(blob).hexdigest(),
    }
    options.out.with_suffix(".json").write_text(json.dumps(note, indent=2) + "\n")
    print(f"test accuracy {correct:.4f}, {seconds:.0f} s, {len(blob)} bytes")


if __name__ == "__main__":
    main()
