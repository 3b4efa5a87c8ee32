"""Refuses one file under two persons: this non-mated pair of similarity 1 would make every threshold worthless."""

from __future__ import annotations

import numpy as np

from prefiqs_ext.evaluation.array_types import Integers
from prefiqs_ext.evaluation.datasets import Data
from prefiqs_ext.evaluation.datasets.readers import Images, PairList
from prefiqs_ext.evaluation.datasets.sources import get_name
from prefiqs_ext.exceptions import FileFormatError
from prefiqs_ext.utils.text import format_path


def refuse_shared(data: Data, contents: Integers) -> None:
    """Refuse folders of people with such a file, and lists that call such a pair non-mated.

    Args:
        data: Templates are not looked at.
        contents: [N] one number per different content of the images, as in ImageSet.

    Raises:
        FileFormatError: Two files are the same; the error names them.
    """
    if isinstance(data, Images):
        order = np.lexsort((data.identities, contents))
        same = np.diff(contents[order]) == 0
        found = np.flatnonzero(same & (np.diff(data.identities[order]) != 0))
        pairs = np.stack([order[found], order[found + 1]], axis=1)
        where = "of two people"
    elif isinstance(data, PairList):
        one, other = contents[data.pairs].T
        pairs = data.pairs[(one == other) & ~data.mated]
        where = "of a non-mated pair"
    else:
        return
    if len(pairs):
        one, other = (format_path(get_name(data.images[i])) for i in pairs[0])
        others = len(pairs) - 1
        more = f", and so {f'are {others} more pairs' if others > 1 else 'is 1 more pair'}" if others else ""
        raise FileFormatError(
            f"{one} and {other} are the same file, {where}{more}: take one away, or allow them (allow_duplicates, "
            "--allow-duplicates)"
        )
