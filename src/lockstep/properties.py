"""Settings written as NAME=VALUE, in a file or on the command line."""

from __future__ import annotations

from pathlib import Path

from lockstep.errors import LockstepError


def read(path: Path) -> dict[str, str]:
    """The settings in a file, one per line. Blank lines, and those that begin with # or !, are comments.

    Raises LockstepError, naming the line, if one is not a setting, and if the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise LockstepError(f"{path} cannot be read: {e}.") from None
    return dict(
        setting(line, f"line {number} of {path}")
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith(("#", "!"))
    )


def setting(text: str, where: str) -> tuple[str, str]:
    """Its name and value. `where` is named in the LockstepError that is raised if the text is not a setting."""
    name, separator, value = text.partition("=")
    if not separator:
        raise LockstepError(f"{text!r} in {where} is not a setting: write NAME=VALUE.")
    return name.strip(), value.strip()
