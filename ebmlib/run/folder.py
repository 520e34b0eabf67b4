"""Run folders that no second run can overwrite, with the stages of a run in folders of their own."""

import contextlib
import itertools
import json
import os
import re
import shutil
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from ebmlib.files import atomic, one_line
from ebmlib.run import parallel
from ebmlib.run.checkpoint import SUFFIX, key_hash, load, save

RESULT = f"result{SUFFIX}"
CHECKPOINTS = f"step-*{SUFFIX}"
Generators = Sequence[torch.Generator]


def open_run(
    notebook: str, key: Mapping[str, Any], run_dir: Any = None, resume: bool = False, generators: Generators = ()
) -> "Run":
    """A run folder: `run_dir`, or ./runs/<notebook>/<hash of key>; the next free of -2, -3, ... if a run is there.

    `resume` continues the newest unfinished run of the same key. The folder appears with its first checkpoint or stage.
    `generators` are those whose states a stage leaves behind (`Run.once`). FileNotFoundError if there is nothing to
    resume, with what the most similar run has instead; RuntimeError if it is in use, OSError if it is not writable.
    """
    base = Path("runs") / notebook / key_hash(key) if run_dir is None else Path(run_dir)
    run = Run(base.expanduser().absolute(), notebook, dict(key), generators)
    parallel.once(run._reopen if resume else lambda: _check_writable(run.folder))
    return run


