"""Which number ranks faces: the calibrated score, the quality or the norm of the embedding."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, get_args

from prefiqs_ext.exceptions import InputError
from prefiqs_ext.models.weights import find_by_weights

if TYPE_CHECKING:  # the command line must list rankings without importing torch
    from torch import Tensor


Ranking = Literal["calibrated", "quality", "norm"]
RANKINGS: tuple[Ranking, ...] = get_args(Ranking)
"""The numbers that can rank. HIGHER is better in each.

"calibrated": the scale of 0 to 100 that settings hold. "quality": Q = 1 - D/2, in [0, 1]. "norm": the norm of the
embedding before it is normalised, above 0; its range depends on the network.
"""
NAMES: dict[Ranking, str] = {"calibrated": "calibrated score", "quality": "quality", "norm": "embedding norm"}
"""What people read."""
_DECIMALS: dict[Ranking, int] = {"calibrated": 1, "quality": 3, "norm": 2}


def check_ranking(rank_by: object, *, calibrated: bool) -> None:
    """Checks what a user asked to rank by; None leaves it to the rule.

    Raises:
        InputError: It is none of RANKINGS, or "calibrated" without a calibration.
    """
    if rank_by is not None and rank_by not in RANKINGS:
        raise InputError(f"expected rank_by {', '.join(map(repr, RANKINGS))} or None, got {rank_by!r}")
    if rank_by == "calibrated" and not calibrated:
        raise InputError(
            "expected settings with a calibration to rank by 'calibrated', got none: run `prefiqs calibrate`, and give "
            "the settings that it writes"
        )


def choose_ranking(rank_by: Ranking | None, model_sha256: str, *, calibrated: bool = False) -> Ranking:
    """Chooses the number that ranks.

    What the user asked for comes first, then the calibrated score where there is one. Of the known networks it is
    what was measured to rank best (docs/models.md), and of all others the quality.

    Args:
        rank_by: What the user asked for, or None.
        model_sha256: The hash of the network's weights, as :func:`prefiqs_ext.models.fingerprint.hash_weights` gives
            it. So a known network is known under any file name, and as a module.
        calibrated: Whether there is a calibration.

    Raises:
        InputError: As :func:`check_ranking`.
    """
    check_ranking(rank_by, calibrated=calibrated)
    if rank_by is not None:
        return rank_by
    if calibrated:
        return "calibrated"
    known = find_by_weights(model_sha256)
    return "quality" if known is None or known.rank_by is None else known.rank_by


def compute_score(
    rank_by: Ranking,
    distance: Tensor,
    embedding_norm: Tensor,
    layer_norms: Tensor,
    calibration: Callable[[Tensor, Tensor, Tensor], Tensor] | None,
) -> Tensor:
    """Computes the score, the number to rank and to act on.

    Args:
        rank_by: Which number it is.
        distance: ``[N]`` in [0, 2].
        embedding_norm: ``[N]``.
        layer_norms: ``[N, K]``, of the layers that the calibration reads.
        calibration: A :class:`Calibration`, which is needed for "calibrated" only.

    Returns:
        ``[N]`` on the same device, a new tensor; HIGHER is better. It is NaN where the number that it comes from is.
    """
    if rank_by == "calibrated":
        assert calibration is not None  # choose_ranking saw to it
        return calibration(distance, embedding_norm, layer_norms)
    return embedding_norm.clone() if rank_by == "norm" else 1 - distance / 2


def format_score(score: float, rank_by: Ranking) -> str:
    """Formats a score for people to read."""
    return f"{score:.{_DECIMALS[rank_by]}f}"
