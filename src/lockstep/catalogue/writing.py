"""The catalogue as files: one page per model and an index, from the templates in `pages/`."""

from __future__ import annotations

import re
import zlib
from datetime import datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from lockstep.catalogue.drawing import shortened
from lockstep.catalogue.gathering import SCHEMAS, Catalogue, Model
from lockstep.errors import LockstepError

INDEX = "index.html"
_NOTHING = "\u2013"
_MARK = "<!-- written by lockstep docs -->"  # in each page, so that pages of models that are gone can be told


def written(catalogue: Catalogue, directory: Path) -> None:
    """Write the pages, and delete those that an earlier catalogue left of models that are gone."""
    pages = pages_of(catalogue)
    before = {path.name for path in directory.glob("*.html") if _is_ours(path)}
    if (directory / INDEX).exists() and INDEX not in before:
        raise LockstepError(
            f"{directory / INDEX} was not written by `lockstep docs`, and is left as it is: choose another --out."
        )
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        (directory / name).write_text(text, encoding="utf-8")
    for name in before - pages.keys():
        (directory / name).unlink()


def pages_of(catalogue: Catalogue) -> dict[str, str]:
    """Each page's text by its file's name."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("lockstep.catalogue", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "time": _time,
        "number": _number,
        "shortened": shortened,
        "duration": _duration,
        "prose": _prose,
    }
    environment.globals |= {"page": page_of, "mark": _MARK, "catalogue": catalogue}
    environment.globals["names"] = {model.name for model in catalogue.models}
    schemas: dict[str, list[Model]] = {schema: [] for schema in SCHEMAS}
    for model in catalogue.models:
        schemas.setdefault(model.schema, []).append(model)
    groups = [(schema, SCHEMAS.get(schema, ""), models) for schema, models in schemas.items() if models]
    pages = {INDEX: environment.get_template("index.html").render(groups=groups)}
    template = environment.get_template("model.html")
    return pages | {page_of(model.name): template.render(model=model) for model in catalogue.models}


def page_of(model: str) -> str:
    """The file of a model's page. A name that cannot be a file's everywhere gets a number that tells it from others."""
    plain = re.sub(r"[^a-z0-9_.]", "_", model)
    return f"{plain}.html" if plain == model else f"{plain}-{zlib.crc32(model.encode()):08x}.html"


def _is_ours(path: Path) -> bool:
    with path.open(encoding="utf-8", errors="replace") as file:
        return _MARK in file.read(200)


def _prose(text: str) -> Markup:
    """Text with what stands between backticks as code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a backtick without its other
        return escape(text)
    return Markup("").join(Markup("<code>{}</code>").format(p) if i % 2 else escape(p) for i, p in enumerate(parts))


def _time(value: datetime | None) -> str:
    return f"{value:%Y-%m-%d %H:%M:%S}".removesuffix(":00") if value else _NOTHING


def _number(value: Any) -> str:
    if value is None:
        return _NOTHING
    return f"{value:,.10g}" if isinstance(value, float) else f"{value:,}"


def _duration(seconds: int) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
