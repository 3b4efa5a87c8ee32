"""Changes to bytes that any target may make, and numbers and names that readers often get wrong."""

from __future__ import annotations

import random as _random
import struct

NUMBERS = (0, 1, -1, 2, 3, 7, 64, 255, 256, 8000, 65_535, 100_000, 1 << 24, 1 << 31, -(1 << 31), 1 << 40, (1 << 63) - 1)
NAMES = ("", "0", "112", "1x", "self", "class", "x", "fc.weight", "a.b.c", "forward", "weight", "None", "_modules")
NAMES += (
    "\x1b[2J\n",
    "a" * 3000,
    "state_dict",
    "../x",
    "'+x+'",
    "\ud800".encode("utf-8", "replace").decode(),
    "é" * 90,
)


def damage(data: bytes, random: _random.Random) -> bytes:
    """Makes one to four small changes: bits, bytes, cuts, repeats, and numbers at the borders of their types."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 4)):
        at = random.randrange(len(changed) + 1)
        kind = random.randrange(6)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << random.randrange(8)
        elif kind == 1 and at < len(changed):
            changed[at] = random.randrange(256)
        elif kind == 2:
            del changed[at : at + random.choice((1, 2, 8, 100, len(changed)))]
        elif kind == 3:
            piece = changed[at : at + random.choice((1, 4, 16, 200))]
            changed[at:at] = piece * random.choice((1, 2, 50))
        elif kind == 4:
            number = struct.pack("<q", random.choice(NUMBERS))[: random.choice((1, 2, 4, 8))]
            changed[at : at + len(number)] = number
        else:
            changed[at:at] = random.randbytes(random.choice((1, 3, 30)))
    return bytes(changed)
