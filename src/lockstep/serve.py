"""`lockstep serve`: the published figures over the network, by DuckDB's own remote protocol (the extension quack).

Guarantees:
- Nobody writes. Every publication is attached read-only, a statement that is not a query is refused by its parse tree
  before it runs, and what a query may call is a list of functions that only read.
- Of the file system only publications and the change log can be read; nothing else, and nothing over the network.
- Nobody comes in without the token. It is compared before anything else is done for a connection.
- A publication that is moved into place is what the next query reads, on connections that are open too. A query that
  has begun ends on the one that it began with.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import duckdb
from duckdb import DuckDBPyConnection

from lockstep.errors import LockstepError
from lockstep.warehouse import text

PORT = 9494  # what clients of the protocol take if they are told none
_POLL = 0.25  # seconds
_SHORTEST_TOKEN = 16
_EXTENSIONS = ("httpfs", "quack")  # quack draws its random numbers with what httpfs brings

# Table functions that a query may name. All others read files, run text, stop the server or name other clients.
_ALLOWED = [
    "duckdb_columns",
    "duckdb_constraints",
    "duckdb_databases",
    "duckdb_functions",
    "duckdb_indexes",
    "duckdb_keywords",
    "duckdb_schemas",
    "duckdb_sequences",
    "duckdb_settings",
    "duckdb_tables",
    "duckdb_types",
    "duckdb_views",
    "generate_series",
    "icu_calendar_names",
    "json_each",
    "json_tree",
    "pg_timezone_names",
    "pragma_show",
    "pragma_table_info",
    "pragma_version",
    "range",
    "repeat",
    "repeat_row",
    "summary",
    "unnest",
]
# A statement that is not a SELECT has no tree. What a view reads is not in the tree of a query that names the view.
_MAY_ASK = """
    CREATE MACRO may_ask(connection_id, statement) AS (
      SELECT NOT CAST(tree ->> 'error' AS BOOLEAN) AND NOT list_has_any(
        list_transform(json_extract_string(tree, '$..function_name'), lambda name: lower(name)), {forbidden}
      )
      FROM (SELECT json_serialize_sql(CAST(statement AS VARCHAR)) AS tree)
    )
"""


def serve(home: Path, host: str, port: int, stop: threading.Event, say: Callable[[str], None]) -> None:
    """Serve the home's publications on `host` and `port` until `stop` is set; `say` is told each one that is served.

    Raises LockstepError if nothing is published yet, the address is taken, or the extension or its DuckDB is missing.
    """
    token = access_token(home)
    with duckdb.connect(config=_configuration(home)) as server:
        for name in _EXTENSIONS:
            server.execute(f"LOAD {text(extension(name))}")
        _restrict(server, home)
        door = _Door(server, home)
        door.open_newest()
        _require_free(host, port)
        address = f"quack:[{host}]:{port}" if ":" in host else f"quack:{host}:{port}"
        try:
            server.execute(
                "CALL quack_serve($address, token = $token, allow_other_hostname = TRUE)",
                {"address": address, "token": token},
            )
        except duckdb.Error as e:
            raise LockstepError(f"{host}:{port} cannot be listened on: {e}") from None
        server.execute("SET lock_configuration = TRUE")
        say(f"Serving {door.path} on {address}")
        while not stop.wait(_POLL):
            try:
                if door.open_newest():
                    say(f"Serving {door.path}")
            except LockstepError as e:  # goes on with the one before
                say(str(e))
        server.execute("CALL quack_stop($address)", {"address": address})


def _require_free(host: str, port: int) -> None:
    """Raise LockstepError if the address is taken: quack would share a port with another server of the same user."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as e:
        raise LockstepError(f"{host}:{port} cannot be listened on: {e.strerror}.") from None


def access_token(home: Path) -> str:
    """LOCKSTEP_TOKEN, or what `<home>/serve.token` holds; that is made, for its owner only, if it is not there."""
    token = os.environ.get("LOCKSTEP_TOKEN")
    where = "LOCKSTEP_TOKEN"
    if token is None:
        path = token_path(home)
        where = str(path)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise LockstepError(
                    f"{path} can be read by others: chmod 600 it, and better remove it first."
                ) from None
        else:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(secrets.token_urlsafe(32) + "\n")
        token = path.read_text(encoding="utf-8").strip()
    if len(token) < _SHORTEST_TOKEN:
        raise LockstepError(
            f"The token in {where} is shorter than {_SHORTEST_TOKEN} characters: anybody could guess it."
        )
    return token


def token_path(home: Path) -> Path:
    return home / "serve.token"


