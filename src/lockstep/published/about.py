"""What a published file says of itself: `about`, with one row per mart, and the comments of the models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lockstep.contracts import Contract
from lockstep.published import sql
from lockstep.published.cuts import Cuts
from lockstep.published.file import File, now, time
from lockstep.published.models import Model, Models
from lockstep.published.serving import Serving
from lockstep.schema import quoted
from lockstep.warehouse import Row, text

ABOUT = {
    "mart": ("TEXT", "What to query"),
    "domain": ("TEXT", "Domain whose contract it is under; NULL for events, which are not figures"),
    "owner": ("TEXT", "Who answers for it"),
    "is_live": ("BOOLEAN", "Whether it shows changes that landed after the publication"),
    "served_from": ("TEXT", "live or rebuild, as the evidence allowed when this file was published"),
    "reason": ("TEXT", "Why it is served from there"),
    "cut": ("TIMESTAMP", "Up to where the log is folded into this file; a live mart reads the rest from the log"),
    "as_of": ("TIMESTAMP", "As of when the figures were at publication; a live mart tells its own in as_of"),
    "receipt": ("TEXT", "Verdict of the last receipt"),
    "receipt_cut": ("TIMESTAMP", "Cut that it is of"),
    "reconciled_at": ("TIMESTAMP", "When it was made"),
    "freshness_seconds": ("BIGINT", "How old live figures may be, by the contract"),
    "query": ("TEXT", "How to read it"),
    "as_it_was": ("TEXT", "How to read it as it was at a past hour"),
    "reads": ("TEXT", "Where a live mart finds the change log, and what to do if it is not there any more"),
    "published_at": ("TIMESTAMP", "When this file was made"),
}


def describe(file: File, models: Models) -> None:
    """The comments of models and their columns, as the warehouse has them."""
    kinds = {
        f"{schema}.{name}": kind
        for schema, name, kind in file.connection.execute(
            "SELECT schema_name, table_name, 'TABLE' FROM duckdb_tables() WHERE database_name = current_database() "
            "UNION ALL SELECT schema_name, view_name, 'VIEW' FROM duckdb_views() "
            "WHERE database_name = current_database() AND NOT internal"
        ).fetchall()
    }
    statements = []
    for name in models:
        model, spelled = models[name], sql.named(name)
        if name in kinds and model.schema != "source":  # what the warehouse says of source is of another moment
            if model.comment:
                in_one_line = " ".join(line.strip() for line in model.comment.strip().splitlines() if line.strip())
                statements.append(f"COMMENT ON {kinds[name]} {spelled} IS {text(in_one_line)}")
            for column, (_, comment) in model.columns.items():
                if comment:
                    statements.append(f"COMMENT ON COLUMN {spelled}.{quoted(column)} IS {text(comment)}")
    file.run("; ".join(statements))


def write_about(
    file: File,
    models: Models,
    cuts: Cuts,
    serving: Serving,
    contracts: Mapping[str, Contract],
    is_live: Mapping[str, bool],
    home: Path,
) -> list[Row]:
    """Write `about`, a row for each of the marts that `is_live` has; returns its rows."""
    receipts = {
        row["domain"]: row
        for row in file.rows(
            f"SELECT * FROM {models['reconcile.receipts'].relation} "
            "QUALIFY ROW_NUMBER() OVER (PARTITION BY domain ORDER BY sequence DESC) = 1"
        )
    }
    reads = f"{home / 'changelog'}; if it has moved, `lockstep publish` there"
    about: list[Row] = []
    for name, changes in is_live.items():
        domain = next(iter(_domains(models, serving, models[name])), None)
        contract = contracts.get(domain or "")
        served, receipt = serving.rows.get(domain or "", {}), receipts.get(domain or "", {})
        cut = cuts.of[domain] if domain else cuts.least
        past = served.get("verified_cut") if contract and contract.is_recomputed else cut
        always = "always live: events" if changes else "daily by design: always from the last verified rebuild"
        decided = bool(served) and (changes or served["served_from"] == "rebuild")
        served_from = served["served_from"] if decided else "live" if changes else "rebuild"
        about.append(
            {
                "mart": name,
                "domain": domain,
                "owner": contract.owner if contract else None,
                "is_live": changes,
                "served_from": served_from,
                "reason": served["reason"] if decided else always,
                "cut": cut,
                "as_of": served.get("as_of") if changes else served.get("verified_cut"),
                "receipt": receipt.get("verdict"),
                "receipt_cut": receipt.get("cut"),
                "reconciled_at": receipt.get("reconciled_at"),
                "freshness_seconds": contract.freshness_seconds if contract and served_from == "live" else None,
                "query": f"SELECT * FROM {_plain(name)}",
                "as_it_was": f"SELECT * FROM {_plain(f'{name}_as_of')}({time(past or cut)})",
                "reads": reads if changes else None,
                "published_at": now(),
            }
        )
    file.run("CREATE TABLE about ({})".format(", ".join(f"{name} {kind}" for name, (kind, _) in ABOUT.items())))
    for row in about:
        values = ", ".join("NULL" if row[name] is None else text(row[name]) for name in ABOUT)
        file.run(f"INSERT INTO about VALUES ({values})")
    file.run("COMMENT ON TABLE about IS 'What this file holds: one row per mart'")
    for column, (_, comment) in ABOUT.items():
        file.run(f"COMMENT ON COLUMN about.{column} IS {text(comment)}")
    return about


def _domains(models: Models, serving: Serving, model: Model) -> list[str]:
    """The domains of a mart, its own or those of the marts it reads."""
    own = serving.domains(model)
    return own or [
        d for name in models.reads(model) if name.startswith("mart.") for d in _domains(models, serving, models[name])
    ]


def _plain(name: str) -> str:
    """The name of a mart, in quotes only where it needs them."""
    return name if name.replace(".", "_").isidentifier() and name.islower() else sql.named(name)
