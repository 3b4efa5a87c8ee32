"""The contact sheet: one picture of all faces with their labels and scores."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from prefiqs_ext.demo import DemoFace
from prefiqs_ext.ranking import Ranking, format_score

# In pixels. The sheet is about as wide as the column of a README.
_COLUMNS = 5
_FACE = 168
_GAP = 20
_LABEL = 52
_TITLE = 60
_BAR = 8

_PAPER, _INK, _FAINT, _TRACK = "#ffffff", "#1b1f24", "#59636e", "#e4e8ec"
_LOW, _HIGH = (0xB4, 0x3A, 0x2F), (0x1F, 0x8A, 0x5B)


def draw_sheet(faces: Sequence[DemoFace], title: str, rank_by: Ranking) -> Image.Image:
    """Draw the faces in the order given, row by row, each with its score, rank and label.

    A bar below each face is as long as its score; the highest one fills the width. Its colour goes from red, for the
    lowest score of these faces, to green, for the highest.

    Returns:
        An RGB picture.
    """
    rows = -(-len(faces) // _COLUMNS)
    step_x, step_y = _FACE + _GAP, _FACE + _BAR + _LABEL + _GAP
    size = (_COLUMNS * step_x + _GAP, _TITLE + rows * step_y)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    title_font, label_font, number_font = (ImageFont.load_default(points) for points in (21, 15, 20))
    draw.text((_GAP, _TITLE / 2), title, _INK, title_font, anchor="lm")
    scores = [face.score for face in faces]
    low, high = min(scores), max(scores)
    for rank, face in enumerate(faces):
        x, y = _GAP + rank % _COLUMNS * step_x, _TITLE + rank // _COLUMNS * step_y
        picture = Image.fromarray(face.image).resize((_FACE, _FACE), Image.Resampling.BICUBIC)
        sheet.paste(picture, (x, y))
        y += _FACE + _BAR // 2
        share = (face.score - low) / (high - low) if high > low else 1.0
        colour = tuple(round(a + share * (b - a)) for a, b in zip(_LOW, _HIGH, strict=True))
        draw.rectangle((x, y, x + _FACE - 1, y + _BAR - 1), _TRACK)
        draw.rectangle((x, y, x + round(face.score / high * _FACE) - 1, y + _BAR - 1), colour)
        y += _BAR + 8
        draw.text((x, y), format_score(face.score, rank_by), _INK, number_font)
        draw.text((x + _FACE, y + 4), f"{rank + 1}", _FAINT, label_font, anchor="ra")
        draw.text((x, y + 26), face.label, _FAINT, label_font)
    return sheet
