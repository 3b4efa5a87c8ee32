"""Find the embedding among the outputs of a network. Everything that runs a network uses this one rule.

For example, CR-FIQA's networks give a feature ``[N, 512]`` and a quality ``[N, 1]``. The feature is the embedding: it
is the first floating-point output of two dimensions with two columns or more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from prefiqs_ext.exceptions import InputError, UnsupportedNetworkError


class NoOutputError(InputError):
    """An output was asked for that the network does not have."""


def select_embedding(outputs: object, output: int | str | None = None) -> Tensor:
    """Return the embeddings among the outputs of a network.

    Args:
        outputs: What the network gave: a tensor, or tuples, lists and dictionaries of tensors.
        output: The index or key of the output to look into. None means all of them.

    Returns:
        The first floating-point tensor ``[N, d]`` with d of 2 or more.

    Raises:
        NoOutputError: There is no output with this index or key.
        UnsupportedNetworkError: None of the tensors is an embedding.
    """
    tensors = [leaf for leaf in iterate_leaves(select_output(outputs, output)) if isinstance(leaf, Tensor)]
    for tensor in tensors:
        if is_embedding(tuple(tensor.shape), tensor.dtype):
            return tensor
    raise UnsupportedNetworkError(describe_no_embedding((str(list(tensor.shape)) for tensor in tensors), output))


def select_output(outputs: object, output: int | str | None) -> object:
    """Return the output of a network with this index or key.

    Args:
        outputs: What the network gives: tensors, or the nodes that stand for them in a graph.
        output: The index or key. The text "1" means the index 1 unless it is a key. None means all outputs.

    Raises:
        NoOutputError: There is no output with this index or key.
    """
    if output is None:
        return outputs
    named: Mapping[object, object]
    if isinstance(outputs, Mapping):
        named = outputs
    elif isinstance(outputs, Sequence):
        named = dict(enumerate(outputs))
    else:
        named = {0: outputs}
    if output in named:
        return named[output]
    try:
        return list(named.values())[int(output)]
    except (ValueError, IndexError):
        several = isinstance(outputs, Mapping | Sequence)
        expected = f"one of {', '.join(map(repr, named))}" if several else "none, for it has but one: leave it out"
        raise NoOutputError(f"the network has no output {output!r}: expected {expected}") from None


def is_embedding(shape: tuple[int, ...], dtype: torch.dtype | None) -> bool:
    """Return whether a tensor of this shape and dtype can be a batch of embeddings ``[N, d]``."""
    return len(shape) == 2 and shape[1] > 1 and dtype is not None and dtype.is_floating_point


def describe_no_embedding(shapes: Iterator[str], output: int | str | None) -> str:
    """Return the error message for outputs of these shapes, none of which is an embedding."""
    what = "an embedding, a floating tensor [N, d] of 2 columns or more"
    expected = f"{what}, among the network's outputs" if output is None else f"{what}, as the output {output!r}"
    return f"expected {expected}; got {', '.join(shapes) or 'no tensor'}"


def iterate_leaves(outputs: object) -> Iterator[object]:
    """Yield the elements of nested tuples, lists and dictionaries, in order."""
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    if isinstance(outputs, (tuple, list)):
        for element in outputs:
            yield from iterate_leaves(element)
    else:
        yield outputs
