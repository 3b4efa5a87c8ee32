"""A folder's scores as one HTML page. It loads nothing, it runs no script, and file names can do no harm in it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import NamedTuple

import jinja2
from tqdm import tqdm

from prefiqs_ext.calibration.scale import Calibration
from prefiqs_ext.files.records import Record
from prefiqs_ext.ranking import Ranking, format_score
from prefiqs_ext.report.histogram import HEIGHT, WIDTH, build_histogram
from prefiqs_ext.report.reliability import DIAGRAM_SIDE, build_reliability
from prefiqs_ext.report.selection import STATUS_NAMES, Selection
from prefiqs_ext.report.thumbnails import SIDE, make_thumbnails
from prefiqs_ext.utils.text import format_path

__all__ = ["Selection", "render"]

_QUANTILES = (("worst 5 % below", 0.05), ("median", 0.5), ("best 5 % above", 0.95))


_MEANINGS: dict[Ranking, str] = {
    "calibrated": "The score is calibrated, 0 to 100: 100 times the cosine that the network is expected to find "
    "between a face and a good image of the same face.",
    "quality": "The score is the quality, 1 - distance / 2, from 0 to 1: how little the embedding of a face moves when "
    "the recognition network is pruned.",
    "norm": "The score is the norm of a face's embedding before it is normalised. Its range depends on the recognition "
    "network.",
}


class _Card(NamedTuple):
    status: str
    name: str
    score: str
    numbers: list[tuple[str, str]]
    reason: str
    picture: str


def render(
    selection: Selection,
    folder: str,
    facts: Mapping[str, str],
    rank_by: Ranking,
    calibration: Calibration | None = None,
) -> str:
    """Make the page. The images that it shows are read again for their thumbnails.

    Args:
        selection: the rows of the folder.
        folder: the path of the folder. Names of files are shown relative to it.
        facts: what the foot of the page says about how the faces were scored, label -> text.
        rank_by: which number the score of the rows is.
        calibration: whose reliability diagram the page shows, if the score is calibrated.

    Returns:
        The HTML text of the page.
    """
    chosen = selection.pick()
    rows = [*chosen.best, *chosen.worst, *chosen.others]
    bar = tqdm(make_thumbnails(rows), total=len(rows), desc="thumbnails", disable=None, leave=False)
    pictures = {(row.path, row.face): picture for row, picture in bar}

    def make_cards(rows: Iterable[Record]) -> list[_Card]:
        return [_make_card(row, folder, pictures[row.path, row.face], rank_by) for row in rows]

    template = resources.files(__name__).joinpath("page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template).render(
        folder=format_path(folder),
        meaning=_MEANINGS[rank_by],
        facts=facts,
        statuses=STATUS_NAMES,
        counts=selection.counts,
        histogram=build_histogram(selection.scores) if selection.counts["ok"] else None,
        quantiles=[(label, format_score(selection.scores.quantile(share), rank_by)) for label, share in _QUANTILES],
        reliability=build_reliability(calibration) if calibration and rank_by == "calibrated" else None,
        reliability_side=DIAGRAM_SIDE,
        width=WIDTH,
        height=HEIGHT,
        side=SIDE,
        best=make_cards(chosen.best),
        middle=chosen.middle,
        worst=make_cards(chosen.worst),
        others=make_cards(chosen.others),
        unshown=selection.counts.total() - selection.counts["ok"] - len(chosen.others),
    )


def _make_card(row: Record, folder: str, picture: str, rank_by: Ranking) -> _Card:
    numbers = []
    if row.quality is not None:
        numbers.append(("quality", f"{row.quality:.3f}"))
    if row.distance is not None:
        numbers.append(("distance", f"{row.distance:.3f}"))
    if row.embedding_norm is not None:
        numbers.append(("norm", f"{row.embedding_norm:.2f}"))
    if None not in (row.x, row.y, row.w, row.h):
        numbers.append((f"face {row.face}", f"{row.w:.0f} x {row.h:.0f} px at {row.x:.0f}, {row.y:.0f}"))
    if row.detector_score is not None:
        numbers.append(("detector", f"{row.detector_score:.2f}"))
    return _Card(
        row.status,
        format_path(os.path.relpath(row.path, folder)),
        STATUS_NAMES[row.status] if row.score is None else format_score(row.score, rank_by),
        numbers,
        row.reason,
        picture,
    )
