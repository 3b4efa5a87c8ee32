"""A Scorer and the graph of dualize are for inference: no train() changes their numbers."""

from __future__ import annotations

import pytest
import torch
from networks import calibrate, pictures
from torch import Tensor, nn

from prefiqs_ext import Scorer, dualize
from prefiqs_ext.dual.convert.freeze import freeze


class _Trains(nn.Sequential):
    """Every kind of torch's modules that computes another thing in train mode."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 12, 3, 2, bias=False),
            nn.BatchNorm2d(12),
            nn.RReLU(0.1, 0.4),
            nn.InstanceNorm2d(12, affine=True, track_running_stats=True),
            nn.Dropout2d(0.3),
            nn.Conv2d(12, 16, 3, 2),
            nn.BatchNorm2d(16, affine=False),
            nn.FeatureAlphaDropout(0.2),
            nn.Flatten(),
            nn.Dropout(0.4),
            nn.Linear(16 * 7 * 7, 24),
            nn.AlphaDropout(0.2),
            nn.BatchNorm1d(24),
        )


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return calibrate(_Trains(), pictures(8, 32) / 255)


def _train_all(module: nn.Module) -> None:
    nn.ModuleList([module]).train()  # as a parent's train()
    for each in module.modules():
        each.train()
        each.training = True


@pytest.mark.parametrize("fold", [True, False])
def test_train_changes_no_number_of_a_graph(network: nn.Module, fold: bool) -> None:
    images = pictures(3, 32, seed=2) / 255
    pair = dualize(network, example=images, fold=fold)
    with torch.no_grad():
        before, expected = pair(images), network(images)
        _train_all(pair)
        first, second = pair(images), pair(images)
    # float32 against float32: rounding of a few layers.
    torch.testing.assert_close(before[:3], expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(first, before)
    assert torch.equal(second, before)


@pytest.mark.parametrize(
    ("name", "fold"), [("sface_file", True), ("sface_file", False), ("facexzoo_file", False), ("w600k_mbf_file", False)]
)
def test_train_changes_no_number_of_a_scorer(name: str, fold: bool, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(name)
    scorer = Scorer(name.removesuffix("_file"), fold=fold)
    images = pictures(2)
    before = scorer(images)
    _train_all(scorer)
    for _ in range(2):
        assert all(map(torch.equal, scorer(images), before))
    scorer.eval()
    assert all(map(torch.equal, scorer(images), before))


def _modules() -> list[nn.Module]:
    torch.manual_seed(0)
    norms = [
        nn.BatchNorm1d(6, eps=1e-3),
        nn.BatchNorm2d(6, affine=False),
        nn.BatchNorm3d(6),
        nn.SyncBatchNorm(6),
        nn.InstanceNorm1d(6, track_running_stats=True),
        nn.InstanceNorm2d(6, affine=True, track_running_stats=True),
        nn.InstanceNorm2d(6, affine=True),
    ]
    dropouts = [nn.Dropout(), nn.Dropout1d(), nn.Dropout2d(), nn.Dropout3d(), nn.AlphaDropout(), nn.Dropout(p=1.0)]
    return [*norms, *dropouts, nn.FeatureAlphaDropout(), nn.RReLU(), nn.RReLU(0.2, 0.3, inplace=True), nn.PReLU(6)]


@pytest.mark.parametrize("module", _modules(), ids=repr)
def test_inference_form_is_the_module_in_eval_mode(module: nn.Module) -> None:
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 2)
    x: Tensor = torch.randn(4, 6, *{"1d": (5,), "3d": (2, 3, 5)}.get(type(module).__name__[-2:], (3, 5)))
    expected = module.eval()(x.clone())
    own = freeze(module).train()
    given = x.clone()
    torch.testing.assert_close(own(given), expected, rtol=0, atol=0)
    assert torch.equal(given, x)
    assert not any(parameter.requires_grad for parameter in own.parameters())
    mine = {tensor.data_ptr() for tensor in own.state_dict().values()}
    assert mine.isdisjoint(tensor.data_ptr() for tensor in module.state_dict().values())
