"""Where each box, row and line of a model's lineage lies in its drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lockstep.catalogue.columns import Column, Lineage

_WIDTH, _BETWEEN, _HEAD, _ROW, _GAP = 272, 92, 30, 21, 14  # pixels
_MOST_NAME = 33  # characters of a name that fit into a box


@dataclass
class Box:
    """A model with the columns that are drawn of it. `rows` has each column's middle, from the top of the drawing."""

    model: str
    x: int
    y: int
    columns: Sequence[str]
    is_here: bool = False
    width: int = _WIDTH

    @property
    def height(self) -> int:
        return _HEAD + _ROW * len(self.columns) + (6 if self.columns else 0)

    @property
    def head(self) -> int:
        return self.y + _HEAD // 2

    @property
    def rows(self) -> dict[str, int]:
        return {c: self.y + _HEAD + _ROW * i + _ROW // 2 for i, c in enumerate(self.columns)}


@dataclass(frozen=True)
class Line:
    """`column` is the drawn model's column that it begins or ends at; None if only the models depend on each other."""

    path: str
    column: str | None


@dataclass
class Drawing:
    width: int
    height: int
    boxes: list[Box] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)


def draw(
    model: str, columns: Sequence[str], parents: Sequence[str], children: Sequence[str], lineage: Lineage
) -> Drawing:
    """A model between the models that it reads, on the left, and those that read it."""
    into = [(read, column) for column in columns for read in lineage.direct.get((model, column), [])]
    out_of = [
        (read[1], target)
        for target, reads in lineage.direct.items()
        if target[0] in children
        for read in reads
        if read[0] == model
    ]
    left = _stack(parents, [source for source, _ in into], 0)
    right = _stack(children, [target for _, target in out_of], 2 * (_WIDTH + _BETWEEN))
    here = Box(model, _WIDTH + _BETWEEN if parents else 0, 0, columns, is_here=True)
    if not parents:
        for box in right:
            box.x -= _WIDTH + _BETWEEN
    stacks = [[here], left, right]
    height = max(stack[-1].y + stack[-1].height for stack in stacks if stack)
    for stack in stacks:
        spare = (height - (stack[-1].y + stack[-1].height)) // 2 if stack else 0
        for box in stack:
            box.y += spare if height < 700 else 0
    at = {box.model: box for box in (*left, *right)}
    boxes = [here, *left, *right]
    drawing = Drawing(max(b.x + b.width for b in boxes) + 2, height + 2, boxes)
    for (source, read), column in into:
        drawing.lines.append(_line(at[source], at[source].rows[read], here, here.rows[column], column))
    for column, (target, computed) in out_of:
        if column in here.rows:
            drawing.lines.append(_line(here, here.rows[column], at[target], at[target].rows[computed], column))
    drawing.lines += [_line(box, box.head, here, here.head, None) for box in left if not box.columns]
    drawing.lines += [_line(here, here.head, box, box.head, None) for box in right if not box.columns]
    return drawing


def shortened(name: str, most: int = _MOST_NAME) -> str:
    """A name that fits into a box."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _stack(models: Sequence[str], drawn: Sequence[Column], x: int) -> list[Box]:
    """Boxes below each other, those with columns first."""
    boxes, y = [], 0
    by_model = {m: list(dict.fromkeys(c for name, c in drawn if name == m)) for m in models}
    for model, columns in sorted(by_model.items(), key=lambda item: (not item[1], item[0])):
        boxes.append(Box(model, x, y, columns))
        y += boxes[-1].height + _GAP
    return boxes


def _line(start: Box, y1: int, end: Box, y2: int, column: str | None) -> Line:
    x1, x2, bend = start.x + start.width, end.x, _BETWEEN // 2
    return Line(f"M{x1} {y1}C{x1 + bend} {y1} {x2 - bend} {y2} {x2} {y2}", column)
