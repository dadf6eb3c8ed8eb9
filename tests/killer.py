"""Commands that are killed with `kill -9` at a random point of their work.

That point is decided by a command's progress, not by the clock: by the processor time that it has used, or by how often
it has written, each as a share of what a whole run of that command takes.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
TICKS = os.sysconf("SC_CLK_TCK")
SAFETY = 600  # seconds after which a command counts as stuck


@dataclass
class Progress:
    """How much a process has done: seconds of processor time, and writes."""

    cpu: float
    writes: int


def progress(pid: int) -> Progress | None:
    """None once it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        io = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return None if fields[0] == "Z" else Progress((int(fields[11]) + int(fields[12])) / TICKS, int(io["syscw"]))


def processes_of(home: Path) -> list[str]:
    """The command lines of processes that were started for this home."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            environment = (path / "environ").read_bytes().split(b"\0")
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if f"LOCKSTEP_HOME={home}".encode() in environment and state != "Z" and int(path.name) != os.getpid():
            found.append((path / "cmdline").read_text().replace("\0", " "))
    return found


@dataclass
class Killer:
    """Kills commands on one home, and knows how much a whole run of each takes."""

    home: Path
    chance: random.Random
    project: Path = ROOT
    whole: dict[str, Progress] = field(default_factory=dict)
    kills: Counter[str] = field(default_factory=Counter)

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "LOCKSTEP_HOME": str(self.home)}
        with (self.home.parent / "output").open("wb") as output:
            return subprocess.Popen(
                [BIN / command[0], *command[1:]], cwd=self.project, env=environment, stdout=output, stderr=output
            )

    def call(self, kind: str, *command: str) -> None:
        """Let a command run to its end, which must be a good one."""
        with self.start(*command) as process:
            last, end = Progress(0, 0), time.monotonic() + SAFETY
            while (now := progress(process.pid)) is not None:
                last = now
                assert time.monotonic() < end, f"{command} is stuck"
                time.sleep(0.02)
        output = (self.home.parent / "output").read_text()
        assert process.returncode == 0, f"{' '.join(command)} after {dict(self.kills)}:\n{output}"
        self.whole[kind] = last

    def kill(self, kind: str, *command: str, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Start a command and kill it at a random point of its work; if it ended before that, it was no kill.

        `meanwhile` is called again and again until then.
        """
        whole = self.whole[kind]
        by_cpu = self.chance.random() < 0.5
        share = self.chance.random()
        with self.start(*command) as process:
            while (now := progress(process.pid)) is not None:
                done = now.cpu / whole.cpu if by_cpu else now.writes / max(whole.writes, 1)
                if done >= share:
                    process.kill()
                    break
                meanwhile()
                time.sleep(0.005)
        self.kills[kind if process.returncode == -9 else f"{kind} (ended before)"] += 1
        left = processes_of(self.home)
        assert not left, f"{kind} left {left}"

    @property
    def killed(self) -> int:
        return sum(n for kind, n in self.kills.items() if "(" not in kind)
