"""Run folders that no second run can overwrite, with the stages of a run in folders of their own."""

import itertools
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from ebmlib.files import atomic
from ebmlib.run import parallel
from ebmlib.run.checkpoint import SUFFIX, key_hash, load, reason, save

RESULT = f"result{SUFFIX}"


def open_run(
    notebook: str,
    key: Mapping[str, Any],
    run_dir: str | Path | None = None,
    resume: bool = False,
    generators: Sequence[torch.Generator] = (),
) -> "Run":
    """A run folder: `run_dir`, or ./runs/<notebook>/<hash of key>; the next free of -2, -3, ... if a run is there.

    `resume` continues the newest unfinished run of the same key. The folder appears with its first checkpoint or stage.
    `generators` are those whose states a stage leaves behind (`Run.once`). FileNotFoundError if there is nothing to
    resume, RuntimeError if it is in use, OSError if it is not writable.
    """
    base = Path("runs") / notebook / key_hash(key) if run_dir is None else Path(run_dir)
    run = Run(base.expanduser().absolute(), notebook, key, generators)
    run.resumed = resume
    parallel.once(run._reopen if resume else lambda: _check_writable(run.folder))
    return run


class Run:
    """One run's folder: run.json, log.csv, checkpoints, stages, and a lock that dies with the process. See `open_run`.

    Where several processes train, each has a Run and calls its methods alike; the first process's does the work.
    """

    def __init__(self, base: Path, notebook: str, key: Mapping[str, Any], generators: Sequence[torch.Generator] = ()):
        self.key, self.hash, self.generators = dict(key), key_hash(key), generators
        self.resumed, self.parent = False, None
        self._base, self._folder, self._lock = base, None, None
        self._made: list[Path] = []  # folders that this run made, outermost first
        self._called: list[str] = []  # folders of the stages so far
        about = {"notebook": notebook, "hash": self.hash, "key": self.key, "finished": False, "stages": []}
        self._info = about | {"opened": uuid.uuid4().hex}  # another process that goes on with the run writes its own

    # Stages ----------------------------------------------------------------------------------------------------------

    def once(self, name: str, compute: Callable[["Run"], Any]) -> Any:
        """The stored result of a stage, or what compute(stage) returns, stored in <run>/<name>/ when it is done.

        `stage` is a Run for `fit(..., run=stage)`, which goes on there after an interruption. The result is nested
        dicts, lists and tuples of tensors, arrays and plain values; it comes back with tensors on the CPU. The order of
        calls is the order of stages: one whose folder was deleted runs again, and so do those after it. Torch's own
        generator and the run's are left as the stage left them. ValueError if the name was used before in this run, or
        if what is stored is damaged.
        """
        place = re.sub(r"[^a-z0-9_.]+", "-", name.lower()).strip("-.")
        if place in ("", "tensorboard", *self._called):
            raise ValueError(f"a stage is named {name!r}; each needs a name of its own, of letters or digits")
        stage = Run(self._base, "", {})
        stage.parent, stage.key, stage.hash, stage.generators = self, self.key, self.hash, self.generators
        done, stage._folder = parallel.once(lambda: self._begin(place))
        stage._info |= {"hash": self.hash, "key": self.key, "stages": _read(stage._folder).get("stages", [])}
        about = {"stage": name, "hash": self.hash}
        if not done:
            try:
                result = compute(stage)
            except BaseException:
                self.close()  # the same process may resume it
                raise
            stored = lambda: {"result": result, **parallel.random_state(self.generators)}
            parallel.once(lambda: save(stage.create() / RESULT, stored(), {**about, "key": self.key}))
        objects = parallel.once(lambda: _result(stage._folder, about))  # the same, whether new or of an earlier process
        parallel.set_random_state(objects, self.generators)
        self._called.append(place)
        return objects["result"]

    def _begin(self, place: str) -> tuple[bool, Path]:
        """(whether the next stage is stored, its folder); if not, the folders of the stages after it are removed."""
        folder, count, stages = self.create() / place, len(self._called), self._info["stages"]
        done = stages[count : count + 1] == [place] and (folder / RESULT).exists()
        if not done:
            later = stages[count + 1 :] if stages[count : count + 1] == [place] else stages[count:]
            for old in later:
                shutil.rmtree(self._folder / old, ignore_errors=True)
            if place not in stages and folder.exists() and any(folder.iterdir()):
                raise ValueError(f"{folder} is not a stage of this run: move it away, or name the stage anew")
            self._write(stages=[*self._called, place])
            folder.mkdir(exist_ok=True)
            _sweep(folder)
        return done, folder

    def describe(self, **entries: Any) -> None:
        """Add entries, such as net=shape, to the key in the headers of checkpoints and run.json, not to the hash."""
        key_hash(entries)  # plain JSON values, or ValueError
        if changed := [name for name, value in entries.items() if self.key.get(name, value) != value]:
            raise ValueError(f"the run's key has another {' and '.join(changed)} already; describe adds entries")
        self.key.update(entries)
        self._write()

    # The folder ------------------------------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """Where the run lives; before the first write, where it would live if no other run comes first."""
        free = lambda: next(name for name in _names(self._base) if not _holds_work(name))
        return parallel.once(lambda: self._folder or free())

    @parallel.by_the_first
    def create(self) -> Path:
        """Make the folder and lock it, once; the first write calls this."""
        if self.parent is not None:
            self.parent.create()
        elif self._folder is None:
            while not self._claim(self.folder):
                pass
            _sweep(self._folder)
            self._write(created=time.time())
        elif self._lock is None:  # let go of by `close`
            self._lock = _acquire(self._folder)
            if self._lock is None or _read(self._folder).get("opened") != self._info["opened"]:
                self.close()
                raise RuntimeError(f"the run {self._folder} was taken over by another process")
        return self._folder

    def _claim(self, folder: Path) -> bool:
        made = [parent for parent in (folder, *folder.parents) if not parent.exists()][::-1]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = _acquire(folder)
        except OSError as error:
            _remove_empty(made)
            raise OSError(f"cannot make the run folder {folder}: {reason(error)}") from error
        if lock is None or _holds_work(folder):  # another run was faster
            return False
        self._folder, self._lock, self._made = folder, lock, made
        return True

    def _reopen(self) -> None:
        """Lock the newest unfinished run with this key that holds work."""
        found, pattern = [], re.compile(re.escape(self._base.name) + r"(?:-(\d+))?")
        for folder in self._base.parent.iterdir() if self._base.parent.is_dir() else ():
            match, info = pattern.fullmatch(folder.name), _read(folder)
            if match and info.get("hash") == self.hash and not info.get("finished") and _holds_work(folder):
                found.append((info.get("created", 0.0), int(match[1] or 1), folder, info))
        if not found:
            raise FileNotFoundError(f"there is no unfinished run of these settings to resume at {self._base}")
        *_, folder, info = max(found, key=lambda entry: entry[:2])
        _check_writable(folder)
        self._lock = _acquire(folder)
        if self._lock is None:
            raise RuntimeError(f"the run {folder} is in use by process {info.get('process')}")
        _sweep(folder)
        self._folder = folder
        self._write(**{name: info[name] for name in ("created", "stages") if name in info})

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
        try:
            with atomic(path) as draft:
                draft.write_text(text)
        except OSError as error:
            raise OSError(f"cannot write {path}: {reason(error)}") from error
        return path

    @parallel.by_the_first
    def checkpoints(self) -> list[Path]:
        """The checkpoints in the folder, newest last."""
        return [] if self._folder is None else _checkpoints(self._folder)

    @parallel.by_the_first
    def save(self, iteration: int, objects: Mapping[str, Any], meta: Mapping[str, Any], keep: int = 2) -> Path:
        """Write the checkpoint of one iteration, then remove all but the newest `keep`."""
        meta = {**meta, "iteration": iteration, "key": self.key}
        try:
            path = save(self.create() / f"step-{iteration:08d}{SUFFIX}", objects, meta)
        except BaseException:
            self.discard()  # only a run that holds no work goes
            raise
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

    def discard(self) -> None:
        """Remove the folder again if this run made it and it holds no checkpoint and no stage."""
        new = self._folder is not None and self.parent is None and not self.resumed
        if new and not _holds_work(self._folder):
            for name in ("run.json", "log.csv", ".lock"):
                (self._folder / name).unlink(missing_ok=True)
            _remove_empty(self._made)
            self._folder = None
        self.close()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        self.close() if kind is None else self.discard()


