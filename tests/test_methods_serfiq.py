"""SER-FIQ against its plain definition, m passes of the whole network, and against torch's own dropout."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from networks import calibrate, network_input, pictures
from scipy.spatial.distance import pdist
from torch import Tensor, nn

from prefiqs_ext import Preset, methods
from prefiqs_ext.methods import SERFIQ
from prefiqs_ext.models.ir import IR

PRESET = Preset("small", (48, 48), "bgr", (127.5,) * 3, (127.5,) * 3)
IMAGES = pictures(4, 48, seed=3)


def ir() -> nn.Module:
    return calibrate(IR([64, 128, 128, 256, 512], 16, last_size=3), network_input(pictures(4, 48)))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return ir()


class Branch(nn.Module):
    """Dropout inside a residual branch, another before it, one that is skipped, one that drops nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Conv2d(3, 8, 5, 4), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.skipped, self.none = nn.Dropout(0.5), nn.Dropout(0.0)
        self.branch = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Dropout(0.2), nn.Linear(32, 32))
        self.fc = nn.Linear(32, 12)

    def forward(self, x: Tensor) -> tuple[Tensor, str]:
        x = self.head(x)
        return self.none(self.fc(x + self.branch(x))), "not the embedding"


def plainly(network: nn.Module, name: str, image: Tensor, passes: int, seed: int) -> float:
    """One whole pass a draw, in float64: image [3, H, W] is what the network takes."""
    network = copy.deepcopy(network).double()
    module = network.get_submodule(name)
    assert isinstance(module, nn.Dropout)
    seen: list[Tensor] = []
    with torch.no_grad():
        handle = module.register_forward_hook(lambda m, args, out: seen.append(out))
        network(image[None])
        handle.remove()
        uniform = torch.rand(passes, *seen[0].shape[1:], generator=torch.Generator().manual_seed(seed))
        embeddings = []
        for row in uniform:
            mask = torch.where(row < module.p, 0.0, 1 / (1 - module.p)).double()
            handle = module.register_forward_hook(lambda m, args, out, mask=mask: out * mask)
            out = network(image[None])
            embeddings.append((out[0] if isinstance(out, tuple) else out)[0].numpy())
            handle.remove()
    unit = [e / np.linalg.norm(e) for e in embeddings]
    return float(2 / (1 + np.exp(pdist(unit).mean())))


@pytest.mark.parametrize(("build", "name"), [(ir, "output_layer.1"), (Branch, "branch.2")])
def test_is_the_plain_definition(build, name: str) -> None:
    torch.manual_seed(0)
    network = build().eval()
    method = SERFIQ(network, PRESET, passes=9, seed=4)
    assert method.dropout == name
    scores = method.score(IMAGES)
    inputs = network_input(IMAGES).flip(1).double()
    expected = [plainly(network, name, x, 9, 4) for x in inputs]
    # Distances between float32 embeddings of length 1.
    np.testing.assert_allclose(scores.numpy(), expected, rtol=0, atol=1e-5)
    assert scores.dtype == torch.float32
    assert ((scores > 0) & (scores < 1)).all()


def test_is_torchs_dropout() -> None:
    """With torch's own masks: passes of a network whose last dropout is in train mode."""
    torch.manual_seed(0)
    network = Branch().eval()
    method = SERFIQ(network, PRESET, passes=300)
    x = network_input(IMAGES).flip(1)
    network.branch[2].train()
    with torch.no_grad():
        drawn = torch.stack([network(x)[0] for _ in range(300)], 1)
    network.eval()
    expected = [2 / (1 + np.exp(pdist(e / e.norm(dim=1, keepdim=True)).mean())) for e in drawn]
    # The mean over the 44850 pairs of 300 masks varies by about 3 % of itself; it is some .1 here.
    np.testing.assert_allclose(method.score(IMAGES).numpy(), expected, rtol=0, atol=0.005)


def test_seeded_and_the_same_bits_in_any_batch(network: nn.Module) -> None:
    method = methods.create("serfiq", network, PRESET, seed=1)
    assert method.higher_is_better
    assert method.fit_images == 0
    scores = method.score(IMAGES)
    assert torch.equal(scores, torch.cat([method.score(IMAGES[i : i + 1]) for i in range(4)]))
    assert torch.equal(scores, methods.create("serfiq", network, PRESET, seed=1).score(IMAGES))
    assert not torch.equal(scores, methods.create("serfiq", network, PRESET, seed=2).score(IMAGES))
    assert method.score(IMAGES[:0]).shape == (0,)


class Rows(nn.Module):
    """Behind its dropout the number of rows is what it was before, or an image sees others."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.dropout, self.fc = kind, nn.Dropout(), nn.Linear(3 * 9, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(x, 3)
        y = self.dropout(x)
        if self.kind == "view":
            return self.fc(y.reshape(len(x), -1)[:, :27])
        if self.kind == "joined":
            return self.fc(torch.cat([y, x], 1)[:, :3].flatten(1))
        return self.fc((y - y.mean(0)).flatten(1))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("view", "got 1 embeddings for 100 masks"),
        ("joined", "got Sizes of tensors must match"),
        ("mixed", "got embeddings that differ by"),
    ],
)
def test_rows_that_do_not_stay_apart_are_refused(kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"rows that stay apart behind dropout, {message}") as error:
        SERFIQ(Rows(kind).eval(), PRESET)
    assert "\n" not in str(error.value)


def test_refusals(network: nn.Module) -> None:
    for plain in (nn.Dropout2d(), nn.Dropout(0.0), nn.Dropout(1.0), nn.Identity()):
        with pytest.raises(ValueError, match=r"expected a network with an nn\.Dropout of 0 < p < 1"):
            SERFIQ(nn.Sequential(nn.Conv2d(3, 4, 45), plain, nn.Flatten()).eval(), PRESET)
    with pytest.raises(ValueError, match="2 passes or more, got 1"):
        SERFIQ(network, PRESET, passes=1)
    method = SERFIQ(network, PRESET, passes=2)
    with pytest.raises(TypeError, match="expected uint8 images"):
        method.score(IMAGES / 255)
    with pytest.raises(ValueError, match="expected images"):
        method.score(IMAGES[:, :, 1:])


def test_an_image_without_a_direction_is_named() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 45, bias=False), nn.ReLU(), nn.Dropout(), nn.Flatten()).eval()
    with torch.no_grad():
        network[0].weight.abs_()
    images = torch.full((3, 3, 48, 48), 200, dtype=torch.uint8)
    images[1] = 0
    with pytest.raises(ValueError, match="infinity for row"):
        SERFIQ(network, PRESET, passes=40).score(images)


def test_on_sface(sface: nn.Module, crops: Tensor) -> None:
    """The ONNX file has its dropout, before the last linear layer."""
    preset = Preset.resolve("sface")
    method = SERFIQ(sface, preset, passes=6)
    assert method.dropout == "dropout5"
    expected = plainly(sface, "dropout5", crops[0].double(), 6, 0)
    assert method.score(crops[:1]).item() == pytest.approx(expected, abs=1e-5)
