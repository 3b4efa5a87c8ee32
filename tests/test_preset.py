"""Presets against the sentence that defines them: network input = (x - mean) / std, in the network's channel order."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from prefiqs_ext.models.preset import PRESETS, Preset


def _images(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, height, width), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("name", PRESETS)
def test_normalize_is_the_formula(name: str) -> None:
    preset = PRESETS[name]
    images = _images(5, 4)
    levels = images.numpy().astype(np.float64)
    if preset.colour == "bgr":
        levels = levels[:, ::-1]
    expected = (levels - np.reshape(preset.mean, (3, 1, 1))) / np.reshape(preset.std, (3, 1, 1))
    for x in (images, images.float(), images.double()):
        got = preset.normalize()(x)
        assert got.dtype == torch.float32
        # three float32 roundings of values up to 255 / std
        np.testing.assert_allclose(got.numpy(), expected, rtol=3e-7, atol=3e-7)
    exact = dataclasses.replace(preset).normalize().double()
    assert exact(images).dtype == torch.float64


def test_bgr_reorders_and_uses_the_networks_order() -> None:
    preset = Preset("test", (2, 2), "bgr", (1.0, 2.0, 3.0), (1.0, 2.0, 4.0))
    red = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    red[:, 0] = 255
    out = preset.normalize()(red)
    assert out[0, :, 0, 0].tolist() == [-1.0, -1.0, (255 - 3) / 4]


def test_sface_input_is_the_image_itself() -> None:
    images = _images(112, 112)
    assert torch.equal(PRESETS["sface"].normalize()(images), images.float())


def test_buffers_are_in_the_state_and_not_trained() -> None:
    normalize = PRESETS["arcface"].normalize()
    assert [name for name, _ in normalize.named_buffers()] == ["scale", "shift"]
    assert list(normalize.parameters()) == []


def test_resolve() -> None:
    assert Preset.resolve("sface") is Preset.resolve(PRESETS["sface"]) is PRESETS["sface"]
    with pytest.raises(ValueError, match=r"^unknown preset 'Arcface': expected one of arcface, .*, dlib, or a Preset$"):
        Preset.resolve("Arcface")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": "RGB"}, "expected colour 'rgb' or 'bgr', got 'RGB'"),
        ({"size": (0, 112)}, "expected size"),
        ({"size": (112,)}, "expected size"),
        ({"mean": (0.0, 0.0)}, "expected 3 finite numbers as mean"),
        ({"mean": (0.0, 0.0, float("nan"))}, "expected 3 finite numbers as mean"),
        ({"std": (1.0, 0.0, 1.0)}, "expected std above 0"),
        ({"std": (1.0, -1.0, 1.0)}, "expected std above 0"),
    ],
)
def test_refuses(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        dataclasses.replace(PRESETS["arcface"], **change)
    assert "\n" not in str(error.value)