def _names(base: Path) -> Iterator[Path]:
    yield base
    yield from (base.with_name(f"{base.name}-{number}") for number in itertools.count(2))


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"step-*{SUFFIX}"))


def _holds_work(folder: Path) -> bool:
    """Whether a folder has a checkpoint, a stage that was begun, or a finished run."""
    info = _read(folder)
    return bool(_checkpoints(folder) or info.get("stages") or info.get("finished"))


def _read(folder: Path) -> dict[str, Any]:
    """The folder's run.json; nothing if it is missing or damaged."""
    try:
        info = json.loads((folder / "run.json").read_text())
    except (OSError, ValueError):
        return {}
    return info if isinstance(info, dict) else {}


def _result(folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage stored; ValueError, one sentence, if it is damaged or of another run or stage."""
    try:
        objects, meta = load(folder / RESULT)
        if {name: meta.get(name) for name in about} != about:
            raise ValueError(f"{folder / RESULT} is of another run or stage")
    except (OSError, ValueError) as error:
        raise ValueError(f"{error}; to compute it and the stages after it again, delete {folder}") from None
    return objects


def _acquire(folder: Path) -> FileLock | None:
    """The folder's lock, or None if another run holds it, in this process or another."""
    lock = FileLock(folder / ".lock", timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock


def _sweep(folder: Path) -> None:
    """Remove what a killed process was writing."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def _remove_empty(folders: list[Path]) -> None:
    for folder in reversed(folders):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _check_writable(folder: Path) -> None:
    """Try for real, in the nearest folder that is there, and leave nothing behind."""
    try:
        parent = next(place for place in (folder, *folder.parents) if place.exists())
        probe = parent / f".writable-{os.getpid()}"
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise OSError(f"cannot write to the run folder {folder}: {reason(error)}") from None
