"""What a declared PostgreSQL type is in the change log: its name, and the Arrow type that it is stored as.

A type without a row in the table lands as text, as PostgreSQL prints it: enums, ranges, composites, addresses, types of
extensions. Why uuid and smallint are stored as they are: docs/decisions/0016-how-types-are-stored.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa

TIMESTAMP = pa.timestamp("us")  # always UTC; naive on disk so that no session time zone can shift an hour
BIGINT, INT, TEXT, DOUBLE, REAL, DATE = pa.int64(), pa.int32(), pa.string(), pa.float64(), pa.float32(), pa.date32()
BOOLEAN, TIME, BYTES = pa.bool_(), pa.time64("us"), pa.binary()

MOST_DIGITS = 38  # of a DECIMAL
_MONEY_DIGITS, _MONEY_SCALE = 19, 2  # money is a bigint of cents


@dataclass(frozen=True)
class Kind:
    """A type of the source. `name` is PostgreSQL's name of it, `other` if it lands as text whatever it is.

    `type` is its Arrow type in the log. `precision` is how many digits of a second a time is declared with, or how many
    bits a bit string has, None if the declaration does not say. `element` is the kind of an array's elements. `sql` is
    the type as it is declared.
    """

    name: str
    type: pa.DataType = TEXT
    precision: int | None = None
    element: Kind | None = None
    sql: str = "text"

    @property
    def is_text(self) -> bool:
        return bool(self.type == TEXT)

    @property
    def is_decimal(self) -> bool:
        return bool(pa.types.is_decimal(self.type))

    @property
    def duckdb(self) -> str:
        """The type in DuckDB of what is stored."""
        if self.is_decimal:
            return f"DECIMAL({self.type.precision}, {self.type.scale})"
        return _DUCKDB[self.type]

    @property
    def source_type(self) -> str:
        """The type for a statement that gives a column of the source this kind."""
        if self.is_decimal and self.name == "numeric":
            return f"numeric({self.type.precision}, {self.type.scale})"
        return self.name if self.name in _STORED or self.name in ("text", "uuid", "timetz") else self.sql.lower()


def plain(value: Any) -> str:
    """A value as text for people: a DECIMAL with every digit, bytes as PostgreSQL prints them, times in ISO format."""
    if isinstance(value, bytes):
        return f"\\x{value.hex()}"
    if isinstance(value, Decimal):
        return f"{value:f}"
    return value.isoformat() if isinstance(value, (datetime, date)) else str(value)


def meaning(kind: Kind) -> str:
    """What a value of the kind is, for a sentence."""
    if kind.name in ("bigint", "integer", "smallint"):
        return "a whole number in range"
    if kind.is_decimal:
        type_ = kind.type
        return f"a number of {type_.precision - type_.scale} digits before the point and {type_.scale} behind it"
    return _MEANINGS.get(kind.name, "a finite number" if pa.types.is_floating(kind.type) else f"a value of {kind.sql}")


_MEANINGS = {
    "boolean": "true or false",
    "numeric": "a number",
    "text": "a text",
    "uuid": "a text",
    "json": "a text",
    "other": "a text",
    "date": "a date",
    "time": "a time of day",
    "timetz": "a time of day",
    "timestamp": "a time",
    "timestamptz": "a time",
    "interval": "an interval",
    "bytea": "bytes",
    "array": "an array",
}
_NAMES: Mapping[str, str] = {
    "BIGINT": "bigint",
    "BIGSERIAL": "bigint",
    "INT": "integer",
    "SERIAL": "integer",
    "SMALLINT": "smallint",
    "SMALLSERIAL": "smallint",
    "BOOLEAN": "boolean",
    "DOUBLE": "double precision",
    "FLOAT": "real",
    "DECIMAL": "numeric",
    "MONEY": "money",
    "TEXT": "text",
    "VARCHAR": "text",
    "NVARCHAR": "text",
    "CHAR": "text",
    "NCHAR": "text",
    "BPCHAR": "text",
    "NAME": "text",
    "UUID": "uuid",
    "DATE": "date",
    "TIME": "time",
    "TIMETZ": "timetz",
    "TIMESTAMP": "timestamp",
    "TIMESTAMPTZ": "timestamptz",
    "INTERVAL": "interval",
    "VARBINARY": "bytea",
    "JSON": "json",
    "JSONB": "json",
    "HSTORE": "hstore",
    "BIT": "bit",
    "VARBIT": "varbit",
}
_STORED: Mapping[str, pa.DataType] = {
    "bigint": BIGINT,
    "integer": INT,
    "smallint": INT,
    "boolean": BOOLEAN,
    "double precision": DOUBLE,
    "real": REAL,
    "money": pa.decimal128(_MONEY_DIGITS, _MONEY_SCALE),
    "date": DATE,
    "time": TIME,
    "timestamp": TIMESTAMP,
    "timestamptz": TIMESTAMP,
    "bytea": BYTES,
}
_DUCKDB: Mapping[pa.DataType, str] = {
    BIGINT: "BIGINT",
    INT: "INTEGER",
    BOOLEAN: "BOOLEAN",
    DOUBLE: "DOUBLE",
    REAL: "FLOAT",
    TEXT: "TEXT",
    DATE: "DATE",
    TIME: "TIME",
    TIMESTAMP: "TIMESTAMP",
    BYTES: "BLOB",
}
_WITH_PRECISION = ("time", "timetz", "timestamp", "timestamptz", "bit")


def kind(declared: Any, domains: Mapping[str, Kind]) -> Kind:
    """The kind of a type as sqlglot parsed it. `domains` are the domains that the schema file creates, by name."""
    from sqlglot import exp

    sql = declared.sql("postgres")
    if not isinstance(declared, exp.DataType):
        return Kind("other", sql=sql)
    if isinstance(declared.this, exp.Interval):
        return Kind("interval", sql=sql)
    if declared.this == exp.DataType.Type.ARRAY:
        element = declared
        while element.this == exp.DataType.Type.ARRAY and element.expressions:
            element = element.expressions[0]
        return Kind("array", element=kind(element, domains), sql=sql)
    if declared.this == exp.DataType.Type.USERDEFINED:
        own = declared.args["kind"]
        own_name = own.expression.name if isinstance(own, exp.Dot) else own.name if isinstance(own, exp.Expr) else own
        if own_name in domains:
            return domains[own_name]
        return Kind(own_name.lower() if own_name.lower() in ("varbit", "hstore") else "other", sql=sql)
    name = _NAMES.get(getattr(declared.this, "name", ""), "other")
    numbers = [int(e.name) for e in declared.expressions if e.name.isdecimal()]
    if name == "double precision" and numbers:  # float(n): n counts binary digits
        name = "real" if numbers[0] <= 24 else name
    if name == "numeric":
        return Kind(name, _decimal(*numbers) if numbers else TEXT, sql=sql)
    precision = numbers[0] if numbers and name in _WITH_PRECISION else 1 if name == "bit" else None
    return Kind(name, _STORED.get(name, TEXT), precision, sql=sql)


def _decimal(digits: int, scale: int = 0) -> pa.DataType:
    """numeric(2, 5) has five digits after the point, of which three are zeros: DECIMAL counts them."""
    digits = max(digits, scale)
    return pa.decimal128(digits, scale) if digits <= MOST_DIGITS else TEXT


_ZEROS = {
    "BOOLEAN": "FALSE",
    "TEXT": "''",
    "BLOB": "''::BLOB",
    "DATE": "DATE '1970-01-01'",
    "TIME": "TIME '00:00:00'",
    "TIMESTAMP": "TIMESTAMP '1970-01-01 00:00:00'",
}


def zero(duckdb: str) -> str:
    """What a connector fills in for a value of this DuckDB type that it was not sent, as SQL."""
    return _ZEROS.get(duckdb, "0")


def readable(statement: str) -> str:
    """A statement of DDL as the parser reads it: it does not know all spellings of PostgreSQL's types."""
    from sqlglot import TokenType, tokenize

    tokens = tokenize(statement, dialect="postgres")
    edits: list[tuple[int, int, str]] = []
    for at, token in enumerate(tokens):
        following = tokens[at + 1 : at + 7]
        words = [t.text.upper() for t in following]
        name = token.text.upper() if token.token_type != TokenType.IDENTIFIER else ""
        if name == "BIT" and words[:1] == ["VARYING"]:
            edits.append((token.start, following[0].end, "varbit"))
        elif name == "NATIONAL" and words and words[0].startswith("CHAR"):
            edits.append((token.start, token.end, ""))
        elif name in ("NUMERIC", "DECIMAL", "DEC") and words[2:4] == [",", "-"] and words[:1] == ["("]:
            # A negative scale: zeros before the point, which are digits as well.
            digits = int(words[1]) + int(words[4])
            edits.append((token.start, following[5].end, f"numeric({digits}, 0)"))
    for start, end, text in reversed(edits):
        statement = statement[:start] + text + statement[end + 1 :]
    return statement
