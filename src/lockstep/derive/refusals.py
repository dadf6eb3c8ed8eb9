"""What is not derived, and what to write instead."""

from __future__ import annotations

from sqlglot import exp

from lockstep.errors import LockstepError


class Refused(LockstepError):
    """A construct that cannot be derived: which one, in which line of the query, and what to write instead."""

    def __init__(self, what: str, node: exp.Expr | None, instead: str) -> None:
        self.line = _line(node)
        self.place: str | None = None  # the file of a view that the query reads, if it stands there
        where = f"line {self.line}: " if self.line else ""
        self.what = f"{where}{what}"
        super().__init__(f"{self.what}. {instead}")


class NotLinear(Exception):
    """A part that is not a sum of products: it stays in the finish."""


def _line(node: exp.Expr | None) -> int | None:
    """The line of the first word of a node that the parser noted a place of."""
    if node is None:
        return None
    lines = [found.meta["line"] for found in node.walk() if "line" in found.meta]
    return min(lines, default=None)
