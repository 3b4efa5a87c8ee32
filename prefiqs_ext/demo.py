"""The demo: one public-domain face, degraded step by step, scored in one batch. Needs scikit-image (`[demo]`)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from skimage import data, filters, transform

from prefiqs_ext.scorer import score

# Eyes, nose tip and mouth corners of scikit-image's astronaut (x, y), as OpenCV's YuNet finds them, and where the
# field's 112 x 112 crop wants them (the insightface template).
_LANDMARKS = ((200.1, 101.8), (247.1, 102.6), (220.4, 124.5), (198.6, 142.8), (239.7, 143.6))
_TEMPLATE = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))

Image = NDArray[np.float64]


def astronaut() -> Image:
    """Eileen Collins' face, aligned: float64 [112, 112, 3] RGB in [0, 1]."""
    to_photo = transform.SimilarityTransform.from_estimate(np.array(_TEMPLATE), np.array(_LANDMARKS))
    crop: Image = transform.warp(data.astronaut(), to_photo, output_shape=(112, 112))
    return crop


def degraded(face: Image) -> dict[str, Image]:
    """The face, and the face made worse in ways that recognition suffers from; seeded."""
    noise = np.random.default_rng(0).standard_normal(face.shape)

    def blur(sigma: float) -> Image:
        blurred: Image = filters.gaussian(face, sigma, channel_axis=-1)
        return blurred

    def smaller(factor: int) -> Image:
        small = transform.downscale_local_mean(face, (factor, factor, 1))
        resized: Image = transform.resize(small, face.shape, order=1)
        return resized

    return {
        "untouched": face,
        "blur, sigma 2": blur(2),
        "blur, sigma 4": blur(4),
        "noise, sigma 30": np.clip(face + noise * 30 / 255, 0, 1),
        "noise, sigma 60": np.clip(face + noise * 60 / 255, 0, 1),
        "1/4 of the resolution": smaller(4),
        "1/8 of the resolution": smaller(8),
    }


def main() -> None:
    """Print a table of the faces, best first."""
    faces = degraded(astronaut())
    batch = torch.from_numpy(np.stack(list(faces.values()))).permute(0, 3, 1, 2).float()
    out = score(batch)
    similarity = out.embedding @ out.embedding[0]
    print(f"{'face':<24}{'quality':>9}{'distance':>10}{'norm':>8}{'similarity to untouched':>25}")
    for row in out.quality.argsort(descending=True).tolist():
        scores = f"{out.quality[row]:>9.3f}{out.distance[row]:>10.3f}{out.embedding_norm[row]:>8.2f}"
        print(f"{list(faces)[row]:<24}{scores}{similarity[row]:>25.3f}")


if __name__ == "__main__":
    main()
