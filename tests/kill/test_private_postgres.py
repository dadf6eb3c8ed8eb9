"""A private server leaves nothing behind, also where the process that made it is killed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from postgres import required_programs

SERVE = """
import sys
from pathlib import Path
from lockstep.private_postgres import PrivateServer, private_directory

with private_directory() as directory:
    server = PrivateServer(Path(sys.argv[1]), directory)
    server.start()
    print(directory, flush=True)
    sys.stdin.read()
"""


def test_a_server_ends_with_the_process_that_started_it() -> None:
    """Without it a killed `make demo-live` would leave a PostgreSQL and its files for good."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, str(required_programs())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as serving:
        assert serving.stdout
        directory = Path(serving.stdout.readline().strip())
        server = Path("/proc", (directory / "data" / "postmaster.pid").read_text().split()[0])
        assert server.exists()
        serving.kill()
    given_up = time.monotonic() + 120
    while (server.exists() or directory.exists()) and time.monotonic() < given_up:
        time.sleep(0.1)
    assert not server.exists()
    assert not directory.exists()