class Run(contextlib.AbstractContextManager):
    """One run's folder: run.json, log.csv, checkpoints, stages, and a lock that dies with the process. See `open_run`.

    Where several processes train, each has a Run and calls its methods alike; the first process's does the work.
    """

    def __init__(self, base: Path, notebook: str, key: dict, generators: Generators, parent: "Run | None" = None):
        self.key, self.generators, self.parent = key, generators, parent
        self.hash = key_hash(key) if parent is None else parent.hash  # `describe` adds to the key alone
        self._base, self._folder, self._lock = base, None, None
        self._called: list[str] = []  # folders of the stages so far
        about = {"notebook": notebook, "hash": self.hash, "key": self.key, "finished": False, "stages": []}
        self._info = about | {"opened": uuid.uuid4().hex}  # another process that goes on with the run writes its own

    def once(self, name: str, compute: Callable[["Run"], Any]) -> Any:
        """The stored result of a stage, or what compute(stage) returns, stored in <run>/<name>/ when it is done.

        `stage` is a Run for `fit(..., run=stage)`, which goes on there after an interruption. The result is what
        `checkpoint.save` takes; it comes back with tensors on the CPU. A stage whose folder was deleted runs again, and
        so do those after it. Torch's own generator and the run's are left as the stage left them. ValueError if the
        name was used before in this run, or if what is stored is damaged.
        """
        place = re.sub(r"[^a-z0-9_.]+", "-", name.lower()).strip("-.")
        if place in ("", "tensorboard", *self._called):
            raise ValueError(f"a stage is named {name!r}; each needs a name of its own, of letters or digits")
        stage = Run(self._base, self._info["notebook"], self.key, self.generators, self)
        done, stage._folder = parallel.once(lambda: self._begin(place))
        stage._info["stages"] = _read(stage._folder).get("stages", [])
        about = {"stage": name, "hash": self.hash}
        if not done:
            try:
                result = compute(stage)
            except BaseException:
                self.close()  # the same process may resume it
                raise
            stored = lambda: {"result": result, **parallel.random_state(self.generators)}
            header = {**about, "notebook": self._info["notebook"], "key": self.key}
            parallel.once(lambda: save(stage.create() / RESULT, stored(), header))
        objects = parallel.once(lambda: _result(stage._folder, about))  # the same, whether new or of an earlier process
        parallel.set_random_state(objects, self.generators)
        self._called.append(place)
        return objects["result"]

    def _begin(self, place: str) -> tuple[bool, Path]:
        """(whether the next stage is stored, its folder); if not, the folders of the stages after it are removed."""
        folder, count, stages = self.create() / place, len(self._called), self._info["stages"]
        known = stages[count : count + 1] == [place]
        if known and (folder / RESULT).exists():
            return True, folder
        for later in stages[count + known :]:
            shutil.rmtree(self._folder / later, ignore_errors=True)
        if place not in stages and folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not a stage of this run: move it away, or name the stage anew")
        self._write(stages=[*self._called, place])
        folder.mkdir(exist_ok=True)
        _sweep(folder)
        return False, folder

    def describe(self, **entries: Any) -> None:
        """Add entries, such as net=shape, to the key in the headers of checkpoints and run.json, not to the hash."""
        key_hash(entries)  # plain JSON values, or TypeError
        if changed := [name for name, value in entries.items() if self.key.get(name, value) != value]:
            raise ValueError(f"the run's key has another {' and '.join(changed)} already; describe adds entries")
        self.key.update(entries)
        self._write()

    @property
    def folder(self) -> Path:
        """Where the run lives; before the first write, where it would live if no other run comes first."""
        return parallel.once(lambda: self._folder or next(place for place in self._places() if not _holds_work(place)))

    def _places(self) -> Iterator[Path]:
        yield self._base
        yield from (self._base.with_name(f"{self._base.name}-{number}") for number in itertools.count(2))

    @parallel.by_the_first
    def create(self) -> Path:
        """Make the folder and lock it, once; the first write calls this."""
        if self.parent is not None:
            self.parent.create()
        elif self._folder is None:
            self._folder = next(place for place in self._places() if self._claim(place))
            _sweep(self._folder)
            self._write(created=time.time())
        elif self._lock is None:  # let go of by `close`
            self._lock = _acquire(self._folder)
            if self._lock is None or _read(self._folder).get("opened") != self._info["opened"]:
                self.close()
                raise RuntimeError(f"the run {self._folder} was taken over by another process")
        return self._folder

    def _claim(self, folder: Path) -> bool:
        """Make a folder and lock it, if no other run works in it."""
        if _holds_work(folder):
            return False
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _acquire(folder)
        if _holds_work(folder):  # another run was faster
            self.close()
        return self._lock is not None

    def _reopen(self) -> None:
        """Lock the newest unfinished run with this key that holds work."""
        name, found, others = re.compile(re.escape(self._base.name) + r"(-\d+)?"), {}, []
        for folder in self._base.parent.iterdir() if self._base.parent.is_dir() else ():
            info = _read(folder)
            if info.get("notebook") == self._info["notebook"] and not info["finished"] and _holds_work(folder):
                if name.fullmatch(folder.name) and info["hash"] == self.hash:
                    found[info["created"]] = folder, info
                others.append((_differences(info["key"], self.key), str(folder)))
        if not found:
            said = f"there is no unfinished run of these settings to resume at {self._base}"
            differ, folder = min(others, key=lambda other: len(other[0]), default=([], ""))
            raise FileNotFoundError(said + (f": {folder} has {', '.join(differ[:3])}" if differ else ""))
        folder, info = found[max(found)]
        _check_writable(folder)
        self._lock = _acquire(folder)
        if self._lock is None:
            raise RuntimeError(f"the run {folder} is in use by process {info['process']}")
        _sweep(folder)
        self._folder = folder
        self._write(created=info["created"], stages=info["stages"])

    @parallel.by_the_first
    def _write(self, **entries: Any) -> None:
        """Add entries to run.json, now if the folder is there, else with the first write."""
        self._info.update(entries)
        if self._folder is not None:
            self.write_text("run.json", json.dumps({**self._info, "process": os.getpid()}, indent=1) + "\n")

    @parallel.by_the_first
    def write_text(self, name: str, text: str) -> Path:
        """Replace a small text file in the folder in one step."""
        path = self.create() / name
        with atomic(path) as draft:
            draft.write_text(text)
        return path

    @parallel.by_the_first
    def checkpoints(self) -> list[Path]:
        """The checkpoints in the folder, newest last."""
        return [] if self._folder is None else sorted(self._folder.glob(CHECKPOINTS))

    @parallel.by_the_first
    def newest(self) -> tuple[Path, dict[str, Any], dict[str, Any]] | None:
        """(path, objects, meta) of the newest whole checkpoint; None if there is no checkpoint.

        Damaged ones after it get the ending .damaged, with a warning. ValueError if none is whole.
        """
        damaged: list[tuple[Path, Exception]] = []
        for path in reversed(self.checkpoints()):
            try:
                found = load(path)
            except (OSError, ValueError) as error:
                damaged.append((path, error))
                continue
            for broken, error in damaged:
                aside = broken.rename(f"{broken}.damaged")  # or it would count as the newest
                warnings.warn(f"{error}: it is now {aside.name}, and the run goes on from {path}", stacklevel=2)
            return path, *found
        if damaged:
            raise damaged[0][1]
        return None

    @parallel.by_the_first
    def save(self, iteration: int, objects: Mapping[str, Any], meta: Mapping[str, Any], keep: int = 2) -> Path:
        """Write the checkpoint of one iteration, then remove all but the newest `keep`."""
        meta = {**meta, "iteration": iteration, "notebook": self._info["notebook"], "key": self.key}
        path = save(self.create() / f"step-{iteration:08d}{SUFFIX}", objects, meta)
        for old in self.checkpoints()[: -max(keep, 1)]:
            old.unlink(missing_ok=True)
        return path

    @parallel.by_the_first
    def finish(self) -> None:
        """Mark the run as finished (it is not resumed any more) and let go of the lock."""
        self.create()
        self._write(finished=True)
        self.close()

    def close(self) -> None:
        """Let go of the lock, which a stage shares with its run; the folder stays. A later write takes it again."""
        if self.parent is not None:
            self.parent.close()
        elif self._lock is not None:
            self._lock.release()
            self._lock = None

    def __exit__(self, *_: Any) -> None:
        self.close()


