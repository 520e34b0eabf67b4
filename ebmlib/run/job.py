"""A notebook's first call: its parameters checked, device, data and run folder made ready, its settings shown."""

import importlib.util
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ebmlib import data
from ebmlib.page import results, shown
from ebmlib.run import checkpoint as checkpoints
from ebmlib.run import folder, parallel, training
from ebmlib.settings import resolve
from ebmlib.settings.value import Settings
from ebmlib.targets import densities


@dataclass
class Job:
    """What `start` made ready: parameters, settings and data of this run of a notebook."""

    notebook: str
    preset: str
    seed: int
    cfg: Any  # the resolved settings
    published: Mapping[str, Any]  # what the paper sets for this data set, where that is not the chapter's own
    device: torch.device
    rng: torch.Generator  # of `seed`, on `device`
    dataset: str  # its true name
    checkpoint: str | None
    run_dir: str | None
    resume: bool
    density: Any = None  # the 2D target, where the chapter has one
    train: Tensor | None = None  # uint8 (N, C, H, W), where the chapter has images
    held_out: Tensor | None = None
    split: str = ""  # of `held_out`
    sha256: str = ""  # of `train`, where no published hash vouches for it
    run: Any = None  # the open run folder

    def open_run(self, dataset: str, **more: Any) -> None:
        """Open the run folder `run` for these data. `more` tells runs apart that agree in settings, data and seed.

        `start` calls it, or, where the settings have `opens_run = False`, the notebook.
        """
        self.dataset = dataset
        images = {"images_sha256": self.sha256} if self.sha256 else {}
        key = {"settings": asdict(self.cfg), "dataset": dataset, "seed": self.seed, **images, **more}
        self.run = folder.open_run(self.notebook, key, self.run_dir, self.resume, [self.rng])

    def row(self, name: str, value: float, se: float | None = None, n: int | None = None, **more: Any) -> results.Row:
        """A result with data set, preset, seed and device filled in; `more` are other columns of `results.Row`."""
        about = {"dataset": self.dataset, "preset": self.preset, "seed": self.seed}
        return results.Row(name, value, se, n, **about | {"device": results.hardware(self.device)} | more)

    def show(self, rows: Iterable[results.Row]) -> None:
        """Finish the run, if anything was saved in it, and show its rows, then the committed ones of the notebook."""
        if self.run is not None and parallel.once(lambda: (self.run.folder / "run.json").exists()):
            self.run.finish()
        results.show(rows)
        results.show_committed(self.notebook, self.preset)


def start(cls: type[Settings], namespace: Mapping[str, Any]) -> Job:
    """Check the parameters among a notebook's globals, make ready what they ask for, and show the settings.

    ValueError in one sentence for an unknown name or a wrong value, before anything is downloaded or written.
    """
    given = resolve.parameters(namespace)
    common = resolve.common(cls, given)
    cfg, published = resolve.resolved(cls, given)
    preset, seed = common.pop("preset"), common.pop("seed")
    if getattr(cfg, "deterministic", False):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first matrix product on a GPU
    device = training.pick_device(common.pop("device"))
    parallel.join(device)
    if device.type == "cuda" and preset == "quick":
        print("A GPU is here: -p preset gpu is meant for about 10 minutes on one.")
    common["dataset"] = cfg.true_name(common["dataset"])
    job = Job(cls.notebook, preset, seed, cfg, published, device, training.seeded(seed, device), **common)
    if job.checkpoint is not None:
        _check_origin(cls, job.checkpoint, checkpoints.load(job.checkpoint)[1])  # a missing or damaged file stops here
    if cls.kind == "density":
        job.density = densities.by_name(job.dataset)
        job.dataset = job.density.name
    elif cls.kind == "images":
        folder.open_run(cls.notebook, {}, job.run_dir)  # only a look whether the folder can be written
        _images(job)
    if cls.opens_run:
        job.open_run(job.dataset)
    if importlib.util.find_spec("matplotlib"):
        from ebmlib.page import plots

        plots.style()
    _table(job)
    return job


def _check_origin(cls: type[Settings], path: str, header: Mapping[str, Any]) -> None:
    """ValueError if a checkpoint is another notebook's; a header without its name is known by its settings."""
    settings = header.get("key", {}).get("settings", {})
    fitting = [name for name, one in resolve.classes().items() if settings.keys() <= {f.name for f in fields(one)}]
    writers = [header["notebook"]] if "notebook" in header else fitting if settings else []
    reads = cls.reads or cls.notebook
    if writers and reads not in writers:
        raise ValueError(f"checkpoint = {path!r} is of {writers[0]}: {cls.notebook} takes checkpoints of {reads}")


def _images(job: Job) -> None:
    """Load the images to train on and to judge by; a banner says where the bundled set stands in for another."""
    with parallel.in_turn():
        job.train, source = data.images(job.dataset, size=job.cfg.size, fallback=job.preset in ("smoke", "quick"))
        job.dataset, job.sha256, job.split = source.name, source.sha256, data.held_out(source.name)
        job.held_out = job.train
        if job.split != "train":
            job.held_out, _ = data.images(job.dataset, job.split, size=job.cfg.size)
    if source.fallback:
        shown.banner(source.note)
    needed = job.cfg.images_needed(job.train[0].numel())
    if len(job.train) < needed or len(job.held_out) < 16:
        counts = f"{len(job.train)} images to train on and {len(job.held_out)} (split {job.split}) to judge by"
        raise ValueError(f"{job.dataset} has {counts}: at least {needed} and 16 are needed")


def _table(job: Job) -> None:
    """Show the settings: paper's text | released code | this run; a column without values is left out."""
    heads = ("setting", "paper's text", "released code", f"this run ({job.preset})", "where")
    columns = zip(heads, *resolve.table(job.cfg, job.published))
    heads, *rows = zip(*(column for column in columns if {*column[1:]} != {"not given"}))
    shown.table(heads, rows, fold=f"Settings of this run (preset {job.preset})")
