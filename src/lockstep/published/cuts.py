"""The cuts of a publication: up to where the log is folded into it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from lockstep.changelog import Watermark
from lockstep.contracts import Contract
from lockstep.published.file import NEVER, File, time
from lockstep.published.models import Model, Models

_ALL_HOURS = timedelta(days=8)  # a log up to this long is published with every hour of increments


class Cuts:
    """By domain, the end of its last folded hour; by table, the first hour of it that is read from the log."""

    def __init__(
        self, file: File, models: Models, contracts: Mapping[str, Contract], tables: list[str], watermark: Watermark
    ) -> None:
        self.file = file
        self.models = models
        self.watermark = watermark
        self.contracts = contracts
        self.first_hour = (watermark.started_at or NEVER).replace(minute=0, second=0, microsecond=0)
        self.of = {contract.domain: self._folded_until(contract) for contract in contracts.values()}
        self.of_table = {table: self._table_cut(table) for table in tables}

    @property
    def least(self) -> datetime:
        """The first hour of the log that a reader needs."""
        return min(self.of_table.values())

    def increments_since(self, domain: str) -> datetime:
        """From which hour on increments are published: all, or those since the oldest generation."""
        oldest = self.file.value(f"SELECT MIN(cut) FROM {self.models[f'verified.{domain}'].relation}")
        if self.contracts[domain].is_recomputed:  # there are none: of the past there are verified rebuilds
            return oldest or self.first_hour
        if self.contracts[domain].is_finished:  # no generation has cells that the others could be added to
            return self.first_hour
        if oldest is None or self.of[domain] - self.first_hour <= _ALL_HOURS:
            return self.first_hour
        since: datetime = max(oldest, self.first_hour)
        return since

    def tail_of(self, domain: str) -> Model:
        """The model of the domain's signed rows since its last folded hour."""
        return self.models[f"tail.{domain}" if f"tail.{domain}" in self.models else f"diffs.{domain}"]

    def _folded_until(self, contract: Contract) -> datetime:
        """Hours without a change of the domain count as folded once sealed."""
        if contract.is_recomputed:
            return self.watermark.sealed_until(contract.sources) or self.first_hour
        hourly = self.models[f"hourly.{contract.domain}"].relation
        last = self.file.value(f"SELECT MAX(log_hour) FROM {hourly}")
        folded: datetime = last + timedelta(hours=1) if last else self.first_hour
        sealed = self.watermark.sealed_until(contract.sources) or folded
        if folded < sealed:
            diffs = self.tail_of(contract.domain).relation
            condition = f"logged_at >= {time(folded)} AND logged_at < {time(sealed)}"
            unfolded: datetime = self.file.value(f"SELECT MIN(logged_at) FROM {diffs} WHERE {condition}") or sealed
            folded = unfolded.replace(minute=0, second=0, microsecond=0)
        return folded

    def _table_cut(self, table: str) -> datetime:
        """Nothing changes any more before it."""
        cuts = [self.of[c.domain] for c in self.contracts.values() if table in c.sources]
        return min(cuts) if cuts else self.watermark.sealed_until([table]) or self.first_hour
