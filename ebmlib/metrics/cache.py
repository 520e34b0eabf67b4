"""Tensors that are computed once, such as the features of a data set: kept in files under the hash of what made them.

A file is a checkpoint: safetensors with a JSON header and a SHA-256, written whole or not at all, never pickled.
"""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ebmlib.run import checkpoint


def kept(folder: Path, key: Mapping[str, Any], compute: Callable[[], Tensor]) -> Tensor:
    """The tensor, on the CPU, that `compute` gave for this key: read from `folder`, else computed and written there.

    key: plain JSON values that determine the tensor, with a "kind" to name the file. The header repeats the key, and
    only an equal key hits. A damaged or foreign file is computed anew, and a folder that cannot be written to is left
    alone; either is a warning of one sentence.
    """
    path = folder / f"{key['kind']}-{checkpoint.key_hash(key)}{checkpoint.SUFFIX}"
    found = _read(path, key) if path.exists() else None
    if found is not None:
        return found
    value = compute().detach().cpu()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.save(path, {"value": value}, {"key": dict(key)})
    except OSError as error:
        warnings.warn(f"computed, but not kept for the next time: {error}", stacklevel=3)
    return value


def _read(path: Path, key: Mapping[str, Any]) -> Tensor | None:
    try:
        objects, meta = checkpoint.load(path)
        if meta.get("key") != key or not isinstance(objects.get("value"), Tensor):
            raise ValueError(f"{path} was made from something else")
    except (OSError, ValueError) as error:
        warnings.warn(f"computed anew: {error}", stacklevel=4)
        return None
    return objects["value"]
