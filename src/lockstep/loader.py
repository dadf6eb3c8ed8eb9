"""The project as SQLMesh loads it, without the unit tests of its models: reading their YAML takes seconds."""

from __future__ import annotations

from typing import Any

from sqlmesh.core.loader import SqlMeshLoader


class WithoutUnitTests(SqlMeshLoader):  # type: ignore[misc]
    """For commands that run none of them: `Context(paths=..., loader=WithoutUnitTests)`."""

    def load_model_tests(self) -> list[Any]:
        return []
