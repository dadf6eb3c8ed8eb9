"""What the readers of a table of the log look at: no more of it gets into a published file."""

from __future__ import annotations

from collections.abc import Iterable

from lockstep.published import sql
from lockstep.published.sql import Reading, Tree
from lockstep.schema import Table, quoted
from lockstep.warehouse import text

_COLUMNS = ("position", "logged_at", "committed_at", "op", "before", "after", "tx_id", "lsn")
# Conditions may leave rows out only if they say the same at any time and never fail.
_KEEP_TRUE = {"CONJUNCTION", "COMPARISON", "OPERATOR", "CONSTANT", "COLUMN_REF", "BETWEEN", "CASE"}


def needs(table: Table, readers: Iterable[Reading]) -> tuple[str, str]:
    """The columns, and the condition on rows, of what the readers look at: as SQL over rows called `changes`."""
    fields: dict[str, set[str]] = {"before": set(), "after": set()}
    whole: set[str] = set()
    wanted = set()
    for reading in readers:
        for image, names in _fields(reading).items():
            whole |= {image} if names is None else set()
            fields[image] |= names or set()
        wanted.add(_condition(reading))
    images = {}
    for image, names in fields.items():
        kept = [c.name for c in table.columns if c.name.lower() in names]
        values = ", ".join(f"{text(name)}: {image}.{quoted(name)}" for name in kept) or "'is_there': TRUE"
        images[image] = image if image in whole else f"CASE WHEN {image} IS NOT NULL THEN {{{values}}} END AS {image}"
    condition = " OR ".join(f"({c})" for c in sorted(wanted)) or "FALSE"
    return ", ".join(images.get(column, column) for column in _COLUMNS), condition


def _fields(reading: Reading) -> dict[str, set[str] | None]:
    """Of each image the fields that a reader looks at, in lower case; None for the whole image."""
    if reading.node.get("column_name_alias"):
        return {"before": None, "after": None}
    found: dict[str, set[str] | None] = {"before": set(), "after": set()}

    def add(image: str, field: str | None) -> None:
        known = found[image]
        found[image] = None if known is None or field is None else known | {field}

    def look(node: Tree) -> Tree | None:
        """`node` itself where there is nothing more to see in it."""
        kind, image = node.get("type"), None
        if kind == "STAR" or node.get("ref_type") == "NATURAL":
            for whole in found:
                add(whole, None)
        for column in node.get("using_columns") or ():
            if column.lower() in found:
                add(column.lower(), None)
        if kind == "FUNCTION" and str(node["function_name"]).lower() == "struct_extract":
            part = node["children"][0]
            field = sql.literal(node["children"][1])
            image = _image(part, reading.alias)
            if image and field is not None and len(image) == 1:
                add(image[0], field.lower())
                return node
        if kind in ("OPERATOR_IS_NULL", "OPERATOR_IS_NOT_NULL"):
            image = _image(node["children"][0], reading.alias)
            if image and len(image) == 1:
                return node  # whether it is there is always told
        if node.get("class") == "COLUMN_REF":
            if image := _image(node, reading.alias):
                add(image[0], image[1] if len(image) > 1 else None)
            if [str(name).lower() for name in node["column_names"]] == [reading.alias.lower()]:
                for whole in found:
                    add(whole, None)
        return None

    sql.mapped({key: part for key, part in reading.select.items() if key != "cte_map"}, look)
    return found


def _image(node: Tree, alias: str) -> list[str] | None:
    """Of a column that is an image, or a field in one, their names in lower case."""
    names = [str(name).lower() for name in node.get("column_names", ())]
    if len(names) > 1 and names[0] == alias.lower():
        names = names[1:]
    return names if names and names[0] in ("before", "after") else None


def _condition(reading: Reading) -> str:
    """What the reader requires of a row by itself, as SQL over rows called `changes`."""
    if not reading.is_alone or reading.node.get("column_name_alias") or reading.node.get("sample"):
        return "TRUE"
    kept = [c for c in sql.conditions(reading.select) if _is_of_a_row(c, reading)]

    def rename(node: Tree) -> Tree | None:
        names = node.get("column_names")
        if names and len(names) > 1 and str(names[0]).lower() == reading.alias.lower():
            return node | {"column_names": ["changes", *names[1:]]}
        return None

    select = sql.parse("SELECT 1")
    texts = [sql.text(select | {"select_list": [sql.mapped(c, rename)]}).removeprefix("SELECT ") for c in kept]
    return " AND ".join(texts) or "TRUE"


def _is_of_a_row(condition: Tree, reading: Reading) -> bool:
    for node in sql.walk(condition):
        kind = node.get("class")
        if kind == "FUNCTION" and str(node["function_name"]).lower() != "struct_extract":
            return False
        if kind == "COLUMN_REF":
            names = [str(name).lower() for name in node["column_names"]]
            of_it = names[1:] if names[0] == reading.alias.lower() else names
            if not of_it or of_it[0] not in _COLUMNS:
                return False
        if kind not in (None, "FUNCTION", *_KEEP_TRUE):
            return False
    return True
