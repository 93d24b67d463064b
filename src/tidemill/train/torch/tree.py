"""Trees of tensors and JSON values, taken apart for the disk and put together again.

Keys may be text or whole numbers; tuples stay tuples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_TENSOR, _ITEMS, _TUPLE = "__tensor__", "__items__", "__tuple__"


def split(tree: Any, path: str) -> tuple[dict[str, Tensor], Any]:
    """The tensors of a tree by their path, and the rest as JSON in which each tensor is named.

    An object with `state_dict` and `load_state_dict` stands for its state.

    Raises:
        TypeError: If a leaf is neither a tensor nor a JSON value.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _taken(tree, path, tensors)


def joined(plain: Any, find: Callable[[str], Any]) -> Any:
    """The tree again.

    Args:
        plain: What `split` made of it.
        find: From a tensor's path to the tensor.
    """
    if isinstance(plain, list):
        return [joined(value, find) for value in plain]
    if not isinstance(plain, dict):
        return plain
    if _TENSOR in plain:
        return find(plain[_TENSOR])
    if _TUPLE in plain:
        return tuple(joined(value, find) for value in plain[_TUPLE])
    if _ITEMS in plain:
        return {key: joined(value, find) for key, value in plain[_ITEMS]}
    return {key: joined(value, find) for key, value in plain.items()}


def objects(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The objects of a tree that stand for their state, with their paths."""
    if _is_object(tree):
        yield path, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from objects(value, f"{path}/{key}")
    elif isinstance(tree, (list, tuple)):
        for number, value in enumerate(tree):
            yield from objects(value, f"{path}/{number}")


def at(plain: Any, path: str) -> Any:
    """The part of what `split` made that lies at a path below its root."""
    for key in path.split("/")[1:]:
        if isinstance(plain, dict):
            plain = plain.get(_TUPLE, plain)
        if isinstance(plain, dict) and _ITEMS in plain:
            plain = {str(known): value for known, value in plain[_ITEMS]}
        plain = plain[int(key)] if isinstance(plain, list) else plain[key]
    return plain


def _taken(tree: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    import torch

    if isinstance(tree, torch.Tensor):
        tensors[path] = tree
        return {_TENSOR: path}
    if _is_object(tree):
        return _taken(tree.state_dict(), path, tensors)
    if isinstance(tree, Mapping):
        taken = {key: _taken(value, f"{path}/{key}", tensors) for key, value in tree.items()}
        return taken if all(isinstance(key, str) for key in taken) else {_ITEMS: [[key, value] for key, value in taken.items()]}
    if isinstance(tree, (list, tuple)):
        values = [_taken(value, f"{path}/{number}", tensors) for number, value in enumerate(tree)]
        return values if isinstance(tree, list) else {_TUPLE: values}
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise TypeError(f"{path}: a checkpoint holds tensors and JSON values, got {type(tree).__name__}")


def _is_object(value: Any) -> bool:
    return hasattr(value, "state_dict") and hasattr(value, "load_state_dict")
