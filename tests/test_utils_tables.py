"""Tables for a terminal: one line per row, whatever the cells hold."""

from __future__ import annotations

from prefiqs_ext.utils.tables import format_table


def test_numbers_stand_to_the_right_and_text_to_the_left() -> None:
    rows = [("a", 1234, 0.123456, None), ("long", 5, 20.0, None)]
    assert format_table(("name", "n", "share", "none"), rows) == [
        "name        n    share    none",
        "a       1,234   0.1235",
        "long        5       20",
    ]
    assert format_table((), rows, floats=".1f") == ["a     1,234   0.1", "long      5  20.0"]


def test_text_stays_what_it_is() -> None:
    rows = [("007",), ("1e5",), ("two\nlines\x1b[2J",)]
    assert format_table(("name",), rows) == ["name", "007", "1e5", r"two\nlines\x1b[2J"]


def test_a_column_with_one_text_is_text() -> None:
    assert format_table(("pauc",), [(0.5,), ("too few pairs",)]) == ["pauc", "0.5", "too few pairs"]


def test_no_rows() -> None:
    assert format_table(("a", "b"), []) == ["a    b"]
    assert format_table((), []) == []
