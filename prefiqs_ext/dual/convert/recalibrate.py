"""Finds the gains and shifts that hold the channels of the pruned branch to those of the dense branch.

It is one walk over the captured graph with all images, layer after layer, before anything is folded. At a pruned layer,
the raw output of the dense branch on dense values and that of the pruned branch on pruned values are measured: for each
output channel, mean and standard deviation over all images and pixels, rows or tokens. Then

    gain = dense deviation / pruned deviation, clamped to `GAINS`,
    shift = dense mean - gain * pruned mean,

and the walk goes on with gain * output + shift as the pruned branch's value. The gain is 1 where either deviation is
next to nothing.

A layer that is called several times has one gain and one shift, from the moments of all its calls together. The walk
stays one: each call is measured in its turn, and goes on with the constants of the calls up to it.

The values that both branches share are computed once. As every layer needs all images before the walk can go on, the
walk keeps, for all of them, the values of both branches that later operations still read. At its peak these are some
three or four maps of the largest layer per image: with SFace and IResNet, 9 to 10 MB per image were measured.
"""

from __future__ import annotations

from collections import ChainMap, defaultdict

import torch
from torch import Tensor, fx

from prefiqs_ext.dual.convert.layers import Layer
from prefiqs_ext.dual.convert.trace import TracedModel
from prefiqs_ext.exceptions import InputError
from prefiqs_ext.recalibration import GAINS, ChannelScale, Recalibration

_CHUNK = 8  # images that run together
# A deviation of less than this, relative to the layer's mean deviation and to the channel's own mean, is next to
# nothing. Float32 sums round to some 1e-6 of their terms, so a ratio of two deviations is good to a few per cent there.
_NOTHING = 1e-4


@torch.no_grad()
def find_constants(traced: TracedModel, layers: dict[str, Layer], images: Tensor) -> Recalibration:
    """Find the constants of every layer that has a mask.

    Args:
        traced: The model's graph, before folding and pairing; nothing is changed.
        layers: The layers by the target of their node.
        images: What the model takes, [N, ...].

    Raises:
        InputError: A layer gives NaN or infinity on these images.
    """
    called = {node: layers.get(str(node.target)) if node.op == "call_module" else None for node in traced.graph.nodes}
    masked = [node for node, layer in called.items() if layer is not None and layer.mask is not None]
    chunks = [_Chunk(traced, rows.clone()) for rows in torch.split(images, _CHUNK)]  # a model may write to its input
    moments: dict[str, tuple[_Moments, _Moments]] = defaultdict(lambda: (_Moments(), _Moments()))
    scales: dict[str, ChannelScale] = {}
    for node, layer in called.items():
        if not masked:
            break
        if layer is None or layer.mask is None:
            for chunk in chunks:
                chunk.step(node, layer)
            continue
        axis = 1 if layer.dims else -1
        weight = layer.weight * layer.mask.to(layer.weight.device)
        dense, pruned = moments[layer.name]
        for chunk in chunks:
            values = chunk.split(node, layer, weight)
            dense.add(values[0], axis)
            pruned.add(values[1], axis)
        scales[layer.name] = scale = _match(dense, pruned, layer.name)
        for chunk in chunks:
            chunk.rescale(node, scale, axis)
        masked.remove(node)
    return Recalibration(scales)


class _Chunk:
    """A few images on their way through the graph: the dense branch's values, and those that the pruned one changed."""

    def __init__(self, traced: TracedModel, images: Tensor) -> None:
        self._dense, self._pruned = (fx.Interpreter(traced.root, graph=traced.graph) for _ in range(2))
        self._dense.args_iter = iter((images,))
        self._changed: dict[fx.Node, Tensor] = {}
        self._pruned.env = ChainMap(self._changed, self._dense.env)  # type: ignore[assignment]

    def step(self, node: fx.Node, layer: Layer | None) -> None:
        """Run a node in the dense branch, and in the pruned one where it reads a value that differs."""
        self._dense.env[node] = self._run(self._dense, node, layer)
        if any(source in self._changed for source in node.all_input_nodes):
            self._changed[node] = self._run(self._pruned, node, layer)
        self._forget(node)

    def split(self, node: fx.Node, layer: Layer, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Run a pruned layer in both branches, the pruned one with this weight: [n, ...] each."""
        (source,) = node.args
        assert isinstance(source, fx.Node)
        dense = layer.compute_raw(self._dense.env[source], layer.weight)
        pruned = layer.compute_raw(self._pruned.env[source], weight)
        self._dense.env[node], self._changed[node] = dense, pruned
        self._forget(node)
        return dense, pruned

    def rescale(self, node: fx.Node, scale: ChannelScale, axis: int) -> None:
        """Recalibrate what a pruned layer gave."""
        gain, shift = (vector.to(self._changed[node].device) for vector in scale)
        self._changed[node].movedim(axis, -1).mul_(gain).add_(shift)

    def _run(self, branch: fx.Interpreter, node: fx.Node, layer: Layer | None) -> Tensor:
        if layer is None:
            return branch.run_node(node)  # type: ignore[no-any-return]
        (source,) = node.args
        assert isinstance(source, fx.Node)
        return layer.compute_raw(branch.env[source], layer.weight)

    def _forget(self, node: fx.Node) -> None:
        """Free the values that no later node reads."""
        for last_used in self._dense.user_to_last_uses.get(node, ()):
            self._dense.env.pop(last_used, None)
            self._changed.pop(last_used, None)


class _Moments:
    """Mean and standard deviation of each channel, over all values so far, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self._squares = torch.zeros(1, dtype=torch.float64)

    def add(self, values: Tensor, axis: int) -> None:
        """Add values, whose channels are along `axis`."""
        values = values.movedim(axis, -1).double()
        others = tuple(range(values.dim() - 1))
        mean = values.mean(others)
        squares = values.sub_(mean).square_().sum(others).cpu()  # several times faster than torch.var
        # Two sets of values joined (Chan, Golub and LeVeque, The American Statistician 37, 1983).
        before, own = self.count, values.numel() // len(mean)
        self.count += own
        difference = mean.cpu() - self.mean
        self.mean = self.mean + difference * own / self.count
        self._squares = self._squares + squares + difference.square() * before * own / self.count

    @property
    def deviation(self) -> Tensor:
        """float64 [Co], at least 0."""
        return (self._squares / self.count).sqrt()

    @property
    def varies(self) -> Tensor:
        """Bool [Co], False where the deviation is next to nothing."""
        return self.deviation > _NOTHING * (self.deviation.mean() + self.mean.abs())


def _match(dense: _Moments, pruned: _Moments, name: str) -> ChannelScale:
    if not all(bool(moments.deviation.isfinite().all()) for moments in (dense, pruned)):
        raise InputError(f"recalibrate: the layer {name!r} gives NaN or infinity on these images: pass typical ones")
    ratio = (dense.deviation / pruned.deviation).clamp(*GAINS)
    gain = torch.where(dense.varies & pruned.varies, ratio, 1).float()
    return ChannelScale(gain, (dense.mean - gain.double() * pruned.mean).float())
