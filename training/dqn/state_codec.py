"""The state of a training as JSON and named arrays, and back, exact to the last bit.

JSON holds the nesting, strings, integers of any size (a generator's state has 128 bits) and floats by their shortest
exact representation; arrays and tensors go beside it under a name. What JSON does not have is an object with one key
that begins with a dollar sign: `{"$array": "3"}`, `{"$float": "nan"}`, `{"$tuple": [...]}`, `{"$items": [[k, v]]}`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.errors import TrainingError

Array = NDArray[Any]

_KINDS = frozenset("?bBhHiIlLqQefdF")
"""Type characters of numpy that safetensors has: booleans, integers, floats up to 64 bits, complex64."""


def encode(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return JSON content and the arrays that it names.

    Args:
        state: Nested mappings (keys: strings or integers), lists, tuples, None, booleans, numbers, strings, numpy
            arrays and scalars, torch tensors (of any device; they come back on the CPU).

    Raises:
        TrainingError: Anything else; the message says where it stands.
    """
    arrays: dict[str, Array] = {}
    content = _encoded(state, "state", arrays)
    return content, arrays


def decode(content: Mapping[str, Any], arrays: Mapping[str, Array]) -> dict[str, Any]:
    """Return the state; its arrays are its own and can be written to.

    Raises:
        KeyError: An array that the content names is not there.
        ValueError: The content is not what `encode` writes.
    """
    state = _decoded(content, arrays)
    if not isinstance(state, dict):
        raise ValueError(f"the state is a {type(state).__name__}, not a mapping")  # noqa: TRY004 -- of the file, not of the call
    return state


def _encoded(value: Any, where: str, arrays: dict[str, Array]) -> Any:  # noqa: PLR0911 -- one line for each type
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, torch.Tensor):
        return _named(value, where, arrays)
    if isinstance(value, np.ndarray):
        return {"$array": _kept(value, where, arrays)}
    if isinstance(value, np.generic):  # before float: np.float64 is one, and would come back as one
        return {"$scalar": _kept(np.asarray(value), where, arrays)}
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
    if isinstance(value, list):
        return [_encoded(one, f"{where}[{i}]", arrays) for i, one in enumerate(value)]
    if isinstance(value, tuple):
        return {"$tuple": [_encoded(one, f"{where}[{i}]", arrays) for i, one in enumerate(value)]}
    if isinstance(value, Mapping):
        return _mapping(value, where, arrays)
    raise TrainingError(
        f"{where} is a {type(value).__name__}, which a checkpoint cannot hold: give arrays, tensors, numbers, strings, "
        "None, and lists, tuples and mappings of them"
    )


def _mapping(value: Mapping[Any, Any], where: str, arrays: dict[str, Array]) -> dict[str, Any]:
    for key in value:
        if not isinstance(key, str | int) or isinstance(key, bool):
            raise TrainingError(f"{where} has the key {key!r}: keys of a checkpoint are strings or integers")
    if all(isinstance(key, str) and not key.startswith("$") for key in value):
        return {key: _encoded(one, f"{where}.{key}", arrays) for key, one in value.items()}
    return {"$items": [[key, _encoded(one, f"{where}.{key}", arrays)] for key, one in value.items()]}


def _named(tensor: torch.Tensor, where: str, arrays: dict[str, Array]) -> dict[str, Any]:
    """Return the place of a tensor; types that numpy lacks (bfloat16) travel as integers of their width."""
    plain = tensor.detach().cpu().contiguous()
    if plain.dtype is torch.bfloat16:
        return {"$tensor": _kept(plain.view(torch.int16).numpy(), where, arrays), "dtype": "bfloat16"}
    try:
        return {"$tensor": _kept(plain.numpy(), where, arrays)}
    except TypeError as error:
        raise TrainingError(
            f"{where} is a tensor of {plain.dtype}, which a checkpoint cannot hold: convert it"
        ) from error


def _kept(array: Array, where: str, arrays: dict[str, Array]) -> str:
    if array.dtype.char not in _KINDS:
        raise TrainingError(f"{where} is an array of {array.dtype}, which a checkpoint cannot hold: convert it")
    name = str(len(arrays))
    # a copy of its own, in the byte order of the file: what is saved later cannot change what was given now
    arrays[name] = np.array(array, dtype=array.dtype.newbyteorder("<"), order="C", copy=True)
    return name


def _decoded(value: Any, arrays: Mapping[str, Array]) -> Any:  # noqa: PLR0911 -- one line for each tag
    if isinstance(value, list):
        return [_decoded(one, arrays) for one in value]
    if not isinstance(value, Mapping):
        return value
    match value:
        case {"$array": name}:
            return arrays[name].copy()
        case {"$scalar": name}:
            return arrays[name][()]
        case {"$tensor": name, "dtype": "bfloat16"}:
            return torch.from_numpy(arrays[name].copy()).view(torch.bfloat16)
        case {"$tensor": name}:
            return torch.from_numpy(arrays[name].copy())
        case {"$float": text}:
            return float(text)
        case {"$tuple": items}:
            return tuple(_decoded(one, arrays) for one in items)
        case {"$items": items}:
            return {key: _decoded(one, arrays) for key, one in items}
    return {key: _decoded(one, arrays) for key, one in value.items()}
