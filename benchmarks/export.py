"""Bundles a long run on images with the book: its EMA weights and its record. `make results` calls it.

    python benchmarks/export.py RUN_FOLDER NAME

RUN_FOLDER is the `run_dir` of a long run. Writes data/checkpoints/NAME.safetensors, the EMA weights as bfloat16, or as
they are where the net is small, and NAME_record.safetensors where the run kept a record. Where the run has checkpoints
in its stages alone, the newest of these counts. A run of self_adversarial_images has one file of its three trainings
beside its stages; so has what is written, and that notebook's `checkpoint` takes it.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from ebmlib.nets.blocks import parameter_count
from ebmlib.nets.conv import ConvNet
from ebmlib.nets.wideresnet import cascade
from ebmlib.run import checkpoint

DATA = Path(__file__).resolve().parents[1] / "data"
LIMIT = 8_000_000  # bytes of a file of weights
SMALL = 100_000  # weights: a file of so few is small in float32, too, and its energies keep their digits


def bundle(run_folder: Path, name: str, folder: Path = DATA / "checkpoints", **about: Any) -> tuple[Path, dict]:
    """Write the newest checkpoint's running mean, or its three trainings, and the record if there is one.

    Returns the file and the run's key.
    """
    newest = _newest(run_folder)
    objects, meta = checkpoint.load(newest)
    if "filters" in meta["key"]["net"]:
        return _bundle_trainings(objects, meta, folder / f"{name}.safetensors", about), meta["key"]
    net = cascade(**meta["key"]["net"])
    checkpoint.load_module(newest, net, ema=True)
    about |= {"key": meta["key"], "iteration": meta["iteration"]}
    record, path = run_folder / "record.safetensors", folder / f"{name}.safetensors"
    if record.exists():
        objects, told = checkpoint.load(record)
        checkpoint.save(folder / f"{name}_record.safetensors", objects, told)
        about |= {key: told[key] for key in ("preset", "device", "seconds")}
        print(f"wrote {name}_record.safetensors")
    checkpoint.save_weights(path, net, about, None if parameter_count(net) < SMALL else torch.bfloat16)
    return _within_limit(path), meta["key"]


def _newest(run_folder: Path) -> Path:
    """The newest checkpoint of a run, or of its stages where it has none of its own; SystemExit if there is none."""
    own = sorted(run_folder.glob("step-*.safetensors"))
    of_stages = sorted(run_folder.glob("*/step-*.safetensors"), key=lambda path: path.stat().st_mtime)
    if found := own or of_stages:
        return found[-1]
    raise SystemExit(f"{run_folder} holds no checkpoint step-*.safetensors")


def _bundle_trainings(trainings: dict[str, dict], meta: dict, path: Path, about: dict[str, Any]) -> Path:
    """Write the three finished trainings of a run of self_adversarial_images, with their weights as bfloat16."""
    net = ConvNet(**meta["key"]["net"])
    dtype = torch.float32 if parameter_count(net) < SMALL else torch.bfloat16
    small = {}
    for kind, it in trainings.items():
        checkpoint.load_weights(net, it["weights"], kind)  # refused here if it is of another net
        small[kind] = it | {"weights": {name: value.to(dtype) for name, value in it["weights"].items()}}
    seconds = sum(it["seconds"] for it in trainings.values())
    checkpoint.save(path, small, about | {"key": meta["key"], "seconds": seconds})
    return _within_limit(path)


def _within_limit(path: Path) -> Path:
    """The file, if it is small enough for the book's repository; else it is removed, and SystemExit."""
    size = path.stat().st_size
    if size > LIMIT:
        path.unlink()
        raise SystemExit(f"{path.name} would have {size / 1e6:.1f} MB; at most {LIMIT / 1e6:.0f} MB are bundled")
    print(f"wrote {path.name}, {size / 1e3:.0f} kB")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("name")
    options = parser.parse_args()
    bundle(options.run_folder, options.name)


if __name__ == "__main__":
    main()
