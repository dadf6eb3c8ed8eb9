"""The project as SQLMesh loads it, without the unit tests of its models: reading their YAML takes seconds."""

from __future__ import annotations

from typing import Any

from sqlmesh.core.loader import SqlMeshLoader

from lockstep.project import project


class WithoutUnitTests(SqlMeshLoader):  # type: ignore[misc]
    """For commands that run none of them: `Context(paths=..., loader=WithoutUnitTests)`."""

    def load_model_tests(self) -> list[Any]:
        return []


def import_macros() -> None:
    """Import the project's macros and no model: a query can then be rendered whatever is wrong with the others."""
    from sqlmesh import Context
    from sqlmesh.core.console import NoopConsole, set_console
    from sqlmesh.utils import sys_path

    set_console(NoopConsole())
    context = Context(paths=str(project()), loader=WithoutUnitTests, load=False)
    with sys_path(*context.configs):
        for loader in context._loaders:
            loader._load_scripts()
    context.close()
