"""The table of the ONNX operators that can be imported. Each file that translates operators adds its own to it.

A node is refused if PyTorch has nothing that computes exactly the same, or if it would mix the images of a batch. The
meaning of each operator is at https://onnx.ai/onnx/operators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import fx

from prefiqs_ext.models.onnx_import.node import Node

Build = Callable[[Node], fx.Node | list[fx.Node]]


class Operator(NamedTuple):
    """How one operator is imported.

    Attributes:
        attributes: The names of the supported attributes. A node with another attribute is refused.
        build: Adds the translation of a node to the torch graph, and returns its result there; a list if the operator
            has several.
        data: How many inputs have data. The ones behind them are shapes, sizes or places, which are read off the
            inferred values (`Node.get_integers`); the nodes that compute them are left out. None: all have data.
    """

    attributes: frozenset[str]
    build: Build
    data: int | None = None


OPERATORS: dict[str, Operator] = {}
"""All supported operators by their ONNX names."""


def register(names: str, attributes: str = "", *, data: int | None = None) -> Callable[[Build], Build]:
    """Return a decorator that puts a function into OPERATORS under these names, with these supported attributes."""

    def add(build: Build) -> Build:
        OPERATORS.update(dict.fromkeys(names.split(), Operator(frozenset(attributes.split()), build, data)))
        return build

    return add
