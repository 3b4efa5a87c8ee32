"""Count the fields of a protobuf message before it is parsed.

A parsed message takes far more memory than its bytes: an empty node has two bytes in a file, and hundreds in memory.

Source: https://protobuf.dev/programming-guides/encoding. A message is a sequence of fields, each a tag and a value. The
tag is a varint; its lower three bits are the type of the value, the others the number of the field.
"""

from __future__ import annotations

from typing import Any

from prefiqs_ext.utils.budget import Budget

_VARINT, _FIXED64, _BYTES, _GROUP, _END, _FIXED32 = range(6)
_MOST_VARINT = 10  # bytes
_PACKED = 16  # bytes of packed integers that cost as much as a field: each byte may be one of 8 bytes in memory


def charge_message(data: bytes, descriptor: Any, budget: Budget) -> None:
    """Charge a budget for every field of a message and of the messages inside it.

    Args:
        data: The message.
        descriptor: Protobuf's description of its kind.
        budget: What the file may still cost.

    Raises:
        FileFormatError: There are more fields than the budget has left.
        ValueError: The bytes are no message.
    """
    left = [(0, len(data), descriptor)]
    while left:
        at, end, kind = left.pop()
        fields = {} if kind is None else kind.fields_by_number
        while at < end:
            budget.charge_parts()
            tag, at = _read_varint(data, at)
            if tag & 7 == _VARINT:
                _, at = _read_varint(data, at)
            elif tag & 7 == _BYTES:
                size, at = _read_varint(data, at)
                field = fields.get(tag >> 3)
                if field is not None and field.message_type is not None:
                    left.append((at, at + size, field.message_type))
                elif field is not None and field.cpp_type not in _list_large_types(field):
                    budget.charge_parts(size // _PACKED)
                at += size
            else:
                at += {_FIXED64: 8, _FIXED32: 4, _GROUP: 0, _END: 0}[tag & 7]
        if at > end:
            raise ValueError("a field that is longer than its message")


def _list_large_types(field: Any) -> tuple[int, ...]:
    """Return the types of values that have about as many bytes in a file as in memory."""
    return field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE, field.CPPTYPE_STRING


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at a position, and the position behind it."""
    if data[at] < 0x80:
        return data[at], at + 1
    value = 0
    for index in range(_MOST_VARINT):
        byte = data[at + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + index + 1
    raise ValueError("a number of too many bytes")
