"""The project as SQLMesh loads it, without the unit tests of its models: reading their YAML takes seconds."""

from __future__ import annotations

from typing import Any

from sqlmesh.core.loader import SqlMeshLoader

from lockstep.project import digest, project


class WithoutUnitTests(SqlMeshLoader):  # type: ignore[misc]
    """For commands that run none of them: `Context(paths=..., loader=WithoutUnitTests)`."""

    def load_model_tests(self) -> list[Any]:
        return []


_imported = ""  # what digest_of_macros() was when the macros were imported last


def macros_are_imported() -> None:
    """Called by a macro file of the project while SQLMesh imports all of them."""
    global _imported
    _imported = digest_of_macros()


def digest_of_macros() -> str:
    return f"{project()} {digest(sorted((project() / 'macros').rglob('*.py')))}"


def require_macros() -> None:
    """Import the project's macros as they are now, and no model; nothing if SQLMesh has imported them.

    A query can then be rendered whatever is wrong with the others.
    """
    if _imported != digest_of_macros():
        import_macros()


def import_macros() -> None:
    """Import the project's macros and no model: a query can then be rendered whatever is wrong with the others."""
    from sqlmesh import Context
    from sqlmesh.core.console import NoopConsole, get_console, set_console
    from sqlmesh.utils import sys_path

    console = get_console()
    set_console(NoopConsole())
    try:
        context = Context(paths=str(project()), loader=WithoutUnitTests, load=False)
        with sys_path(*context.configs):
            for loader in context._loaders:
                loader._load_scripts()
        context.close()
    finally:
        set_console(console)
