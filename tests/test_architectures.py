"""Every kind of network against two plain PyTorch models, and what a Scorer is compiled, exported and saved as."""

from __future__ import annotations

import io
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from architectures import ARCHITECTURES
from duals import check, randn, seeded
from networks import calibrated, network_input, pictures
from torch import Tensor, nn

from prefiqs_ext import Pruning, Scorer, dualize, reference
from prefiqs_ext.dual import DualConv2d

LATE = Pruning(layers="conv+linear", sparsity=0.6)
SETTINGS = {
    "conv": Pruning(),
    "conv+linear": Pruning(layers="conv+linear", sparsity=0.3),
    "global": Pruning(layers="conv+linear", scope="global"),
}


class WithEmbedding(nn.Module):
    """The first 2-d output alone, which is what the reference compares."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.model(x)
        return outputs if isinstance(outputs, Tensor) else outputs.pooler_output


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_are_those_of_two_models(name: str, setting: str) -> None:
    """1e-5 of D and of the unit embedding's largest value: float32 against float64, a few hundred roundings."""
    build, inputs = ARCHITECTURES[name]
    model, x = build(), inputs(3, seed=5)
    scorer = Scorer(model, SETTINGS[setting], example=x)
    expected = reference.score(WithEmbedding(model), x, SETTINGS[setting])
    for rows in (slice(0, 3), slice(2, 3)):
        out = scorer(x[rows])
        assert float((out.distance - expected.distance[rows]).abs().max()) < 1e-5
        for ours, theirs in ((out.embedding, expected.embedding), (out.pruned_embedding, expected.pruned_embedding)):
            torch.testing.assert_close(ours.double(), theirs[rows], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("transformers resnet", "model.encoder.stages.1.layers.0.layer.1.convolution"),
        ("transformers resnet", "model.encoder.stages.1.layers.1.layer.0.convolution"),
        ("transformers resnet", "model.encoder.stages.1.layers.0.shortcut.convolution"),
        ("transformers convnext", "encoder.stages.1.layers.1.pwconv2"),
        ("transformers vit", "layers.1.attention.v_proj"),
        ("ghostnet", "ghost2.primary.0"),
        ("mobilenet", "excite.expand"),
        ("resnet", "downsample.0"),
    ],
)
def test_the_pair_starts_inside_a_residual_block(name: str, first: str) -> None:
    build, inputs = ARCHITECTURES[name]
    model, x = build(), inputs(3, seed=5)
    layers = [n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert first in layers, layers
    scorer = Scorer(model, Pruning(layers=[first]), example=x)
    expected = reference.score(WithEmbedding(model), x, Pruning(layers=[f"model.{first}"]))
    torch.testing.assert_close(scorer(x).distance.double(), expected.distance, rtol=0, atol=1e-5)
    torch.testing.assert_close(scorer(x[1:2]).distance.double(), expected.distance[1:2], rtol=0, atol=1e-5)


def test_batch_norm_folds_in_an_exported_graph() -> None:
    build, inputs = ARCHITECTURES["transformers resnet"]
    graph = dualize(build(), example=inputs(1))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in graph.modules())
    assert sum(isinstance(module, DualConv2d) for module in graph.modules()) == len(
        [module for module in build().modules() if isinstance(module, nn.Conv2d)]
    )


class Branching(nn.Module):
    """Looks at shape and type, as torch.fx cannot; works in place, on views too; a size read before the pair starts,
    used after."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.late = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3, padding=1)
        self.act, self.fc, self.offset = nn.PReLU(4), nn.Linear(8, 6), nn.Parameter(torch.empty(1, 4, 1, 1))
        self.table = torch.linspace(0.5, 1, 4).view(1, 4, 1, 1)  # no parameter, no buffer
        seeded(self)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or not isinstance(x, Tensor) or x.shape[1] != 3:
            raise ValueError("expected images")
        rows = len(x)
        x = self.act(self.norm(self.conv(x)))
        x *= self.table
        x.add_(self.offset)
        x[:, 1] = 0.5
        x.flatten(2)[:, 2].mul_(2)
        return self.fc(self.late(x).view(rows, 8, -1).relu_().mean(-1))


@pytest.mark.parametrize("layers", ["conv", "late", "fc", "*"])
@pytest.mark.parametrize("fold", [True, False])
def test_forms_of_exported_graphs(layers: str, fold: bool) -> None:
    check(Branching(), randn(3, 3, 6, 6), Pruning(layers=[layers]), fold=fold)


class Output(NamedTuple):
    features: Tensor
    logits: Tensor


class Several(nn.Module):
    def __init__(self, form: type) -> None:
        super().__init__()
        self.form, self.conv, self.first, self.second = form, nn.Conv2d(3, 4, 3), nn.Linear(4, 3), nn.Linear(4, 5)
        seeded(self)

    def forward(self, x: Tensor) -> object:
        x = self.conv(x).mean((2, 3))
        outputs = self.first(x), self.second(x)
        if self.form is dict:
            return {"features": outputs[0], "logits": outputs[1]}
        return Output(*outputs) if self.form is Output else outputs


class OtherBatchNorm(nn.Module):
    """Batch norm by the statistics of a module, but not by its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 6)
        seeded(self)

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.norm.running_mean, self.norm.running_var
        x = F.dropout(self.conv(x) if x.dim() == 4 else x, training=self.training)
        return self.fc(F.batch_norm(x, mean, variance, eps=0.1).mean((2, 3)))


