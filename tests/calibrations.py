"""Calibrations of made-up numbers, for tests of what carries them."""

from __future__ import annotations

import numpy as np

from prefiqs_ext.calibration.scale import Calibration, Prior


def make_calibration(layers: tuple[str, ...] = (), *, prior: Prior = "norm", seed: int = 0) -> Calibration:
    """A calibration that corrects, where it has layers, and that tells faces of these tests' networks apart."""
    random, size = np.random.default_rng(seed), 1 + len(layers)
    root = random.standard_normal((size, size))
    correction = 0.3 * random.standard_normal(size) if layers else np.zeros(size)
    return Calibration(
        prior=prior,
        layers=layers,
        centre=tuple(random.standard_normal(size).tolist()),
        precision=tuple(map(tuple, (root @ root.T + np.eye(size)).tolist())),
        radius=2.0,
        correction=tuple(correction.tolist()),
        offset=0.25,
        slope=1.5,
        error=9.5,
        reliability=((20.0, 25.0, 10), (60.0, 55.5, 11)),
        left_out={"blur": 0.99, "gamma": 1.01},
        thresholds=(10.0, 20.0, 30.0),
        faces=77,
    )
