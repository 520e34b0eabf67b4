"""Files that are written whole or not at all, and errors as a part of one sentence."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Give a path to write to inside the block; at its end the finished file takes the place of `path`.

    If the block raises, or the process is killed, what was at `path` before stays. The file and its folder are synced
    to disk. OSError, one sentence that names `path`, where the system cannot write it.
    """
    path, draft = Path(path), None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        draft = Path(name)
        yield draft
        draft.chmod(0o644)  # mkstemp's file can be read by its owner alone
        sync(draft)
        os.replace(draft, path)
        sync(path.parent)
    except OSError as error:
        if error.errno is None:  # the block's own sentence
            raise
        raise OSError(f"cannot write {path}: {one_line(error)}") from error
    finally:
        if draft is not None:
            draft.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def one_line(error: BaseException) -> str:
    """What an error says, without line breaks and the final dot, in at most 160 characters."""
    inner = getattr(error, "reason", None)  # urllib wraps what really happened
    error = inner if isinstance(inner, BaseException) else error
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:160].rstrip(".")
