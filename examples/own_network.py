"""Score with a network of your own: python examples/own_network.py CROP [CROP ...].

The network here has random weights; put yours in its place. CROPs are aligned faces of 112 x 112 pixels.
"""

from __future__ import annotations

import sys

import torch

from prefiqs_ext import Pruning, Scorer
from prefiqs_ext.models import iresnet18


def main(crops: list[str]) -> None:
    torch.manual_seed(0)
    network = iresnet18().eval()  # any torch.nn.Module in eval mode: images [N, 3, H, W] -> embeddings [N, d]
    scorer = Scorer(network, Pruning(sparsity=0.4), preset="arcface")  # the preset normalises the images
    out = scorer(crops)
    for crop, quality, norm in zip(crops, out.quality.tolist(), out.embedding_norm.tolist(), strict=True):
        print(f"{crop}: quality {quality:.3f}, embedding norm {norm:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
