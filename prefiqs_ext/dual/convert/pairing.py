"""Decides where the pair starts, and duplicates shared values where they meet paired ones."""

from __future__ import annotations

from torch import fx

from prefiqs_ext.dual.convert.batch_axis import Value
from prefiqs_ext.dual.convert.layers import Layer
from prefiqs_ext.dual.modules import double_number, double_size, duplicate
from prefiqs_ext.exceptions import UnsupportedNetworkError


def pair(graph: fx.Graph, values: dict[fx.Node, Value], layers: dict[str, Layer]) -> None:
    """Rewrite a graph that gives the embedding [N, d] to give the pair [2N, d].

    Every value is shared ([N], computed once) until a layer whose mask removes something gives a paired one ([2N],
    dense rows first, along the dimension that grows with the batch). An operation that reads a paired value gives a
    paired value. The shared tensors that it reads are duplicated; they are never broadcast, which would hide a mistake
    for N = 1. Sizes that it reads from shared values are doubled. A dual_conv2d takes a shared residual as it is.

    Args:
        graph: Changed in place.
        values: What its nodes compute.
        layers: The layers by the target of their node.

    Raises:
        UnsupportedNetworkError: A tuple of shared tensors is used whole beside a paired one.
    """
    paired: set[fx.Node] = set()
    twins: dict[fx.Node, fx.Node] = {}

    def get_twin(node: fx.Node, user: fx.Node) -> fx.Node:
        """Return the paired form of a shared value, which is made once, before its first user."""
        if node not in twins:
            with graph.inserting_before(user):
                twins[node] = _add_twin(graph, node, values[node])
        return twins[node]

    def is_paired(node: object) -> bool:
        return isinstance(node, fx.Node) and node in paired

    for node in list(graph.nodes):
        if node.op == "output":
            embedding = node.args[0]
            if not is_paired(embedding):
                node.args = (get_twin(embedding, node),)
        elif node.op == "call_module" and node.target in layers:
            masked = layers[str(node.target)].mask is not None
            src, *residual = node.args
            if residual and is_paired(residual[0]) and not masked and not is_paired(src):
                src = get_twin(src, node)
            inside = is_paired(src) or src in twins.values()
            node.args = (src, *residual)
            node.kwargs = {"paired": True} if inside else {}
            if masked or inside:
                paired.add(node)
        elif any(source in paired for source in node.all_input_nodes):
            for source in node.all_input_nodes:
                if source not in paired and values[source].batch:
                    node.replace_input_with(source, get_twin(source, node))
            if values[node].batch:
                paired.add(node)


def _add_twin(graph: fx.Graph, node: fx.Node, value: Value) -> fx.Node:
    if value.kind == "tensor":
        return graph.call_function(duplicate, (node, value.dim) if value.dim else (node,))
    if value.kind == "number":
        return graph.call_function(double_number, (node,))
    if value.kind == "size":
        return graph.call_function(double_size, (node, value.dim) if value.dim else (node,))
    raise UnsupportedNetworkError(
        f"dualize: {node.name!r}, several values computed before the pair starts, is used whole after it"
    )
