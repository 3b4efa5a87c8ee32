"""The state of the import of an ONNX file.

Each value in the file is either a constant or an activation. A constant is an initialiser (a stored weight), or follows
from initialisers and shapes alone. An activation depends on the network's input. One of its axes is the batch axis: it
holds the images one after the other, each with one or more rows. It is the first axis of the input and of the outputs;
in between an attention may move it, or join it with the heads behind it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, fx, nn

from prefiqs_ext.utils.budget import Budget

Array = np.ndarray[Any, Any]
Shape = tuple[int | None, ...]


class Inferred(NamedTuple):
    """What is known of the values of a graph before it computes anything, for one batch size.

    Attributes:
        shapes: The shape of every value, with None for a size that the file leaves open.
        numbers: The values of small constants, and of those that follow from shapes.
        literals: The names of the constants whose numbers the file holds.
    """

    shapes: dict[str, Shape]
    numbers: dict[str, Array]
    literals: frozenset[str]


class State:
    """The state of an import: the torch graph so far, and the meaning of the names in the ONNX file.

    Args:
        opset: The opset of the file.
        constants: The initialisers by name. Constants that follow from them are added during the import.
        inferred: The shapes of all values and the numbers of some, for one batch size.
        batch: That batch size, and the one that the file declares; None if it leaves it open.
        budget: What the file may still cost.

    Attributes:
        graph: The torch graph so far.
        activations: The nodes of the torch graph by the name of the ONNX value that they compute.
        batch_axes: The batch axis of each activation by name.
        owned: The modules and buffers of the torch graph by name.
    """

    def __init__(
        self, opset: int, constants: dict[str, Array], inferred: Inferred, batch: int | None, budget: Budget
    ) -> None:
        self.opset = opset
        self.budget = budget
        self.constants = constants
        self.inferred = inferred
        self.declared_batch = batch
        self.batch = batch or 1
        self.graph = fx.Graph()
        self.activations: dict[str, fx.Node] = {}
        self.batch_axes: dict[str, int] = {}
        self.owned: dict[str, nn.Module | Tensor] = {}
        self._parents: set[str] = set()
        self._repeats: dict[str, int] = {}

    def find_constant(self, name: str) -> Array | None:
        """Return the numbers of a value that depends on no image; None for an activation."""
        known = self.constants.get(name)
        return self.inferred.numbers.get(name) if known is None else known

    def keep(self, name: str, item: nn.Module | Tensor) -> str:
        """Keep a module or buffer under a name, or under a similar name if it is taken. Return that name."""
        if self._is_taken(name):
            base = name = name.replace(".", "_")
            while self._is_taken(name):
                self._repeats[base] = self._repeats.get(base, 0) + 1
                name = f"{base}_{self._repeats[base]}"
        self.owned[name] = item
        self._parents.update(_list_parents(name))
        return name

    def _is_taken(self, name: str) -> bool:
        # "a" and "a.b" must not both be modules of the file: replacing the outer one would lose the inner one.
        return (
            name in self.owned or name in self._parents or any(parent in self.owned for parent in _list_parents(name))
        )


def _list_parents(name: str) -> list[str]:
    """Return the names of all outer modules: "a" and "a.b" for "a.b.c"."""
    atoms = name.split(".")
    return [".".join(atoms[:end]) for end in range(1, len(atoms))]
