"""Loss plot: the losses of a training over its steps, as a small PNG that lies beside the card.

Drawn with Pillow, twice as large as it is shown: a line is sharp then on any screen.
"""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont

    Draw = ImageDraw.ImageDraw
    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

LOSS_PLOT = "training_loss.png"
"""The file's name."""

_WIDTH, _HEIGHT = 1280, 560
# Room for the numbers and the legend
_LEFT = 100
_RIGHT = 40
_TOP = 70
_BOTTOM = 80
_TICKS = 4
_INK = "#57606a"
_GRID = "#d8dee4"
_PAPER = "#ffffff"
_TEXT = 26
_DOTS = 40  # points of a line that are shown one by one; of more they would be a worm

Points = Sequence[tuple[int, float]]


class Line(NamedTuple):
    """One line of the plot."""

    name: str
    color: str
    points: Points


class _Frame(NamedTuple):
    """Where the numbers lie on the picture."""

    first: int
    last: int
    low: float
    high: float

    def at(self, step: float, value: float) -> tuple[float, float]:
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * (step - self.first) / (self.last - self.first)
        y = _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (value - self.low) / (self.high - self.low)
        return x, y


def loss_plot(loss: Points, eval_loss: Points) -> bytes:
    """Draw losses over steps.

    Args:
        loss: Steps with their loss, nats a token.
        eval_loss: The same on the validation rows. Of both together there must be two different steps.
    """
    from PIL import Image, ImageDraw, ImageFont

    lines = [Line("Loss", "#9aa4af", loss), Line("Validation loss", "#4f46e5", eval_loss)]
    lines = [line for line in lines if line.points]
    steps = [step for line in lines for step, _ in line.points]
    values = [value for line in lines for _, value in line.points]
    room = (max(values) - min(values)) * 0.06 or 0.5
    frame = _Frame(min(steps), max(steps), max(0.0, min(values) - room), max(values) + room)
    picture = Image.new("RGB", (_WIDTH, _HEIGHT), _PAPER)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(_TEXT)
    _axes(draw, font, frame)
    _legend(draw, font, lines)
    for line in lines:
        places = [frame.at(step, value) for step, value in line.points]
        if len(places) > 1:
            draw.line(places, fill=line.color, width=5, joint="curve")
        for x, y in places if len(places) <= _DOTS else []:
            draw.ellipse((x - 6, y - 6, x + 6, y + 6), fill=line.color)
    file = io.BytesIO()
    picture.quantize(64).save(file, "PNG", optimize=True)
    return file.getvalue()


def _axes(draw: "Draw", font: "Font", frame: _Frame) -> None:
    for i in range(_TICKS + 1):
        value = frame.low + (frame.high - frame.low) * i / _TICKS
        _, y = frame.at(frame.first, value)
        draw.line([(_LEFT, y), (_WIDTH - _RIGHT, y)], fill=_GRID, width=2)
        draw.text((_LEFT - 16, y), f"{value:.2f}", fill=_INK, font=font, anchor="rm")
        step = round(frame.first + (frame.last - frame.first) * i / _TICKS)
        x, _ = frame.at(step, frame.low)
        draw.text((x, _HEIGHT - _BOTTOM + 14), f"{step:,}", fill=_INK, font=font, anchor="ma")
    draw.text((_LEFT + (_WIDTH - _LEFT - _RIGHT) / 2, _HEIGHT - 6), "Step", fill=_INK, font=font, anchor="mb")


def _legend(draw: "Draw", font: "Font", lines: Sequence[Line]) -> None:
    x = float(_LEFT)
    for line in lines:
        draw.line([(x, 34), (x + 44, 34)], fill=line.color, width=7)
        draw.text((x + 58, 34), line.name, fill=_INK, font=font, anchor="lm")
        x += 58 + draw.textlength(line.name, font=font) + 44
    draw.text((_WIDTH - _RIGHT, 34), "nats a token", fill=_INK, font=font, anchor="rm")