def test_batch_norm_that_is_not_its_modules() -> None:
    check(OtherBatchNorm(), randn(3, 3, 6, 6), Pruning(layers="conv+linear"))


@pytest.mark.parametrize(
    ("form", "output", "size"),
    [
        (tuple, None, 3),
        (tuple, 0, 3),
        (tuple, 1, 5),
        (tuple, -1, 5),
        (Output, 1, 5),
        (dict, None, 3),
        (dict, "logits", 5),
    ],
)
def test_the_output_that_is_asked_for(form: type, output: int | str | None, size: int) -> None:
    x = randn(3, 3, 6, 6)
    model = Several(form)
    scorer = Scorer(model, example=x, output=output)
    assert scorer(x).embedding.shape == (3, size)
    with torch.no_grad():
        outputs = model(x)
    outputs = list(outputs.values()) if form is dict else outputs
    expected = torch.nn.functional.normalize(outputs[0 if size == 3 else 1])
    torch.testing.assert_close(scorer(x).embedding, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("form", "output", "message"),
    [
        (tuple, 2, "no output 2: expected one of 0, 1"),
        (dict, "embedding", "no output 'embedding': expected one of 'features', 'logits'"),
        (tuple, "logits", "no output 'logits': expected one of 0, 1"),
    ],
)
def test_an_output_that_is_not_there(form: type, output: int | str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Scorer(Several(form), example=randn(1, 3, 6, 6), output=output)
    assert "\n" not in str(error.value)


def test_an_output_of_transformers_by_name() -> None:
    build, inputs = ARCHITECTURES["transformers vit"]
    scorer = Scorer(build(), example=inputs(1), output="pooler_output")
    assert scorer(inputs(2)).embedding.shape == (2, 24)
    with pytest.raises(ValueError, match="'embedding': expected one of 'last_hidden_state', 'pooler_output'"):
        Scorer(build(), example=inputs(1), output="embedding")
    with pytest.raises(ValueError, match=r"expected an embedding, .* got \[1, 17, 24\]"):
        Scorer(build(), example=inputs(1), output="last_hidden_state")


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(calibrated("residual"), example=network_input(pictures(1, 32)))


@pytest.mark.parametrize("name", ["residual", "transformers vit"])
def test_exported_saved_and_loaded(name: str) -> None:
    if name == "residual":
        model, x = calibrated(name), network_input(pictures(4, 32, seed=7))
    else:
        build, inputs = ARCHITECTURES[name]
        model, x = build(), inputs(4, seed=7)
    scorer = Scorer(model, example=x)
    program = torch.export.export(scorer, (x,), dynamic_shapes=({0: torch.export.Dim("rows", min=1)},))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for rows in (x, x[:1]):
        for ours, theirs in zip(loaded(rows), scorer(rows), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_compiled(scorer: Scorer) -> None:
    """By the backend that compiles nothing: what is tested is that one graph holds it all, for any number of rows."""
    compiled = torch.compile(scorer.forward, backend="aot_eager", fullgraph=True, dynamic=True)
    for count in (4, 1, 3):
        x = network_input(pictures(count, 32, seed=count))
        with torch.no_grad():
            for ours, theirs in zip(compiled(x), scorer(x), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.slow
def test_compiled_by_inductor(scorer: Scorer) -> None:
    x = network_input(pictures(3, 32))
    compiled = torch.compile(scorer.forward, fullgraph=True)
    with torch.no_grad():
        for ours, theirs in zip(compiled(x), scorer(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