def extension(name: str) -> Path:
    """The file of one of DuckDB's extensions, as its package has it."""
    package = f"duckdb_extension_{name}"
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise LockstepError("Serving needs DuckDB's extensions quack and httpfs: pip install 'lockstep[serve]'")
    path = Path(found.origin).parent / "extensions" / f"v{duckdb.__version__}" / f"{name}.duckdb_extension"
    if not path.exists():
        raise LockstepError(
            f"{package} is made for another DuckDB than {duckdb.__version__}: pip install 'lockstep[serve]' mends it."
        )
    return path


def _configuration(home: Path) -> dict[str, str | bool | int | float | list[str]]:
    return {
        "allow_community_extensions": False,
        "allow_persistent_secrets": False,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "temp_directory": str(home / "serving.tmp"),
    }


def _restrict(server: DuckDBPyConnection, home: Path) -> None:
    """Narrow what anybody can do, this process included, to reading publications and the log."""
    server.execute("SET GLOBAL TimeZone = 'UTC'")
    readable = ", ".join(text(f"{home / name}/") for name in ("published", "changelog"))
    server.execute(f"SET allowed_directories = [{readable}]")
    server.execute("SET enable_external_access = FALSE")
    query = "SELECT DISTINCT lower(function_name) FROM duckdb_functions() WHERE function_type IN ('table', 'pragma')"
    forbidden = {name for (name,) in server.execute(query).fetchall()} - set(_ALLOWED) | {"write_log"}
    server.execute(_MAY_ASK.format(forbidden=f"[{', '.join(map(text, sorted(forbidden)))}]"))
    server.execute("SET GLOBAL quack_authorization_function = 'may_ask'")


class _Door:
    """What clients find: a view or macro of the same name for everything in the newest publication.

    The catalog they see is in memory and holds no row; it changes from one publication to the next in one transaction.
    """

    def __init__(self, server: DuckDBPyConnection, home: Path) -> None:
        self._server = server
        self._home = home
        self._attached: list[str] = []
        self._shown: set[tuple[str, str]] = set()  # kind and name
        self.path: Path | None = None

    def open_newest(self) -> bool:
        """Have clients find the newest publication; whether it is another than before."""
        path = self._newest()
        if path is None or path == self.path:
            return False
        alias = f"publication_{path.stem}"
        try:
            self._server.execute(f"ATTACH IF NOT EXISTS {text(path)} AS {alias} (READ_ONLY)")
            self._show(alias)
        except duckdb.Error as e:
            raise LockstepError(f"{path} cannot be served: {e}") from None
        self.path = path
        # The one before stays for a publication longer: a query may have looked up its names and not begun to read.
        self._attached.append(alias)
        while len(self._attached) > 2:
            self._server.execute(f"DETACH {self._attached.pop(0)}")
        return True

    def _newest(self) -> Path | None:
        """The file that `analytics.duckdb` is another name of."""
        latest = self._home / "analytics.duckdb"
        if not latest.exists():
            raise LockstepError(f"Nothing is published in {self._home} yet: `lockstep run` does it.")
        for path in (self._home / "published").glob("*.duckdb"):
            if path.samefile(latest):
                return path
        return None  # it is being replaced in this moment

    def _show(self, alias: str) -> None:
        shown: dict[tuple[str, str], str] = {}
        for schema, name in self._server.execute(
            "SELECT schema_name, table_name FROM duckdb_tables() WHERE database_name = $alias "
            "UNION ALL SELECT schema_name, view_name FROM duckdb_views() WHERE database_name = $alias AND NOT internal",
            {"alias": alias},
        ).fetchall():
            shown["VIEW", f'{schema}."{name}"'] = f'AS FROM {alias}.{schema}."{name}"'
        for schema, name, parameters in self._server.execute(
            "SELECT schema_name, function_name, parameters FROM duckdb_functions() "
            "WHERE database_name = $alias AND function_type = 'table_macro' AND NOT internal",
            {"alias": alias},
        ).fetchall():
            given = ", ".join(parameters)
            shown["MACRO TABLE", f'{schema}."{name}"'] = f'({given}) AS TABLE FROM {alias}.{schema}."{name}"({given})'
        self._server.execute("BEGIN")
        try:
            for schema in sorted({name.partition(".")[0] for _, name in shown}):
                self._server.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
            for (kind, name), body in shown.items():
                self._server.execute(f"CREATE OR REPLACE {kind.removesuffix(' TABLE')} {name} {body}")
            for kind, name in self._shown - shown.keys():
                self._server.execute(f"DROP {kind} {name}")
            self._server.execute("COMMIT")
        except duckdb.Error:
            self._server.execute("ROLLBACK")
            raise
        self._shown = set(shown)
