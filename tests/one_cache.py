"""One cache of loaded models for a home and its copies, here and in the processes that import this.

SQLMesh's keys of it have the home's path in them. A model means the same in every home, so a copy need not load anew.
"""

from sqlmesh.core.config import Config

Config.fingerprint = property(lambda config: "of the tests")  # type: ignore[assignment,method-assign]
