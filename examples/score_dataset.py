"""Score the crops in a Parquet file with Ray Data: python examples/score_dataset.py FACES.parquet OUTPUT.

FACES.parquet has a column `image` with encoded crops of 112 x 112 pixels. OUTPUT gets Parquet files with its other
columns and the scores. On a cluster, FACES.parquet may be a folder or an address, and num_gpus=1 gives each actor a
GPU.
"""

from __future__ import annotations

import sys

import ray

from prefiqs_ext.integrations.ray import score_dataset


def main(faces: str, output: str) -> None:
    dataset = ray.data.read_parquet(faces)
    scored = score_dataset(dataset, aligned=True)
    scored.write_parquet(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
