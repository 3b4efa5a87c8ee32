"""Which of a network's outputs is the embedding: one rule for all that run networks.

An embedding has two columns or more: a score of quality, or a norm, beside it has one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from prefiqs_ext.exceptions import InputError, UnsupportedNetworkError


class NoOutputError(InputError):
    """The network has no such output as was asked for."""


def select_embedding(outputs: object, output: int | str | None = None) -> Tensor:
    """Returns the embeddings ``[N, d]`` among what a network gave.

    They are the first floating tensor of two dimensions and two columns or more, among all outputs or in the one named.

    Raises:
        NoOutputError: there is no output of that name.
        UnsupportedNetworkError: there are no embeddings.
    """
    tensors = [leaf for leaf in iterate_leaves(select_output(outputs, output)) if isinstance(leaf, Tensor)]
    for tensor in tensors:
        if is_embedding(tuple(tensor.shape), tensor.dtype):
            return tensor
    raise UnsupportedNetworkError(describe_no_embedding((str(list(tensor.shape)) for tensor in tensors), output))


def select_output(outputs: object, output: int | str | None) -> object:
    """Returns the output of this index or key; all of them for None. A number as text is an index where it is no key.

    Args:
        outputs: what a network gives: tensors, or what stands for them in a graph.
        output: the index or key.

    Raises:
        NoOutputError: there is no such output.
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
    """Whether a tensor of this shape and type can be a batch of embeddings ``[N, d]``."""
    return len(shape) == 2 and shape[1] > 1 and dtype is not None and dtype.is_floating_point


def describe_no_embedding(shapes: Iterator[str], output: int | str | None) -> str:
    """Returns what to say of outputs none of which is an embedding."""
    what = "an embedding, a floating tensor [N, d] of 2 columns or more"
    expected = f"{what}, among the network's outputs" if output is None else f"{what}, as the output {output!r}"
    return f"expected {expected}; got {', '.join(shapes) or 'no tensor'}"


def iterate_leaves(outputs: object) -> Iterator[object]:
    """Yields the elements of nested tuples, lists and dictionaries, in order."""
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    if isinstance(outputs, (tuple, list)):
        for element in outputs:
            yield from iterate_leaves(element)
    else:
        yield outputs
