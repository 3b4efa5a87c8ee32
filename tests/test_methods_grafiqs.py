"""GraFIQs against autograd of one image at a time, written plainly."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from networks import calibrate, network_input, pictures
from torch import Tensor, nn

from prefiqs_ext import Preset
from prefiqs_ext.methods import GraFIQs
from prefiqs_ext.methods.grafiqs import TAPS
from prefiqs_ext.models import import_onnx, load
from prefiqs_ext.models.ir import IR
from prefiqs_ext.models.iresnet import IResNet

PRESET = Preset("small", (48, 48), "bgr", (127.5,) * 3, (127.5,) * 3)


def iresnet() -> nn.Module:
    return calibrate(IResNet((1, 2, 1, 1), 16, last_size=3), network_input(pictures(4, 48)))


def ir() -> nn.Module:
    return calibrate(IR([64, 128, 128, 256, 512], 16, last_size=3), network_input(pictures(4, 48)))


def one_by_one(network: nn.Module, stages: list[nn.Module], image: Tensor) -> list[float]:
    """Sums of |gradient| at the image and the stages' outputs, of one image [3, H, W] in the network's dtype."""
    kept: list[tuple[nn.Module, Tensor]] = []
    handles = [m.register_forward_hook(lambda m, args, out: kept.append((m, out))) for m in stages]
    entered: list[tuple[nn.Module, Tensor]] = []
    norms = [m for m in network.modules() if type(m) is nn.BatchNorm2d]
    handles += [m.register_forward_hook(lambda m, args, out: entered.append((m, args[0]))) for m in norms]
    x = image[None].clone().requires_grad_()
    network(x)
    for handle in handles:
        handle.remove()
    loss = 0.0
    for norm, value in entered:
        pixels = value[0].flatten(1)
        mean = pixels.sum(1) / pixels.shape[1]
        var = ((pixels - mean[:, None]) ** 2).sum(1) / pixels.shape[1]
        loss = loss + ((mean - norm.running_mean) ** 2).mean() + ((var - norm.running_var) ** 2).mean()
    by_module = dict(kept)
    grads = torch.autograd.grad(loss / len(entered), [x, *(by_module[m] for m in stages)])
    return [float(g.abs().sum()) for g in grads]


@pytest.mark.parametrize(
    ("build", "names"),
    [(iresnet, ["layer1", "layer2", "layer3", "layer4"]), (ir, ["body.0", "body.2", "body.3", "body.4"])],
)
def test_is_autograd_one_by_one(build, names) -> None:
    network, images = build(), pictures(5, 48, seed=3)
    method = GraFIQs(network, PRESET, chunk=3)
    assert list(method.stages) == names
    found = torch.stack(list(method.scores(images).values()), 1).double()
    double = build().double()
    inputs = network_input(images).flip(1).double()
    modules = dict(double.named_modules())
    expected = torch.tensor([one_by_one(double, [modules[n] for n in names], x) for x in inputs]).double()
    # float32 against float64: sums of thousands of rounded terms
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
    for column, tap in enumerate(TAPS):
        alone = GraFIQs(network, PRESET, tap=tap, chunk=2).score(images)  # a pass that starts at the tap
        torch.testing.assert_close(alone.double(), expected[:, column], rtol=1e-4, atol=0)


def test_networks_that_write_to_their_stages() -> None:
    def build(inplace: bool) -> nn.Module:
        torch.manual_seed(0)
        widths = (3, 8, 12, 16, 20, 24)
        blocks = [
            nn.Sequential(nn.LeakyReLU(0.1, inplace), nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b))
            for a, b in itertools.pairwise(widths)
        ]
        return calibrate(nn.Sequential(*blocks, nn.Flatten()), network_input(pictures(4, 48)))

    images, stages = pictures(3, 48, seed=3), ["0", "1", "2", "3"]
    expected = GraFIQs(build(inplace=False), PRESET, stages=stages).scores(images)
    for tap, scores in GraFIQs(build(inplace=True), PRESET, stages=stages).scores(images).items():
        torch.testing.assert_close(scores, expected[tap])
        alone = GraFIQs(build(inplace=True), PRESET, stages=stages, tap=tap).score(images)
        torch.testing.assert_close(alone, expected[tap])


def test_refusals() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(8)).eval()
    with pytest.raises(ValueError, match="folded into the convolutions"):
        GraFIQs(plain, PRESET)
    with pytest.raises(ValueError, match="four modules"):
        GraFIQs(iresnet(), PRESET, stages=["layer1", "layer2", "layer3", "layer9"])
    with pytest.raises(ValueError, match="no batch norm comes after block4"):
        GraFIQs(iresnet(), PRESET, stages=["layer1", "layer2", "layer3", "fc"]).scores(pictures(1, 48))
    with pytest.raises(ValueError, match="no batch norm comes after block4"):
        GraFIQs(iresnet(), PRESET, tap="block4", stages=["layer1", "layer2", "layer3", "fc"]).score(pictures(1, 48))
    with pytest.raises(ValueError, match="a tap of"):
        GraFIQs(iresnet(), PRESET, tap="block5")


def test_on_sface(sface: nn.Module, crops: Tensor) -> None:
    method = GraFIQs(sface, Preset.resolve("sface"))
    batched = method.scores(crops[:6])
    for index in range(6):
        alone = method.scores(crops[index : index + 1])
        for tap, scores in batched.items():
            torch.testing.assert_close(alone[tap][0], scores[index], rtol=1e-4, atol=0)


def test_stages_of_real_networks(sface: nn.Module, facexzoo_file: Path) -> None:
    stages = GraFIQs(sface, Preset.resolve("sface")).stages
    assert stages == ("conv_4_relu", "conv_6_relu", "conv_12_relu", "conv_14_relu")  # what enters conv_5_dw ... bn1
    network, preset = load("facexzoo")
    assert GraFIQs(network, preset).stages == ("conv_23.conv", "conv_34.conv", "conv_45.conv", "conv_6_sep")


def test_sface_records_the_statistics_of_faces(sface: nn.Module, crops: Tensor) -> None:
    norms = [m for m in sface.modules() if isinstance(m, nn.BatchNorm2d)]
    entered: dict[nn.Module, Tensor] = {}
    handles = [m.register_forward_pre_hook(lambda m, args: entered.update({m: args[0]})) for m in norms]
    with torch.no_grad():
        sface(Preset.resolve("sface").normalize()(crops))
    for handle in handles:
        handle.remove()
    assert len(entered) == 28
    for norm, value in entered.items():
        off = (value.mean((0, 2, 3)) - norm.running_mean).abs() / norm.running_var.sqrt()
        ratio = value.var((0, 2, 3)) / norm.running_var
        # on 200 faces at most .20, and .45 to 1.27
        assert off.median() < 0.3
        assert 0.35 < ratio.median() < 1.6


def test_folded_network_is_refused(w600k_mbf_file: Path) -> None:
    with pytest.raises(ValueError, match="folded into the convolutions"):
        GraFIQs(import_onnx(w600k_mbf_file), Preset.resolve("insightface"))
