"""models.load by name: what comes back, and what is said of a name that is none."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from prefiqs_ext.models import PRESETS, load, weights


def test_load(sface_file: Path) -> None:
    weights.fetch("sface", sface_file)
    network, preset = load("sface")
    assert preset is PRESETS["sface"]
    assert not network.training
    with torch.no_grad():
        assert network(torch.zeros(2, 3, 112, 112)).shape == (2, 128)


@pytest.mark.parametrize("name", ["yunet", "arcface"])
def test_load_knows_recognisers_only(name: str) -> None:
    with pytest.raises(ValueError, match=f"^no such model or file: {name}; known: sface, facexzoo, "):
        load(name)


def test_a_presets_name_is_told_for_what_it_is() -> None:
    with pytest.raises(ValueError, match=r"; 'arcface' is a preset: name a model or its file, and this as its preset$"):
        load("arcface")


def test_the_preset_that_is_said_is_the_one_that_comes_back(sface_file: Path) -> None:
    with pytest.warns(
        UserWarning, match="^sface was trained on the input of preset 'sface', and its scores mean little"
    ):
        assert load("sface", "arcface")[1] is PRESETS["arcface"]
    assert load(sface_file, "sface")[1] is PRESETS["sface"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load("sface", "sface")
    assert load(sface_file)[1] is None  # ONNX files do not tell
