"""Small networks to convert, and the comparison of what comes out with two plain models."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from oracle import expected_pair
from torch import Tensor, fx, nn

from prefiqs_ext.dual import DualConv2d, DualLinear, dualize
from prefiqs_ext.pruning import Pruning

# float32 against float64, of the largest value. Sums of a few hundred products round to some 1e-6; a wrong border pixel
# or a value paired wrongly is off by 1e-1.
TOLERANCE = 1e-5
ALL = Pruning(layers="conv+linear")


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter and statistic random and far from its default: a shift or scale that is lost shows."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean.normal_(0, 1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
        for parameter in module.parameters(recurse=False):
            parameter.data.normal_(0.1, 0.5, generator=generator)
    return model.eval()


def check(
    model: nn.Module, x: Tensor, pruning: Pruning = ALL, *, fold: bool = True, dtype: torch.dtype = torch.float64
) -> fx.GraphModule:
    """The converted model, after comparing it with two plain ones of `dtype` on all rows of x and on one."""
    graph = dualize(model, pruning, example=x, fold=fold)
    masks = pruning.make_masks(model)
    for rows in (x, x[-1:]):
        result, expected = graph(rows), expected_pair(model, masks, rows, dtype)
        assert result.shape == expected.shape
        assert float((result - expected).abs().max() / expected.abs().max()) < TOLERANCE
    return graph


def check_folding(
    model: nn.Module, x: Tensor, pruning: Pruning = ALL, *, dtype: torch.dtype = torch.float64
) -> fx.GraphModule:
    """The folded graph, after checking it and the unfolded one."""
    check(model, x, pruning, fold=False, dtype=dtype)
    return check(model, x, pruning, dtype=dtype)


def calls(graph: fx.GraphModule) -> list[str]:
    """What a graph computes, in order: class, function or method names."""
    names = []
    for node in graph.graph.nodes:
        if node.op == "call_module":
            names.append(type(graph.get_submodule(node.target)).__name__)
        elif node.op in ("call_function", "call_method"):
            names.append(node.target if isinstance(node.target, str) else node.target.__name__)
    return names


class Net(nn.Module):
    """Convolution, the function under test, pooling to an embedding [N, 4 x 2 x 2]; parameters for the functions."""

    def __init__(self, function: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.conv = nn.Conv2d(3, 4, 3)
        self.late = nn.Conv2d(4, 4, 1)
        self.linear = nn.Linear(4, 4)
        self.token = nn.Parameter(torch.empty(1, 1, 4))
        self.gain = nn.Parameter(torch.empty(4, 1, 1))
        self.free = nn.BatchNorm2d(4, track_running_stats=False)
        seeded(self)

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self.function(self, self.conv(x)), 2).flatten(1)


def tokens(m: Net, x: Tensor) -> Tensor:
    """A class token and attention written out, as in a vision transformer; sizes read from every kind of value."""
    n, c = x.shape[0], x.shape[1]
    sequence = x.flatten(2).transpose(1, 2)
    sequence = torch.cat([m.token.expand(n, -1, -1), sequence], dim=1)
    sequence = torch.cat([sequence, x.new_zeros(n, 1, c), sequence.new_ones(sequence.size(0), 1, c)], dim=1)
    attention = (m.linear(sequence) @ sequence.transpose(1, 2)).softmax(-1)
    mixed = F.scaled_dot_product_attention(sequence, attention @ sequence, sequence)
    return mixed.reshape(n, -1, c).permute(0, 2, 1).unsqueeze(-1)


class Outputs(nn.Module):
    """What `collect` makes of a map [N, 4, H, W] and an embedding [N, 2]."""

    def __init__(self, collect: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
        self.collect = collect
        seeded(self)

    def forward(self, x: Tensor) -> object:
        x = self.conv(x)
        return self.collect(x, self.linear(x.mean((2, 3))))


def rescale(graph: fx.GraphModule) -> None:
    """Give the pruned branch of every layer that has one a scale and a bias of its own, at random."""
    torch.manual_seed(0)
    for layer in graph.modules():
        if isinstance(layer, (DualConv2d, DualLinear)) and layer.mask is not None:
            channels = layer.weight.shape[0]
            layer.pruned_scale = 0.5 + torch.rand(channels)
            bias = torch.zeros(channels) if layer.bias is None else layer.bias
            layer.bias = torch.stack([bias, bias + 0.1 * torch.randn(channels)])
