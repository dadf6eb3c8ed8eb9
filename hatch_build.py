"""Puts the files that `lockstep init` copies into the wheel."""

import runpy
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NewProject(BuildHookInterface):
    def initialize(self, version, build_data):
        if version == "editable":  # `lockstep init` then copies from the checkout
            return
        root = Path(self.root)
        template = runpy.run_path(str(root / "src" / "lockstep" / "template.py"))
        for file in template["files"](root):
            build_data["force_include"][str(root / file)] = f"lockstep/new_project/{file}"
