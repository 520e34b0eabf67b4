"""Bundles a long run of drl_cifar with the book: its EMA weights as bfloat16 and its rows.

    python benchmarks/export.py RUN_FOLDER EXECUTED.ipynb COMMIT

RUN_FOLDER is the `run_dir` of a long run of the notebook, EXECUTED.ipynb its output, COMMIT the commit it ran at.
Writes data/checkpoints/drl_<data set>.safetensors and data/results/drl_cifar.json.
"""

import argparse
import hashlib
from pathlib import Path

import torch

from ebmlib import checkpoint, results
from ebmlib.nets.energies import TimeWideResNet

DATA = Path(__file__).resolve().parents[1] / "data"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("executed", type=Path)
    parser.add_argument("commit")
    options = parser.parse_args()
    rows = results.read(options.executed)
    newest = sorted(options.run_folder.glob("step-*.safetensors"))[-1]
    meta = checkpoint.load(newest)[1]
    key = meta["key"]
    net = TimeWideResNet(**key["net"])
    checkpoint.load_module(newest, net, ema=True)
    path = DATA / "checkpoints" / f"drl_{key['dataset']}.safetensors"
    about = {"key": key, "iteration": meta["iteration"], "preset": rows[0].preset, "device": rows[0].device}
    checkpoint.save_weights(path, net, about | {"seconds": rows[0].seconds}, torch.bfloat16)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    target = DATA / "results" / "drl_cifar.json"
    earlier = results.load(target)[0] if target.exists() else []  # the notebook shows those as well
    own = [row for row in rows if row.preset == rows[0].preset and row not in earlier]
    where = {"commit": options.commit, "settings": checkpoint.key_hash(key["settings"]), "checkpoint": path.name}
    command = f"papermill notebooks/drl_cifar.ipynb out.ipynb -p preset {rows[0].preset} -p dataset {key['dataset']}"
    results.save(target, own, overwrite=True, command=command, sha256=digest, **where)
    print(f"wrote {path.name}, {path.stat().st_size / 1e3:.0f} kB, and {len(own)} rows")


if __name__ == "__main__":
    main()
