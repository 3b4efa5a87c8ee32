"""Changes to bytes, lines and JSON values, as damage, mistakes and malice make them, and values that do harm."""

from __future__ import annotations

import copy
import json
import random

Json = str | int | float | bool | list["Json"] | dict[str, "Json"] | None

NUMBERS = (0, 1, -1, 2, 3, 7, 64, 255, 256, 8000, 65_535, 100_000, 1 << 24, 1 << 31, -(1 << 31), 1 << 40, (1 << 63) - 1)
NAMES = (
    *("", "0", "112", "1x", "self", "class", "x", "fc.weight", "a.b.c", "forward", "weight", "None", "_modules"),
    *("\x1b[2J\n", "a" * 3000, "state_dict", "../x", "'+x+'", "\ud800".encode("utf-8", "replace").decode(), "é" * 90),
)
"""Numbers and names for fields of a file, which readers often get wrong."""
_BORDERS = (
    0,
    1,
    127,
    128,
    255,
    256,
    32767,
    65535,
    65536,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 63,
    (1 << 64) - 1,
)
_WORDS = (
    *("", "0", "1", "-1", "01", "1.5", "1e400", "nan", "-inf", "1_0", "٣", "²", "9" * 30, "9" * 5000, "0x10", "\0"),
    *(
        "\x1b[2J",
        "\u202e",
        "\ufeff",
        "\udce9",
        "é",
        "..",
        "/",
        "//",
        "a" * 70_000,
        "a/" * 3000,
        "~",
        "@list",
        "-",
        "=1",
    ),
)
_VALUES: tuple[Json, ...] = (
    *(None, True, False, 0, 1, -1, 1 << 64, 10**400, 0.5, -0.0, 1e308, 1e-320, "", "a", "sface", "\x1b[2J", "\udce9"),
    *([], {}, [1, 2], {"a": 1}, "A" * 3000, [0.5] * 300, "cpu", "float16", [[[[[]]]]]),
)


def mutate_bytes(data: bytes, random: random.Random) -> bytes:
    """Makes one to eight changes: bits, bytes, numbers of all sizes, pieces moved, repeated, cut out or cut off."""
    found = bytearray(data)
    for _ in range(1 << random.randrange(4)):
        size = len(found)
        at = random.randrange(size + 1)
        other, length = random.randrange(size + 1), min(size - at, 1 << random.randrange(10))
        kind = random.randrange(8)
        if kind == 0 and at < size:
            found[at] ^= 1 << random.randrange(8)
        elif kind == 1 and at < size:
            found[at] = random.randrange(256)
        elif kind == 2:
            width = random.choice((1, 2, 4, 8))
            number = random.choice(_BORDERS) & ((1 << 8 * width) - 1)
            found[at : at + width] = number.to_bytes(width, random.choice(("little", "big")))
        elif kind == 3:
            del found[at : at + length]
        elif kind == 4:
            found[other:other] = found[at : at + length]
        elif kind == 5:
            found[other : other + length] = found[at : at + length]
        elif kind == 6:
            found[at:at] = random.randbytes(1 << random.randrange(6))
        elif random.randrange(4) == 0:
            del found[at:]
    return bytes(found)


def mutate_lines(data: bytes, random: random.Random) -> bytes:
    """Changes words and lines, and now and then bytes."""
    lines = [line.split(" ") for line in data.decode("utf-8", "surrogateescape").split("\n")]
    for _ in range(1 << random.randrange(3)):
        at = random.randrange(len(lines))
        line, kind = lines[at], random.randrange(6)
        if kind == 0:
            line[random.randrange(len(line))] = random.choice(_WORDS)
        elif kind == 1:
            line.insert(random.randrange(len(line) + 1), random.choice(_WORDS))
        elif kind == 2 and len(line) > 1:
            del line[random.randrange(len(line))]
        elif kind == 3:
            lines.insert(random.randrange(len(lines) + 1), list(random.choice(lines)))
        elif kind == 4 and len(lines) > 1:
            del lines[at]
        elif kind == 5:
            line[random.randrange(len(line))] = random.choice(random.choice(lines))
    end = random.choice(("\n", "\n", "\r\n", "\r"))
    text = end.join(random.choice((" ", " ", " ", "\t", "  ")).join(line) for line in lines)
    found = text.encode("utf-8", "surrogateescape")
    return mutate_bytes(found, random) if random.randrange(4) == 0 else found


def mutate_json(data: bytes, random: random.Random) -> bytes:
    """Changes, removes or adds values anywhere in a JSON text, and now and then bytes."""
    value: Json = json.loads(data)
    for _ in range(1 << random.randrange(3)):
        places = list(_list_places(value))
        if not places:
            break
        holder, key = random.choice(places)
        kind = random.randrange(4)
        if isinstance(holder, list) and isinstance(key, int):
            if kind == 0:
                del holder[key]
            elif kind == 1:
                holder.insert(key, _draw_value(random))
            else:
                holder[key] = _draw_value(random)
        elif isinstance(holder, dict) and isinstance(key, str):
            if kind == 0:
                del holder[key]
            elif kind == 1:
                holder[random.choice((*holder, "a", "\x1b"))] = copy.deepcopy(holder[key])
            else:
                holder[key] = _draw_value(random)
    text = json.dumps(value)
    if random.randrange(8) == 0:
        text = text.replace("{", '{"version": 2, ', 1)  # a name that stands twice
    if random.randrange(16) == 0:
        text = "[" * 10_000 + text
    found = text.encode("utf-8", "surrogatepass")
    return mutate_bytes(found, random) if random.randrange(4) == 0 else found


def _draw_value(random: random.Random) -> Json:
    return copy.deepcopy(random.choice(_VALUES))


def _list_places(value: Json) -> list[tuple[list[Json] | dict[str, Json], int | str]]:
    """Lists every place in the value, as the list or object and the index or name."""
    found: list[tuple[list[Json] | dict[str, Json], int | str]] = []
    waiting = [value]
    while waiting:
        holder = waiting.pop()
        if isinstance(holder, list):
            found += [(holder, index) for index in range(len(holder))]
            waiting += holder
        elif isinstance(holder, dict):
            found += [(holder, name) for name in holder]
            waiting += holder.values()
    return found