def _holds_work(folder: Path) -> bool:
    """Whether a folder has a checkpoint, a stage that was begun, or a finished run."""
    info = _read(folder)
    return bool(any(folder.glob(CHECKPOINTS)) or info.get("stages") or info.get("finished"))


def _differences(theirs: Any, ours: Any, name: str = "") -> list[str]:
    """The entries of a key in which another differs, as parts of a sentence; what only the other has does not count."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        inner = ((entry, theirs.get(entry), ours[entry]) for entry in ours)
        return [part for entry, a, b in inner for part in _differences(a, b, f"{name}.{entry}".lstrip("."))]
    return [] if theirs == json.loads(json.dumps(ours)) else [f"{name} = {theirs!r}, not {ours!r}"]


def _read(folder: Path) -> dict[str, Any]:
    """The folder's run.json; nothing if it is missing or damaged."""
    try:
        return json.loads((folder / "run.json").read_text())
    except (OSError, ValueError):
        return {}


def _result(folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage stored; ValueError, one sentence, if it is damaged or of another run or stage."""
    try:
        objects, meta = load(folder / RESULT)
        if not about.items() <= meta.items():
            raise ValueError(f"{folder / RESULT} is of another run or stage")
    except (OSError, ValueError) as error:
        raise ValueError(f"{error}; to compute it and the stages after it again, delete {folder}") from None
    return objects


def _acquire(folder: Path) -> FileLock | None:
    """The folder's lock, or None if another run holds it, in this process or another."""
    try:
        lock = FileLock(folder / ".lock", timeout=0, thread_local=False)
        return lock.acquire().lock
    except Timeout:
        return None


def _sweep(folder: Path) -> None:
    """Remove what a killed process was writing."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def _check_writable(folder: Path) -> None:
    """Try for real, in the nearest folder that is there, and leave nothing behind."""
    try:
        tempfile.TemporaryDirectory(dir=next(place for place in (folder, *folder.parents) if place.exists())).cleanup()
    except OSError as error:
        raise OSError(f"cannot write to the run folder {folder}: {one_line(error)}") from None
