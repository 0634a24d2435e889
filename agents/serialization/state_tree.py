"""Nested state (dictionaries, lists, numbers, tensors) as a flat dictionary of tensors and plain JSON.

That is what an archive holds without pickling. `flatten` takes tensors and arrays out of a tree and leaves
markers, `unflatten` puts them back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

MARKER = "__tensor__"


def flatten(tree: Any) -> tuple[dict[str, Tensor], Any]:
    """Split a tree into its tensors by path, and the rest, which JSON can represent.

    Raises:
        TypeError: a value is not a tensor, an array or a plain type; the message names its path.
    """
    tensors: dict[str, Tensor] = {}

    def walk(node: Any, path: str) -> Any:
        if isinstance(node, Tensor):
            tensors[path] = node.detach()
            return {MARKER: "torch"}
        if isinstance(node, np.ndarray):
            tensors[path] = torch.as_tensor(np.ascontiguousarray(node)).reshape(node.shape)
            return {MARKER: "numpy"}
        if isinstance(node, Mapping):
            if not all(isinstance(key, str) and key != MARKER for key in node):
                raise TypeError(f"{path or 'the state'} has a key that is not a plain string: {list(node)}")
            return {key: walk(value, f"{path}/{key}") for key, value in node.items()}
        if isinstance(node, list | tuple):
            return [walk(value, f"{path}/{index}") for index, value in enumerate(node)]
        if isinstance(node, np.generic):
            return node.item()
        if node is None or isinstance(node, bool | int | float | str):
            return node
        raise TypeError(f"{path or 'the state'} holds a {type(node).__name__}, which no archive can store")

    return tensors, walk(tree, "")


def unflatten(tensors: Mapping[str, Tensor], rest: Any) -> Any:
    """Rebuild the tree that `flatten` split (tuples become lists).

    Raises:
        KeyError: a tensor is missing.
    """

    def walk(node: Any, path: str) -> Any:
        if isinstance(node, dict):
            if MARKER in node:
                tensor = tensors[path]
                return tensor.numpy().copy() if node[MARKER] == "numpy" else tensor
            return {key: walk(value, f"{path}/{key}") for key, value in node.items()}
        if isinstance(node, list):
            return [walk(value, f"{path}/{index}") for index, value in enumerate(node)]
        return node

    return walk(rest, "")
