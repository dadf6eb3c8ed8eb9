"""Time travel: `<mart>_as_of(moment)`, the mart as a live reader saw it at a past cut."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from lockstep.names import GENERATED
from lockstep.published import sql
from lockstep.published.file import NEVER, time
from lockstep.published.models import Model
from lockstep.published.parts import Parts
from lockstep.published.serving import NAME as SERVING
from lockstep.published.sql import Reading, Tree
from lockstep.schema import quoted
from lockstep.warehouse import text

_LIVE = {"served_from": "'live'"}  # what time travel takes: verified up to the moment, and the increments from there


@dataclass
class TimeTravel(Parts):
    """Makes the macro of one mart."""

    _queries: dict[tuple[str, str], tuple[Tree, list[str]]] = field(default_factory=dict)
    _moments: dict[str, bool] = field(default_factory=dict)

    def make(self, mart: Model) -> None:
        # A parameter stands for every column of its name that has no table before it.
        name = f"{GENERATED}moment" if self._has_a_moment(mart) else "moment"
        moment = f"CAST({name} AS TIMESTAMP)"
        used: list[str] = []
        query = self._past(mart, moment, used)
        first, last = self._bounds(used)
        macro = f"{mart.name}_as_of"
        past = f"{macro} reaches from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} (UTC), not to "
        self.file.run(
            f"CREATE MACRO {sql.named(macro)}({name}) AS TABLE "
            "SELECT figures.* FROM (SELECT CASE "
            f"WHEN {moment} IS NULL THEN error({text(f'{macro} needs a time.')}) "
            f"WHEN {moment} <> date_trunc('hour', {moment}) "
            f"THEN error({text('Cuts lie between two hours, give a full hour and not ')} || {moment}) "
            f"WHEN {moment} < {time(first)} OR {moment} > {time(last)} THEN error({text(past)} || {moment}) "
            f"ELSE TRUE END AS is_cut) AS checked, ({sql.text(query)}) AS figures"
            f"({', '.join(map(quoted, mart.columns))}) WHERE checked.is_cut"
        )

    def _bounds(self, used: list[str]) -> tuple[datetime, datetime]:
        """The first and the last cut at which there is all that a mart stands on."""
        domains = [name.partition(".")[2] for name in used if name.startswith("live.")]
        tables = [name.partition(".")[2] for name in used if name.startswith("changes.")]
        generations = [n for n in used if n.startswith("verified.") and n.partition(".")[2] in self.contracts]
        lower = [self.cuts.first_hour, *(self.cuts.increments_since(domain) for domain in domains)]
        for name in generations:
            lower += [self.file.value(f"SELECT MIN(cut) FROM {sql.named(name)}") or NEVER]
        upper = [*(self.cuts.of[domain] for domain in domains), *(self.cuts.of_table[table] for table in tables)]
        return max(lower), min(upper, default=min(self.cuts.of.values()))

    def _has_a_moment(self, model: Model) -> bool:
        """Whether a column, without a table before it, has the name of the parameter."""
        if not model.is_view:
            return False
        if model.name not in self._moments:
            columns = (node["column_names"] for node in sql.walk(self.models.tree(model)) if "column_names" in node)
            own = any(names[0].lower() == "moment" for names in columns)
            reads = (self.models[name] for name in self.models.reads(model) if name != SERVING)
            self._moments[model.name] = own or any(map(self._has_a_moment, reads))
        return self._moments[model.name]

    def _past(self, model: Model, moment: str, used: list[str]) -> Tree:
        """The model's query as of a moment; `used` gets what it stands on."""
        if (model.name, moment) not in self._queries:
            own = list[str]()
            self._queries[model.name, moment] = self._compose(model, moment, own), own
        query, more = self._queries[model.name, moment]
        used += more
        return query

    def _compose(self, model: Model, moment: str, used: list[str]) -> Tree:
        merges = self.cells.merges(model)

        def place(name: str, reading: Reading) -> Tree:
            schema, _, short = name.partition(".")
            read = self.models[name]
            if name == SERVING:
                return self._past_serving(self.serving.asked(reading), moment)
            if name == "changes.watermark":
                return self.log.ended(moment)
            if schema == "changes":
                used.append(name)
                return sql.item(f"(SELECT * FROM {self.log.sealed(short)} WHERE logged_at < {moment})")
            if merges:
                if schema == "verified":
                    return sql.item(f"(SELECT * FROM {self.cells.table(read)} WHERE cut <= {moment})")
                if schema == "hourly":
                    return sql.item(f"(SELECT * FROM {self.cells.table(read)} WHERE log_hour < {moment})")
                return sql.item(self.cells.no_diffs(model.short))
            if not read.is_view:
                used.append(name)
                return sql.item(self.cells.table(read))
            if schema == "live":
                used.append(name)
                if self.contracts[short].is_recomputed:
                    return sql.subquery(self._verified(read, moment))
            return sql.subquery(self._past(read, moment, used))

        return self.models.placed(model, place, None if merges else lambda _: self.serving.settle(model, _LIVE))

    def _verified(self, live: Model, moment: str) -> Tree:
        """The query for live figures that are recomputed: the rows of the past are not kept, verified figures are."""
        verified = self.cells.table(self.models[f"verified.{live.short}"])
        why = f"{live.short} is recomputed: it can be read as it was at the cuts of verified.{live.short}, not at "
        is_there = f"EXISTS (SELECT 1 FROM {verified} WHERE cut = {moment})"
        at = f"CASE WHEN {is_there} THEN {moment} ELSE CAST(error({text(why)} || {moment}) AS TIMESTAMP) END"
        return sql.parse(f"SELECT {', '.join(map(quoted, live.columns))} FROM {verified} WHERE cut = {at}")

    def _past_serving(self, domains: list[str], moment: str) -> Tree:
        if not domains:
            return sql.subquery(self.models[SERVING].empty())
        rows = [
            f"SELECT {text(domain)} AS domain, {text(self.serving.rows[domain]['mode'])} AS mode, "
            f"'live' AS served_from, {moment} AS as_of, (SELECT MAX(cut) FROM "
            f"{self.cells.table(self.models[f'verified.{domain}'])} WHERE cut <= {moment}) AS verified_cut, "
            "'time travel' AS reason, NULL::TEXT AS held"
            for domain in domains
        ]
        return sql.item(f"({' UNION ALL '.join(rows)})")
