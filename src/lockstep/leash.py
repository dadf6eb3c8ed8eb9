"""What is done once this process has ended, even if it was killed: no `finally` runs then."""

from __future__ import annotations

import subprocess


class Leash:
    """A shell that waits for this process to end, and then runs `script` with `arguments` as $1, $2, ...

    It holds the other end of a pipe, which the system closes with the last process that has it. `user` is the account
    that runs it, by default this process's.
    """

    def __init__(self, script: str, *arguments: str, user: str | None = None) -> None:
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", f"read -r _ || {{ {script}; }}", "leash", *arguments],
            user=user,
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C at the terminal is not for it
        )

    def drop(self) -> None:
        """Forget the script: all is done."""
        self._shell.kill()
        self._shell.communicate()
