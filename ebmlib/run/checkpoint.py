"""Checkpoint files, which are whole or refused, and the weights of nets in them.

A checkpoint is one safetensors file: tensors, a JSON skeleton that says how they nest, and a SHA-256 over all of it.
Nothing is pickled.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor, nn

from ebmlib.files import atomic, one_line

FORMAT = "ebmlib-checkpoint-1"
SUFFIX = ".safetensors"


def save(path: str | Path, objects: Mapping[str, Any], meta: Mapping[str, Any] | None = None) -> Path:
    """Write nested dicts, lists and tuples of tensors, arrays and plain values as one file, whole or not at all.

    `meta` is a JSON object. OSError, one sentence, if the file cannot be written; what was there before stays.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    body = json.dumps({"format": FORMAT, "meta": dict(meta or {}), "objects": _pack(objects, tensors, "")})
    header = {"ebmlib": body, "sha256": digest(tensors, body)}
    with atomic(path) as draft:
        try:
            safetensors_torch.save_file(tensors, draft, metadata=header)
        except SafetensorError as error:  # a full disk, say
            raise OSError(f"cannot write {path}: {one_line(error)}") from error
    return path


def load(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read (objects, meta) back, tensors on the CPU, after the SHA-256 has been compared.

    ValueError, one sentence naming the file, if it is truncated, altered or foreign; OSError if it cannot be read.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise type(error)(f"cannot read checkpoint {path}: {one_line(error)}") from None
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
        why = "it has no such header" if isinstance(error, LookupError) else one_line(error)
        raise ValueError(f"{path} is damaged or not a checkpoint of ebmlib ({why})") from None


def _pack(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """The JSON skeleton of `value`; every tensor goes into `tensors` under the name that the skeleton gives."""
    if isinstance(value, Mapping):
        return {"dict": [[key, _pack(item, tensors, f"{name}/{key}")] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_pack(item, tensors, f"{name}/{i}") for i, item in enumerate(value)]}
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if not isinstance(value, Tensor | np.ndarray):
        raise TypeError(f"a checkpoint holds tensors, arrays and nested plain values, not {type(value).__name__}")
    while name in tensors:
        name += "'"
    kind, value = ("tensor", value) if isinstance(value, Tensor) else ("array", torch.from_numpy(np.array(value)))
    tensors[name] = value.detach().to("cpu", copy=True).contiguous()  # safetensors refuses tensors that share memory
    return {kind: name}


def _unpack(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    match node:
        case {"tensor": name}:
            return tensors[name]
        case {"array": name}:
            return tensors[name].numpy()
        case {"dict": items}:
            return {key: _unpack(item, tensors) for key, item in items}
        case {"list": items}:
            return [_unpack(item, tensors) for item in items]
        case {"tuple": items}:
            return tuple(_unpack(item, tensors) for item in items)
    return node


def digest(tensors: Mapping[str, Tensor], body: str = "") -> str:
    """SHA-256, in hexadecimal, of a text and of named tensors: their names, types, shapes and bytes."""
    total = hashlib.sha256(body.encode())
    for name in sorted(tensors):
        value = tensors[name]
        total.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        if value.numel():
            total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def key_hash(key: Mapping[str, Any]) -> str:
    """The first 12 hex digits of the SHA-256 of the key's canonical JSON; TypeError if a value is not JSON's."""
    text = json.dumps(key, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def save_weights(
    path: str | Path, module: nn.Module, meta: Mapping[str, Any] | None = None, dtype: torch.dtype | None = None
) -> Path:
    """Write a net's weights alone: parameters as `dtype` (bfloat16 halves the file), buffers as they are."""
    weights = module.state_dict()
    if dtype is not None:
        weights |= {name: value.to(dtype) for name, value in module.named_parameters()}
    return save(path, {"weights": {"net": weights}}, meta)


def load_module(
    path: str | Path, module: nn.Module, *, ema: bool = True, expect: Mapping[str, Any] = {}, name: str | None = None
) -> dict[str, Any]:
    """Copy a checkpoint's weights into `module` (their running mean where there is one and `ema`); returns the meta.

    `expect` holds entries of the meta, or of the run's key in it, that must be equal. `name` picks one of several nets.
    ValueError, one sentence that names the first difference, if the checkpoint is of another net or run.
    """
    objects, meta = load(path)
    known = {**(meta["key"] if isinstance(meta.get("key"), dict) else {}), **meta}
    for entry, wanted in expect.items():
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
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    for name in own | given:
        if name not in given:
            raise ValueError(f"{source} is of another net: it has no {name}")
        if name not in own:
            raise ValueError(f"{source} is of another net: this net has no {name}")
        if given[name] != own[name]:
            raise ValueError(f"{source} is of another net: its {name} has shape {given[name]}, not {own[name]}")
    module.load_state_dict(weights)
