"""A state taken apart into plain values, which go to JSON, and tensors, which go to files of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

_PLAIN = (bool, int, float, str)


def take_apart(value: Any, place: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """``value`` as JSON that names its tensors, and those tensors by name, uncopied.

    Containers are copied, so that the caller may go on and change his own. Tuples, bytes, numpy arrays and keys that
    are no texts keep their kind; mappings of all kinds come back as ``dict``.

    Args:
        place: what ``value`` is called, for the message.

    Raises:
        TypeError: something in it is neither a plain value nor a tensor; says where.
    """
    tensors: dict[str, torch.Tensor] = {}
    return _apart(value, place, "", tensors), tensors


def put_together(tree: Any, tensor: Callable[[str], torch.Tensor]) -> Any:
    """What ``take_apart`` took apart; ``tensor`` finds a tensor by its name.

    Raises:
        ValueError: it is no such tree.
    """
    if isinstance(tree, list):
        return [put_together(item, tensor) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if len(tree) != 1:
        raise ValueError(f"a node with the keys {sorted(tree)}")
    ((kind, content),) = tree.items()
    if kind == "dict":
        return {put_together(key, tensor): put_together(value, tensor) for key, value in content}
    if kind == "tuple":
        return tuple(put_together(item, tensor) for item in content)
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "tensor":
        return tensor(content)
    if kind == "array":
        return tensor(content).numpy()
    raise ValueError(f"a node of the kind {kind!r}")


def _apart(value: Any, place: str, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return {"tensor": _named(path, value, tensors)}
    if value is None or type(value) in _PLAIN:
        return value
    if isinstance(value, Mapping):
        below = f"{path}." if path else ""
        return {
            "dict": [
                [key if type(key) is str else _key(key, place), _apart(item, place, f"{below}{key}", tensors)]
                for key, item in value.items()
            ]
        }
    if isinstance(value, list | tuple):
        below = f"{path}." if path else ""
        items = [
            item if type(item) in _PLAIN else _apart(item, place, f"{below}{i}", tensors)
            for i, item in enumerate(value)
        ]
        return {"tuple": items} if isinstance(value, tuple) else items
    if type(value) in (np.ndarray, np.memmap) and (array := _array(value)) is not None:
        return {"array": _named(path, array, tensors)}
    if isinstance(value, np.generic) and not isinstance(value.item(), np.generic):  # long doubles stay what they are
        return _apart(value.item(), place, path, tensors)
    if isinstance(value, bool | int | float | str):  # subclasses, as those of Enum
        return _bare(value)
    if isinstance(value, bytes | bytearray):
        return {"bytes": bytes(value).hex()}
    where = f"{place}.{path}" if path else place
    what = f"{type(value).__name__}{f' of {value.dtype}' if isinstance(value, np.ndarray) else ''}"
    raise TypeError(
        f"state {where}: a {what} cannot be saved (allowed: tensors, numpy arrays, numbers, "
        "texts, None, lists, tuples, mappings of them, and objects with state_dict())"
    )


def _bare(value: Any) -> Any:
    if isinstance(value, str):
        return str.__str__(value)  # str() of an Enum's member is its name
    return int(value) if isinstance(value, int) else float(value)


def _array(value: np.ndarray[Any, Any]) -> torch.Tensor | None:
    """``value`` as a tensor of the same memory where torch can hold it there; None: it has no such numbers."""
    if any(stride < 0 for stride in value.strides) or not value.flags.writeable:
        value = value.copy()
    try:
        return torch.from_numpy(value)
    except (TypeError, ValueError):  # texts, dates, records, another order of bytes
        return None


def _key(key: Any, place: str) -> Any:
    tree, tensors = take_apart(key, place)
    if tensors:
        raise TypeError(f"state {place}: a tensor cannot be a key")
    return tree


def _named(path: str, tensor: torch.Tensor, tensors: dict[str, torch.Tensor]) -> str:
    """Keep ``tensor`` under a name of its own: ``a.b`` and ``a`` within ``b`` read the same."""
    name, again = path, 1
    while name in tensors or not name or name == "__metadata__":
        again += 1
        name = f"{path}~{again}"
    tensors[name] = tensor.detach()
    return name
