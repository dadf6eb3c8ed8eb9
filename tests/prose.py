"""Find phrases in the pages, models and code that do not read as English, and say what to write instead.

Part of `make check`. Only phrases with no good use are listed, so that nobody has to work around this.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (
    *("*.md", "docs/**/*.md", "src/**/*.py", "bench/*.py", "models/**/*.sql", "audits/*.sql", "config.yaml"),
    *("macros/*.py", "materializations/*.py", "signals/*.py", "linter/*.py"),
)

# Pattern -> what to write instead. A space also matches a line break, with the `#` or quote that follows it.
PHRASES = {
    r"\b(?<!there )(is|are|was|were) no (?!more|less|help|(?!number|order)\w+er\b)": "`is not a ...`",
    r"\bwhat (it |they )?stands? for\b": "what it is: the query, name or value that replaces it",
    r"\btells? of\b": "`reports`, `names` or `says`",
    r"(?<!some )(?<!most )(?<!all )(?<!each )(?<!none )(?<!half )(?<!, )\bof which\b": "`whose`, or two sentences",
    r"\bwhoever\b": "name them: the caller, the reader, anyone",
    r"\bat most so (many|much)\b": "`at most N`, or `the newest N`",
    r"\b(with|has|have) so many\b": "`with that many`, or the number",
    r"\bone (JSON )?(change|dict|envelope|event|line|object|row|value) a (row|line|key|cell|table|fact)\b": (
        "`one ... per ...`"
    ),
    r"\bbehind the point\b": "`after the decimal point`",
    r"\bcarried through\b": "`finished` or `succeeded`",
    r"\bwithout a word\b": "`silently`",
    r"\bof before\b": "`earlier` or `previous`",
    r"\bas ever\b": "`as usual` or `as before`",
    r"\bnot all is\b": "say what failed",
}


def findings(text: str) -> Iterator[tuple[int, str, str]]:
    """Each phrase of a text that should not be there: its line, the phrase, and what to write instead."""
    for pattern, instead in PHRASES.items():
        # Inside a lookbehind a space stays a space: Python's have a fixed width.
        spaced = re.sub(r"\(\?<!.*?\)|( )", lambda m: r"[\s#\"]+" if m[1] else m[0], pattern)
        for match in re.finditer(spaced, text, re.IGNORECASE):
            yield text.count("\n", 0, match.start()) + 1, " ".join(match[0].split()), instead


def main() -> int:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {phrase!r}: write {instead}"
        for page in PAGES
        for path in sorted(ROOT.glob(page))
        for line, phrase, instead in sorted(findings(path.read_text("utf-8")))
    ]
    print("\n".join(found) or "The prose has none of the listed phrases.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
