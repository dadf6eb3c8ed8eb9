"""Names: what a table or column is called at the source, and what it is called in the change log.

The rule is in docs/sources.md. `Name.at` is the one place that says how a source spells a declared name, and `log_name`
the one that makes a table's name in the log of it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

GENERATED = "__"  # the prefix of every column that a model generates: no column of the log has it
KEY_OF_CELLS = f"{GENERATED}k"  # how the keys of cells begin that a query with a finish is compiled to
CORE = KEY_OF_CELLS  # in cells of several cores: which of them
GENERATED_COLUMNS = ("_position", "_committed_at", "_op")  # of append-only tables in `source`
LAST_BY = ("latest_at", "latest_position")  # the last row of a group is the one that is greatest in these two columns
EXTRA = "extra"  # the column of every image that holds, as JSON, the columns that the declaration leaves out

POSTGRESQL = "postgresql"
DATABASES_AS_SCHEMAS = ("mysql", "mariadb")  # connectors whose sources have databases in the place of schemas
_FOLDS = {POSTGRESQL: str.lower, "oracle": str.upper, "db2": str.upper}

_MODELS = ("all_positions", "discarded", "quarantined", "visible", "watermark")  # what else is in the schema `changes`

_NAMED = re.compile(r"named\s+(\S+)")


class Name(str):
    """A name of the source as it is declared, by itself a text as it is written.

    In quotes it is exact. Without quotes it is what the source's own database makes of it: lower case in PostgreSQL,
    upper case in Oracle and Db2, and what is written in all others.
    """

    is_quoted: bool

    def __new__(cls, text: str, is_quoted: bool = True) -> Name:
        name = super().__new__(cls, text)
        name.is_quoted = is_quoted
        return name

    def at(self, connector: str | None) -> str:
        """How a source of this connector spells it."""
        return str(self) if self.is_quoted else _FOLDS.get(connector or "", str)(self)

    def fits(self, name: str) -> bool:
        """Whether some source may spell it so."""
        return name == self or (not self.is_quoted and name.lower() == self.lower())

    @property
    def identity(self) -> str:
        """The same for two names that are one at every source."""
        return str(self) if self.is_quoted else self.lower()


def log_name(name: str) -> str:
    """The name in the log of a table that the source calls `name`; empty where nothing is left of it.

    Lower case, each run of other characters than letters, digits and underscores one underscore, none at its beginning;
    `t_` before a digit. Letters of any script count.
    """
    word = re.sub(r"\W+", "_", name.lower()).lstrip("_")
    return f"t_{word}" if word[:1].isdigit() else word


def table_problem(name: str) -> str | None:
    """Why a table of the log cannot have this name, as the rest of a sentence; None if it can."""
    if not name or name != log_name(name):
        return "is not a lower-case word that begins with a letter"
    if name in _MODELS:
        return f"is the name of a model of Lockstep's, changes.{name}"
    return None


def column_problem(name: str) -> str | None:
    """Why a column of an image cannot have this name, as the rest of a sentence; None if it can."""
    if name.lower() == EXTRA:
        return "belongs to the column that keeps, as JSON, the columns that the file does not declare"
    if name.startswith(GENERATED) or name.lower() in GENERATED_COLUMNS:
        return "is reserved for columns that models generate"
    return None


def free_name(parts: Iterable[str | None], taken: Collection[str]) -> str:
    """A name for what cannot have its own: these parts in one word, with a number if that is taken."""
    word = log_name("_".join(log_name(part) for part in parts if part)).strip("_") or "table"
    number = 1
    name = word
    while name in taken or table_problem(name) or column_problem(name):
        number += 1
        name = f"{word}_{number}"
    return name


def note(name: str) -> str:
    """The comment that gives a table or column of a declaration its name in the log."""
    return f"-- named {name}"


def noted(comments: Iterable[str]) -> str | None:
    """The name that the comments give, None if they give none."""
    found = [match[1] for comment in comments if (match := _NAMED.fullmatch(comment.strip()))]
    return found[-1] if found else None
