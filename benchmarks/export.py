"""Bundles a long run of recovery likelihood with the book: its EMA weights, its record, and its rows.

    python benchmarks/export.py RUN_FOLDER NAME [--rows EXECUTED.ipynb COMMIT]

RUN_FOLDER is the `run_dir` of a long run. Writes data/checkpoints/NAME.safetensors, the EMA weights as bfloat16, or as
they are where the net is small, and NAME_record.safetensors where the run kept a record. With --rows, EXECUTED.ipynb
being the notebook's output and COMMIT the commit it ran at, also the rows, as data/results/<notebook>.json.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from ebmlib import checkpoint, results
from ebmlib.nets.energies import TimeWideResNet, parameter_count

DATA = Path(__file__).resolve().parents[1] / "data"
SMALL = 100_000  # weights: a file of so few is small in float32, too, and its energies keep their digits


def bundle(run_folder: Path, name: str, folder: Path = DATA / "checkpoints", **about: Any) -> tuple[Path, dict]:
    """Write the newest checkpoint's running mean, and the record if there is one; the file and the run's key."""
    found = sorted(run_folder.glob("step-*.safetensors"))
    if not found:
        raise SystemExit(f"{run_folder} holds no checkpoint step-*.safetensors")
    meta = checkpoint.load(found[-1])[1]
    net = TimeWideResNet(**meta["key"]["net"])
    checkpoint.load_module(found[-1], net, ema=True)
    about |= {"key": meta["key"], "iteration": meta["iteration"]}
    record, path = run_folder / "record.safetensors", folder / f"{name}.safetensors"
    if record.exists():
        objects, told = checkpoint.load(record)
        checkpoint.save(folder / f"{name}_record.safetensors", objects, told)
        about |= {key: told[key] for key in ("preset", "device", "seconds")}
    checkpoint.save_weights(path, net, about, None if parameter_count(net) < SMALL else torch.bfloat16)
    print(f"wrote {path.name}, {path.stat().st_size / 1e3:.0f} kB" + ", and its record" * record.exists())
    return path, meta["key"]


def write_rows(path: Path, key: dict[str, Any], executed: Path, commit: str) -> None:
    """Write the rows of the run behind a bundled file, and its hash beside them."""
    notebook = json.loads(executed.read_text())["metadata"]["papermill"]["input_path"]
    target = DATA / "results" / f"{Path(notebook).stem}.json"
    rows = results.read(executed)
    earlier = results.load(target)[0] if target.exists() else []  # the notebook shows those as well
    own = [row for row in rows if row.preset == rows[0].preset and row not in earlier]
    where = {"commit": commit, "settings": checkpoint.key_hash(key["settings"]), "checkpoint": path.name}
    command = (
        f"papermill notebooks/{Path(notebook).name} out.ipynb -p preset {rows[0].preset} -p dataset {key['dataset']}"
    )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    results.save(target, own, overwrite=True, command=command, sha256=digest, **where)
    print(f"wrote {len(own)} rows into {target.name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("name")
    parser.add_argument("--rows", nargs=2, metavar=("EXECUTED", "COMMIT"))
    options = parser.parse_args()
    about = {}
    if options.rows:
        first = results.read(options.rows[0])[0]
        about = {"preset": first.preset, "device": first.device, "seconds": first.seconds}
    path, key = bundle(options.run_folder, options.name, **about)
    if options.rows:
        write_rows(path, key, Path(options.rows[0]), options.rows[1])


if __name__ == "__main__":
    main()
