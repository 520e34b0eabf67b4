"""Checkpoints that are whole or refused, and run folders that no second run can overwrite.

A checkpoint is one safetensors file: tensors, a JSON skeleton that says how they nest, and a SHA-256 over all of it.
Nothing is pickled.
"""

import fcntl
import hashlib
import itertools
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor, nn

from ebmlib.run import parallel

FORMAT = "ebmlib-checkpoint-1"
SUFFIX = ".safetensors"


# The file ------------------------------------------------------------------------------------------------------------


def save(path: str | Path, objects: Mapping[str, Any], meta: Mapping[str, Any] | None = None) -> Path:
    """Write nested dicts, lists and tuples of tensors, arrays and plain values as one file, whole or not at all.

    `meta` is a JSON object. OSError, one sentence, if the file cannot be written; what stood there before stays.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    body = json.dumps({"format": FORMAT, "meta": dict(meta or {}), "objects": _pack(objects, tensors, "")})
    header = {"ebmlib": body, "sha256": digest(tensors, body)}
    _unshare(tensors)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        safetensors_torch.save_file(tensors, temporary, metadata=header)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise OSError(f"cannot write checkpoint {path}: {_reason(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def load(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read (objects, meta) back, tensors on the CPU, after the SHA-256 has been compared.

    FileNotFoundError or ValueError, one sentence naming the file, if it is missing, truncated, altered or foreign.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no checkpoint {path}") from None
    except OSError as error:
        raise OSError(f"cannot read checkpoint {path}: {_reason(error)}") from error
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        tensors = safetensors_torch.load(data)
        if digest(tensors, header["ebmlib"]) != header["sha256"]:
            raise ValueError("its SHA-256 does not match")
        body = json.loads(header["ebmlib"])
        if body["format"] != FORMAT:
            raise ValueError(f"its format is {body['format']}, not {FORMAT}")
        return _unpack(body["objects"], tensors), body["meta"]
    except (LookupError, SafetensorError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = "it has no such header" if isinstance(error, LookupError) else _reason(error)
        raise ValueError(f"{path} is damaged or not a checkpoint of ebmlib ({reason})") from None


def _pack(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """The JSON skeleton of `value`; every tensor goes into `tensors` under the name that the skeleton gives."""
    if isinstance(value, Tensor):
        return {"tensor": _put(value, tensors, name)}
    if isinstance(value, np.ndarray):
        return {"array": _put(torch.from_numpy(np.ascontiguousarray(value)).reshape(value.shape), tensors, name)}
    if isinstance(value, Mapping):
        return {"dict": [[_plain(key), _pack(item, tensors, f"{name}/{key}")] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_pack(item, tensors, f"{name}/{i}") for i, item in enumerate(value)]}
    return _plain(value)


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a checkpoint holds tensors, arrays and nested plain values, not {type(value).__name__}")


def _put(value: Tensor, tensors: dict[str, Tensor], name: str) -> str:
    value = value.detach().cpu().contiguous()
    while name in tensors:
        name += "'"
    tensors[name] = value
    return name


def _unshare(tensors: dict[str, Tensor]) -> None:
    """Copy views and second names of one storage: safetensors refuses tensors that share memory."""
    seen: set[int] = set()
    for name, value in tensors.items():
        storage = value.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != value.numel() * value.element_size():
            tensors[name] = value.clone()
        seen.add(storage.data_ptr())


def _unpack(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(node, dict):
        return node
    ((kind, value),) = node.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "array":
        return tensors[value].numpy()
    if kind == "dict":
        return {key: _unpack(item, tensors) for key, item in value}
    items = [_unpack(item, tensors) for item in value]
    return items if kind == "list" else tuple(items)


def digest(tensors: Mapping[str, Tensor], body: str = "") -> str:
    """SHA-256, in hexadecimal, of a text and of named tensors on the CPU: their names, types, shapes and bytes."""
    total = hashlib.sha256(body.encode())
    for name in sorted(tensors):
        value = tensors[name]
        total.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        if value.numel():
            total.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:160]


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_text(path: Path, text: str) -> None:
    """Replace a small text file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text)
        _sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(f"cannot write {path}: {_reason(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


# Weights of a net ----------------------------------------------------------------------------------------------------


def save_weights(
    path: str | Path, module: nn.Module, meta: Mapping[str, Any] | None = None, dtype: torch.dtype | None = None
) -> Path:
    """Write a net's weights alone: floating parameters as `dtype` (bfloat16 halves the file), buffers as they are."""
    small = {name for name, value in module.named_parameters() if dtype is not None and value.is_floating_point()}
    weights = {name: value.to(dtype) if name in small else value for name, value in module.state_dict().items()}
    return save(path, {"weights": {"net": weights}}, meta)


def load_module(
    path: str | Path,
    module: nn.Module,
    *,
    ema: bool = True,
    expect: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """Copy a checkpoint's weights into `module` (their running mean where there is one and `ema`); returns the meta.

    `expect` holds entries of the meta, or of the run's key in it, that must be equal. `name` picks one of several nets.
    ValueError, one sentence that names the first difference, if the checkpoint is of another net or run.
    """
    objects, meta = load(path)
    known = {**(meta["key"] if isinstance(meta.get("key"), dict) else {}), **meta}
    for entry, wanted in (expect or {}).items():
        if known.get(entry) != json.loads(json.dumps(wanted)):
            raise ValueError(f"checkpoint {path} has {entry} = {known.get(entry)!r}, not {wanted!r}")
    nets = objects.get("weights") or {**objects.get("net", {}), **(objects.get("ema", {}) if ema else {})}
    if name is None and len(nets) == 1:
        (name,) = nets
    if name not in nets:
        raise ValueError(f"checkpoint {path} holds no net named {name!r}; it holds: {', '.join(nets) or 'none'}")
    load_weights(module, nets[name], path)
    return meta


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Copy a state dict into `module`; ValueError that names the first difference, before anything is copied."""
    own = module.state_dict()
    for name, value in own.items():
        if name not in weights:
            raise ValueError(f"{source} is of another net: it has no {name}")
        if weights[name].shape != value.shape:
            shapes = f"{tuple(weights[name].shape)}, not {tuple(value.shape)}"
            raise ValueError(f"{source} is of another net: its {name} has shape {shapes}")
    for name in weights:
        if name not in own:
            raise ValueError(f"{source} is of another net: this net has no {name}")
    module.load_state_dict(weights)


# Runs ----------------------------------------------------------------------------------------------------------------


def key_hash(key: Mapping[str, Any]) -> str:
    """The first 12 hex digits of the SHA-256 of the key's canonical JSON."""
    try:
        text = json.dumps(key, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"a run's key must be plain JSON values: {_reason(error)}") from None
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def open_run(notebook: str, key: Mapping[str, Any], run_dir: str | Path | None = None, resume: bool = False) -> "Run":
    """A run folder: `run_dir`, or ./runs/<notebook>/<hash of key>; the next free of -2, -3, ... if a run is there.

    `resume` continues the newest unfinished run of the same key. The folder appears with its first checkpoint.
    FileNotFoundError if there is nothing to resume, RuntimeError if it is in use, OSError if it is not writable.
    """
    base = Path("runs") / notebook / key_hash(key) if run_dir is None else Path(run_dir)

    def opened() -> Run:
        run = Run(base.expanduser().absolute(), notebook, key)
        if resume:
            run._reopen()
        else:
            _check_writable(run.folder)
        return run

    return opened() if parallel.size() == 1 else parallel.SharedRun(opened)


class Run:
    """One run's folder: run.json, log.csv, checkpoints, and a lock that dies with the process. See `open_run`."""

    def __init__(self, base: Path, notebook: str, key: Mapping[str, Any]):
        self.notebook, self.key, self.hash = notebook, dict(key), key_hash(key)
        self.resumed = False
        self._base, self._folder, self._lock, self._left = base, None, None, None
        self._made: list[Path] = []  # folders that this run made, outermost first
        self._info: dict[str, Any] = {"notebook": notebook, "hash": self.hash, "key": self.key, "finished": False}

    @property
    def folder(self) -> Path:
        """Where the run lives; before the first write, where it would live if no other run comes first."""
        return self._folder or next(name for name in _names(self._base) if not _holds_run(name))

    def create(self) -> Path:
        """Make the folder and lock it, once; the first write calls this."""
        if self._folder is not None:
            return self._relock()
        for folder in _names(self._base):
            if not _holds_run(folder) and self._claim(folder):
                break
        _sweep(self._folder)
        self.write(created=time.time())
        return self._folder

    def _claim(self, folder: Path) -> bool:
        made = [parent for parent in (folder, *folder.parents) if not parent.exists()][::-1]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = _acquire(folder)
        except OSError as error:
            _remove_empty(made)
            raise OSError(f"cannot make the run folder {folder}: {_reason(error)}") from error
        if lock is None or _holds_run(folder):  # another run was faster; the lock goes with its file
            return False
        self._folder, self._lock, self._made = folder, lock, made
        return True

    def _relock(self) -> Path:
        """Take the lock again after `close`, before the folder is written to."""
        if self._lock is None:
            self._lock = _acquire(self._folder)
            if self._lock is None or self._seen() != self._left:
                self._lock = None  # which closes it
                raise RuntimeError(f"the run {self._folder} was taken over by another process")
        return self._folder

    def write(self, **entries: Any) -> None:
        """Add entries to run.json, now if the folder is there, else with the first checkpoint."""
        self._info.update(entries)
        if self._folder is not None:
            self._relock()
            _write_text(self._folder / "run.json", json.dumps(self._info, indent=1) + "\n")

    def write_text(self, name: str, text: str) -> Path:
        """Replace a small text file in the folder in one step."""
        path = self.create() / name
        _write_text(path, text)
        return path

    def checkpoints(self) -> list[Path]:
        """The checkpoints in the folder, newest last."""
        return [] if self._folder is None else _checkpoints(self._folder)

    def save(self, iteration: int, objects: Mapping[str, Any], meta: Mapping[str, Any], keep: int = 2) -> Path:
        """Write the checkpoint of one iteration, then remove all but the newest `keep`."""
        meta = {**meta, "iteration": iteration, "key": self.key}
        try:
            path = save(self.create() / f"step-{iteration:08d}{SUFFIX}", objects, meta)
        except BaseException:
            self.discard()  # only a run that has no checkpoint goes
            raise
        for old in self.checkpoints()[: -max(keep, 1)]:
            old.unlink(missing_ok=True)
        return path

    def finish(self) -> None:
        """Mark the run as finished (it is not resumed any more) and let go of the lock."""
        self.create()
        self.write(finished=True)
        self.close()

    def close(self) -> None:
        """Let go of the lock; the folder stays."""
        if self._lock is not None:
            self._left = self._seen()
            self._lock.close()
            self._lock = None

    def _seen(self) -> Any:
        """What another process changes when it goes on with the run."""
        return self.checkpoints(), _read_info(self._folder) if self._folder else {}

    def discard(self) -> None:
        """Remove the folder again if this run made it and has no checkpoint; a run with checkpoints stays."""
        if self._folder is not None and not self.checkpoints() and not self.resumed:
            for name in ("run.json", "log.csv", ".lock"):
                (self._folder / name).unlink(missing_ok=True)
            _remove_empty(self._made)
            self._folder = None
        self.close()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        self.close() if kind is None else self.discard()

    def _reopen(self) -> None:
        found = [(info.get("created", 0.0), number, folder, info) for number, folder, info in self._relatives()]
        if not found:
            raise FileNotFoundError(f"there is no unfinished run of these settings to resume at {self._base}")
        *_, folder, info = max(found, key=lambda entry: entry[:2])
        _check_writable(folder)
        self._lock = _acquire(folder)
        if self._lock is None:
            raise RuntimeError(f"the run {folder} is in use by process {(folder / '.lock').read_text().strip()}")
        _sweep(folder)
        self._folder, self._info, self.resumed = folder, info, True

    def _relatives(self) -> Iterator[tuple[int, Path, dict[str, Any]]]:
        """(number, folder, run.json) of the unfinished runs with this key that have a checkpoint."""
        pattern = re.compile(re.escape(self._base.name) + r"(?:-(\d+))?")
        for folder in sorted(self._base.parent.iterdir()) if self._base.parent.is_dir() else []:
            match = pattern.fullmatch(folder.name)
            info = _read_info(folder) if match else {}
            if info.get("hash") == self.hash and not info.get("finished") and _checkpoints(folder):
                yield int(match[1] or 1), folder, info


def _names(base: Path) -> Iterator[Path]:
    yield base
    yield from (base.with_name(f"{base.name}-{number}") for number in itertools.count(2))


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"step-*{SUFFIX}"))


def _read_info(folder: Path) -> dict[str, Any]:
    try:
        info = json.loads((folder / "run.json").read_text())
    except (OSError, ValueError):
        return {}
    return info if isinstance(info, dict) else {}


def _holds_run(folder: Path) -> bool:
    return bool(_checkpoints(folder)) or bool(_read_info(folder).get("finished"))


def _acquire(folder: Path) -> Any:
    """The locked file, or None if another holds it. flock belongs to the open file: it also holds within a process."""
    path = folder / ".lock"
    file = open(path, "ab+", buffering=0)  # noqa: SIM115 (the lock lives as long as the open file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(file.fileno()).st_ino == path.stat().st_ino:  # else the file was removed since
            file.truncate(0)
            file.write(f"{os.getpid()}\n".encode())
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        file.close()
        path.unlink(missing_ok=True)
        raise
    file.close()
    return None


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
        raise OSError(f"cannot write to the run folder {folder}: {_reason(error)}") from None
