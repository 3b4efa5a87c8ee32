"""dualize reads the caller's model, copies what it needs, keeps nothing else."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from duals import ALL, Net, tokens
from networks import ZOO, calibrated, network_input, pictures
from torch import Tensor, nn

from prefiqs_ext.dual import DualConv2d, dualize, duplicate
from prefiqs_ext.pruning import Pruning


class Remembers(nn.Module):
    """Its forward writes to itself; its layers share things and are not all trainable."""

    def __init__(self) -> None:
        super().__init__()
        self.net = calibrated("residual")
        self.last: Tensor | None = None
        self.register_buffer("calls", torch.zeros(()))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.last = x
        self.calls += 1
        return self.net(x)


def state(model: nn.Module) -> dict[str, object]:
    """Everything that a conversion could change: tensors, flags, and every attribute's identity."""
    found: dict[str, object] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            found[f"{name}.{key}"] = dict(value) if isinstance(value, dict) else value
        found[f"{name} keys"] = list(vars(module))
    tensors = {
        name: (id(t), t.clone(), t.requires_grad, t.grad) for name, t in model.state_dict(keep_vars=True).items()
    }
    return found | {
        "tensors": {name: (i, t.numpy(force=True).tobytes(), r, g) for name, (i, t, r, g) in tensors.items()}
    }


@pytest.mark.parametrize("fold", [True, False])
def test_the_model_is_not_changed(fold: bool) -> None:
    model = Remembers()
    x = network_input(pictures(2, 32))
    before, x_before = state(model), x.clone()
    dualize(model, example=x, fold=fold)
    assert state(model) == before
    assert torch.equal(x, x_before)


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("name", ["residual", "concat", "reuse", "tokens"])
def test_nothing_of_the_model_is_kept(name: str, fold: bool) -> None:
    model = calibrated(name) if name in ZOO else Net(tokens)
    x = network_input(pictures(2, 32))
    masks = Pruning().make_masks(model)
    graph = dualize(model, masks, example=x, fold=fold)
    owned = {t.untyped_storage().data_ptr() for t in (*graph.parameters(), *graph.buffers())}
    assert not owned & {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept = [
        weakref.ref(thing) for thing in (*model.modules(), *model.parameters(), *model.buffers(), *masks.values(), x)
    ]
    result = graph(x)
    del model, masks, x
    gc.collect()
    assert [reference() for reference in kept if reference() is not None] == []
    assert not result.requires_grad


def test_resident_bytes() -> None:
    """One dense model, one bit per pruned weight, two numbers per tap of each filter: and no tensor beside."""
    model = calibrated("iresnet18")
    dense = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    gc.collect()
    before = {id(thing) for thing in gc.get_objects() if issubclass(type(thing), Tensor)}
    graph = dualize(model, ALL, example=network_input(pictures(1)))
    owned = sum(t.numel() * t.element_size() for t in (*graph.parameters(), *graph.buffers()))
    assert owned <= 1.04 * dense
    gc.collect()
    new = [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor) and id(thing) not in before]
    assert sum(t.untyped_storage().nbytes() for t in new) == owned


def test_the_graph_can_be_copied_and_pickled() -> None:
    x = network_input(pictures(2, 32))
    graph = dualize(calibrated("concat"), Pruning(layers="narrow.*"), example=x)
    for other in (copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        assert torch.equal(other(x), graph(x))


def test_memory_formats() -> None:
    """Weights lie channels_last; inputs may lie anyhow, and what is duplicated keeps its format."""
    x = network_input(pictures(2, 32))
    graph = dualize(calibrated("residual"), example=x)
    for module in graph.modules():
        if isinstance(module, DualConv2d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last)
            assert module.weight.dtype == torch.float32
    channels_last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(graph(channels_last), graph(x))
    assert duplicate(channels_last).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(duplicate(x), torch.cat([x, x]))
