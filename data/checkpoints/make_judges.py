"""Train a judge, a feature net behind the book's FID and KID: `python data/checkpoints/make_judges.py CIFAR-CNN`.

Writes <judge>.safetensors and <judge>.json (accuracy, seconds, seed, hardware, SHA-256) beside this file. One core:
about four minutes for Fashion-CNN and MNIST-CNN, an hour for CIFAR-CNN, which need their sets where `ebmlib.data` finds
them. The test set is used once, after the last iteration; nothing is chosen by it.
"""

import argparse
import hashlib
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # nets this small gain nothing from a second thread

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from ebmlib import data
from ebmlib.metrics.features import BODIES, TRAINED_ON, Judge, file_of, untrained
from ebmlib.page import results

BATCH = 128
LEARNING_RATE = 3e-3  # the peak of one cycle
WEIGHT_DECAY = 0.01
EPOCHS = {"Fashion-CNN": 10, "MNIST-CNN": 10, "CIFAR-CNN": 20}
SHIFT = {"Fashion-CNN": 2, "MNIST-CNN": 2, "CIFAR-CNN": 4}  # pixels; samples of a model are not quite centered
BACKGROUND = {"Fashion-CNN": "constant", "MNIST-CNN": "constant", "CIFAR-CNN": "reflect"}  # of a shifted image


def augment(x: Tensor, name: str, rng: torch.Generator) -> Tensor:
    """Shifts the batch (N, C, H, W), and flips each image with probability 1/2 where that keeps its class."""
    if name != "MNIST-CNN":
        flip = torch.rand(len(x), generator=rng) < 0.5
        x = torch.where(flip[:, None, None, None], x.flip(-1), x)
    shift, side = SHIFT[name], x.shape[-1]
    down, right = torch.randint(0, 2 * shift + 1, (2,), generator=rng).tolist()
    x = F.pad(x.float(), (shift,) * 4, mode=BACKGROUND[name]).to(x.dtype)
    return x[:, :, down : down + side, right : right + side]


def train(name: str, x: Tensor, y: Tensor, epochs: int, seed: int) -> Judge:
    """Fits the net to images x (uint8) and labels y with AdamW and one learning-rate cycle."""
    torch.manual_seed(seed)  # initial weights and dropout draw from the global generator
    rng = torch.Generator().manual_seed(seed)
    net = untrained(name).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    steps = len(x) // BATCH
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * steps, pct_start=0.2)
    for epoch in range(epochs):
        order, total = torch.randperm(len(x), generator=rng), 0.0
        for chosen in order[: steps * BATCH].split(BATCH):
            with torch.autocast("cpu", torch.bfloat16):  # twice as fast where the processor has it
                logits = net.logits(augment(x[chosen], name, rng))
            loss = F.cross_entropy(logits.float(), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cycle.step()
            total += loss.item()
        print(f"epoch {epoch + 1} of {epochs}: mean loss {total / steps:.4f}", flush=True)
    return net.eval()


@torch.no_grad()
def normalize(net: Judge, x: Tensor) -> None:
    """Scales the features to mean square 1 over x and undoes it in the classes: FID and KID depend on the scale."""
    scale = torch.stack([net(part).double().square().mean() for part in x.split(500)]).mean().sqrt().float()
    net.penultimate.weight.div_(scale)  # before a ReLU, which commutes with a positive factor
    net.penultimate.bias.div_(scale)
    net.classes.weight.mul_(scale)


@torch.no_grad()
def accuracy(net: Judge, x: Tensor, y: Tensor) -> float:
    return torch.cat([net.logits(part).argmax(1) for part in x.split(500)]).eq(y).double().mean().item()


def rounded(net: Judge) -> dict[str, Tensor]:
    """The state with its matrices in bfloat16, which halves the file."""
    state = {key: value.contiguous() for key, value in net.state_dict().items()}
    return {key: value.bfloat16() if value.ndim > 1 else value for key, value in state.items()}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("judge", choices=BODIES)
    options.add_argument("--epochs", type=int)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = options.parse_args()
    torch.set_num_threads(1)
    name, dataset = options.judge, TRAINED_ON[options.judge]
    epochs = options.epochs or EPOCHS[name]
    x, source = data.images(dataset, "train")
    started, started_cpu = time.perf_counter(), time.process_time()
    net = train(name, x, data.labels(dataset, "train"), epochs, options.seed)
    normalize(net, x)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - started_cpu
    state = rounded(net)
    net.load_state_dict(state)
    test, _ = data.images(dataset, "test")
    correct = accuracy(net, test, data.labels(dataset, "test"))
    blob, file = save(state), options.out / file_of(name).name
    file.write_bytes(blob)
    note = {
        "net": f"ebmlib.metrics.features.Judge, {name}",
        "dataset": source.name,
        "test_accuracy": correct,
        "epochs": epochs,
        "seed": options.seed,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),  # less than seconds where the core was shared
        "hardware": results.hardware(),
        "torch": torch.__version__.split("+")[0],
        "bytes": len(blob),
        "sha256": hashlib.sha256(blob).hexdigest(),
    }
    file.with_suffix(".json").write_text(json.dumps(note, indent=2) + "\n")
    print(f"test accuracy {correct:.4f}, {seconds:.0f} s, {len(blob)} bytes")


if __name__ == "__main__":
    main()
