"""A few of many things, at even distances."""

from __future__ import annotations


def pick_evenly(count: int, most: int) -> list[int]:
    """Pick at most `most` of the indices 0 to count - 1, in rising order and at even distances, the first among them.

    So each part of things in order has its share, and the same things are picked every time.
    """
    picked = min(count, most)
    return [index * count // picked for index in range(picked)]
