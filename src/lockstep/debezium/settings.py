"""How a connector encodes values: what an event's schema, the connector's settings or its defaults say of a column."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from lockstep.debezium.macros import recipe
from lockstep.kinds import DATE, TIMESTAMP, Kind
from lockstep.schema import Column, Table, literal
from lockstep.texts import Said


@dataclass(frozen=True)
class Unit:
    """What a number in a time column counts: microseconds = number * numerator / denominator."""

    name: str
    numerator: int
    denominator: int = 1


_MILLIS, MICROS, _NANOS = Unit("milliseconds", 1000), Unit("microseconds", 1), Unit("nanoseconds", 1, 1000)
DAYS = Unit("days", 86_400_000_000)

TIMES = {
    "io.debezium.time.Timestamp": _MILLIS,
    "org.apache.kafka.connect.data.Timestamp": _MILLIS,
    "io.debezium.time.Time": _MILLIS,
    "org.apache.kafka.connect.data.Time": _MILLIS,
    "io.debezium.time.MicroTime": MICROS,
    "io.debezium.time.NanoTime": _NANOS,
    "io.debezium.time.MicroTimestamp": MICROS,
    "io.debezium.time.NanoTimestamp": _NANOS,
    "io.debezium.time.Date": DAYS,
    "org.apache.kafka.connect.data.Date": DAYS,
}

_CLOCKS = ("io.debezium.time.Time", "io.debezium.time.MicroTime", "io.debezium.time.NanoTime")

# What connectors write in their default mode for a column whose type does not say a precision: MySQL's datetime is
# datetime(0), PostgreSQL's timestamp is timestamp(6). Others' types differ too much for one default.
_DEFAULT_TIMES = {"mysql": _MILLIS, "mariadb": _MILLIS, "postgresql": MICROS}

# These connectors write times of day that are numbers as microseconds, whatever the column's precision, and a zero date
# (0000-00-00) as NULL, in a column that is NOT NULL as 1970-01-01.
MYSQL = ("mysql", "mariadb")

_TIME_MODES = {"connect": _MILLIS, "microseconds": MICROS, "nanoseconds": _NANOS}  # of time.precision.mode
DECIMAL, OWN_SCALE = "org.apache.kafka.connect.data.Decimal", "io.debezium.data.VariableScaleDecimal"
SCHEMAS_SAY = "value.converter.schemas.enable=true has the connector say so in each event"


@dataclass(frozen=True)
class Declared:
    """What the schema that comes with an event says of a column: type in Kafka Connect, name, parameters, elements."""

    type: str
    name: str
    scale: int = 0
    length: int | None = None
    items: Declared | None = None
    is_optional: bool = False


@dataclass(frozen=True)
class Settings:
    """What is known of a connector whose events carry no schema, beyond its defaults.

    `is_printed`: events were written by `lockstep capture`, with what PostgreSQL prints.
    """

    decimals: str = "precise"  # its decimal.handling.mode
    times: str = "adaptive"  # its time.precision.mode
    binary: str | None = None  # its binary.handling.mode
    is_printed: bool = False

    @classmethod
    def of(cls, properties: Mapping[str, str]) -> Settings:
        """Those of a connector with these properties."""
        given = {field: properties[name] for field, name in SETTINGS.items() if name in properties}
        default = cls()
        return cls(
            given.get("decimals", default.decimals),
            given.get("times", default.times),
            given.get("binary"),
        )

    @classmethod
    def stored(cls, resume: Mapping[str, Any]) -> Settings:
        """Those of what wrote the log, by its watermark; the defaults if that is none of ours."""
        if "slot" in resume:
            return cls(decimals="string", is_printed=True)
        stored = resume.get("debezium")
        return cls() if stored is None else cls.of({"decimal.handling.mode": "string", **stored.get("settings", {})})


SETTINGS = {"decimals": "decimal.handling.mode", "times": "time.precision.mode", "binary": "binary.handling.mode"}
DEFAULTS = Settings()
Types = Mapping[tuple[str, str], Declared]  # by schema and column


def declared_columns(schema: object) -> Iterator[tuple[str, Declared]]:
    for image in _fields(schema):
        if image.get("field") in ("before", "after"):
            for column in _fields(image):
                yield str(column.get("field")), _of_schema(column)


def _of_schema(column: Mapping[str, Any]) -> Declared:
    parameters = column.get("parameters")
    parameters = parameters if isinstance(parameters, dict) else {}
    scale, length = (str(parameters.get(name)) for name in ("scale", "length"))
    items = column.get("items")
    return Declared(
        str(column.get("type")),
        str(column.get("name")),
        int(scale) if scale.removeprefix("-").isdecimal() else 0,
        int(length) if length.isdecimal() else None,
        _of_schema(items) if isinstance(items, dict) else None,
        column.get("optional") is True,
    )


def _fields(schema: object) -> Iterable[dict[str, object]]:
    fields = schema.get("fields") if isinstance(schema, dict) else None
    return [f for f in fields if isinstance(f, dict)] if isinstance(fields, list) else []


@dataclass(frozen=True)
class Part:
    """The events of one table that are typed alike: by one connector, with one schema or none."""

    table: Table
    schema_id: str | None
    connector: str | None
    types: Types
    settings: Settings

    @property
    def condition(self) -> str:
        """SQL over `records`; the fast lane has typed those that are plain."""
        is_change = f"kind = 'change' AND NOT is_plain AND \"table\" = '{self.table.name}' AND op IS DISTINCT FROM 't'"
        same = " AND ".join(
            f"{column} {'IS NULL' if value is None else f'= {literal(value)}'}"
            for column, value in (("schema_id", self.schema_id), ("connector", self.connector))
        )
        return f"{is_change} AND {same}"

    def declared(self, column: Column) -> Declared | None:
        return self.types.get((self.schema_id, self.source(column))) if self.schema_id else None

    def source(self, column: Column) -> str:
        """What the events call the column."""
        return column.at(self.connector)

    def unit(self, column: Column) -> tuple[Unit | None, bool]:
        """What numbers in a time column count, None if nothing says it; and whether that is only a default."""
        return self._unit(column.kind, self.declared(column))

    def may_be_zero_date(self, column: Column) -> bool:
        """Whether 1970-01-01 in the column may be MySQL's 0000-00-00, which a nullable column receives as NULL."""
        said = self.declared(column)
        is_optional = column.nullable or (said is not None and said.is_optional)
        return self.connector in MYSQL and column.type in (DATE, TIMESTAMP) and not is_optional

    def _unit(self, kind: Kind, said: Declared | None) -> tuple[Unit | None, bool]:
        if kind.name == "interval":  # only a time of day that goes beyond a day; other numbers cannot say their months
            if said is not None:
                return (TIMES[said.name] if said.name in _CLOCKS else None), False
            return (_TIME_MODES.get(self.settings.times) if self.connector in MYSQL else None), False
        if said is not None and said.name in TIMES:
            return TIMES[said.name], False
        if self.settings.times in _TIME_MODES:
            return _TIME_MODES[self.settings.times], False
        if kind.name == "time" and said is None and self.connector in MYSQL:
            return MICROS, True
        if kind.precision is not None:
            return (_MILLIS if kind.precision <= 3 else MICROS if kind.precision <= 6 else _NANOS), False
        if said is not None:
            return None, False
        if kind.name == "time":
            return (MICROS if self.connector == "postgresql" else None), True
        return _DEFAULT_TIMES.get(self.connector or ""), True

    def recipe(self, column: Column) -> int:
        """The number by which `printed` knows how to read the column's values."""
        return recipe(column.kind, self._said(column.kind, self.declared(column)))

    def _said(self, kind: Kind, declared: Declared | None) -> Said:
        if kind.element is not None:
            return Said(items=self._said(kind.element, declared.items if declared else None))
        unit, _ = self._unit(kind, declared)
        if kind.name == "date" and (declared is None or unit == DAYS):
            unit = None
        return Said(
            type=declared.type if declared else "string" if self.settings.is_printed else "",
            name=declared.name if declared else "",
            scale=declared.scale if declared else kind.type.scale if kind.is_decimal else None,
            length=declared.length if declared else None,
            micros=Fraction(unit.numerator, unit.denominator) if unit else None,
            decimals="string" if self.settings.decimals == "string" else None,
            binary=self.settings.binary,
        )
