"""Queries and logs that Hypothesis makes up, through the project's own models over the files that the landing writes.

At every cut the cells of all hours before it, finished, are the query as written over `source.<table>`, and that is
the query over the rows which a Python dictionary has; so are live figures, whenever they are read. Hours computed as
they seal, all of them later, one by one or in one statement, are the same.

Rows come, change, take another key, go and come again; columns are NULL; columns are added at the source, with a
default or without, and join the log later; changes are lost, hold their table and are mended by a resync; nights take
checkpoints and verify; the log is filled by a capture or by Debezium's events. A failure prints a call of `check` to
paste as a test.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from computed_home import Fact, Home, Hour
from lockstep import contracts
from lockstep.init import init
from lockstep.schema import SCHEMA_FILE, TABLES, declared
from moving_source import KEYS, Add, Declare, Delete, Lose, Move, Put, Resync, Step, ddl
from random_queries import SOURCES, Reads, queries

examples = settings(
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "12")),
    derandomize="CI" in os.environ,
    database=None if "CI" in os.environ else settings.default.database,
    suppress_health_check=list(HealthCheck),
)

Check = Callable[..., None]


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Check]:
    """A case: what happened, the facts, and what fills the log."""
    directory = tmp_path_factory.mktemp("generated")
    with pytest.MonkeyPatch.context() as patch:
        init(directory / "project", ddl(set()))
        patch.setattr(TABLES, "_found", declared(directory / "project" / SCHEMA_FILE))  # before its old value would be
        patch.chdir(directory / "project")

        def check(steps: Sequence[Step | Hour], facts: Sequence[Fact], *, is_captured: bool = True) -> None:
            with TemporaryDirectory(dir=directory) as path, pytest.MonkeyPatch.context() as of_case:
                of_case.setenv("LOCKSTEP_HOME", path)
                home = Home(Path(path), facts, is_captured=is_captured)
                for step in steps:
                    home.reach(step) if isinstance(step, Hour) else home.source.apply(step)
                home.end()

        yield check
    contracts.load.cache_clear()


OF_LATER_COLUMNS = [
    Reads("source.orders AS o", "o.id", ("o.region",), ("o.paid", "o.amount + o.paid")),
    Reads("source.stops AS s", "s.id", ("s.label",), ("s.n",)),
    Reads(
        "source.orders AS o JOIN source.stops AS s ON s.label = o.region",
        "o.id",
        ("s.label", "o.region"),
        ("o.paid", "s.n", "o.paid * s.n"),
    ),
    Reads(
        "source.orders AS o LEFT JOIN source.visits AS v ON v.order_id = o.id AND v.number = o.paid",
        "o.id",
        ("v.region", "o.region"),
        ("o.amount", "v.n"),
    ),
    Reads(
        "source.orders AS o JOIN source.visits AS v ON v.order_id = o.id LEFT JOIN source.stops AS s ON s.id = v.n",
        "o.id",
        ("s.label", "v.region"),
        ("o.paid", "v.n", "o.amount"),
    ),
]
READS = [*(reads for reads in SOURCES if "seeds." not in reads.read), *OF_LATER_COLUMNS, *OF_LATER_COLUMNS]

numbers = st.none() | st.integers(0, 9)
texts = st.sampled_from(["a", "b", "c", None])
keys = {
    "orders": st.tuples(st.integers(1, 4)),
    "stops": st.tuples(st.integers(1, 4)),
    "visits": st.tuples(st.integers(1, 4), st.integers(1, 2)),
}
columns = {
    "orders": {"region": texts, "amount": numbers, "paid": numbers},
    "stops": {"region": texts, "n": numbers, "label": texts},
    "visits": {"region": texts, "n": numbers},
}


def puts_of(table: str, of: st.SearchStrategy[tuple[int, ...]]) -> st.SearchStrategy[Put]:
    return st.builds(Put, st.just(table), of, st.fixed_dictionaries({}, optional=columns[table]))


puts = st.one_of(*(puts_of(table, keys[table]) for table in KEYS))
changes = st.one_of(
    puts,
    puts,
    *(st.builds(Move, st.just(table), keys[table], keys[table]) for table in KEYS),
    *(st.builds(Delete, st.just(table), keys[table]) for table in KEYS),
)


@st.composite
def events(draw: st.DrawFn) -> list[Step]:
    """A change; or one that is lost, which the next one on its key contradicts, until the table is read once more."""
    if not draw(st.sampled_from([False, False, False, False, True])):
        return [draw(changes)]
    table = draw(st.sampled_from(sorted(KEYS)))
    key = st.just(draw(keys[table]))
    change = puts_of(table, key) | st.builds(Delete, st.just(table), key)
    happened = [Lose(draw(change)), draw(change), Resync(table)]
    return happened[: draw(st.integers(1, 3))]


hours = st.builds(Hour, st.integers(1, 2), st.sampled_from(["each", "all", "none"]), st.booleans())


@st.composite
def logs(draw: st.DrawFn) -> list[Step | Hour]:
    """Rows of most tables in the first hour, and a few hours after it; in one a column is added, in one it joins."""
    days: list[list[Step | Hour]] = [draw(st.lists(puts, min_size=6, max_size=12))]
    for happened in draw(st.lists(st.lists(events(), min_size=2, max_size=6), min_size=1, max_size=4)):
        days.append(list(itertools.chain(*happened)))
    for table, default in (("orders", 7), ("stops", "a")):
        added = draw(st.integers(0, len(days) - 1))
        days[added].insert(draw(st.integers(0, len(days[added]))), Add(table, draw(st.sampled_from([default, None]))))
        joined = days[draw(st.integers(added, len(days) - 1))]
        joined.insert(draw(st.integers(0, len(joined))), Declare(table))
    return [step for day in days for step in [*day, draw(hours)]]


facts = st.builds(Fact, queries(READS), st.sampled_from([False, False, False, True]))


@pytest.mark.generated
@examples
@given(steps=logs(), facts=st.lists(facts, min_size=1, max_size=2), is_captured=st.booleans())
def test_every_cut_is_the_query_as_written(
    check: Check, steps: list[Step | Hour], facts: list[Fact], is_captured: bool
) -> None:
    """Without it the models could disagree on a log, or a query, that nobody thought of."""
    listed = "".join(f"            {step},\n" for step in steps)
    call = f"check(\n        [\n{listed}        ],\n        {facts},\n        is_captured={is_captured},\n    )"
    note(f"def test_a_generated_log(check: Check) -> None:\n    {call}")
    check(steps, facts, is_captured=is_captured)


BY_REGION = "SELECT region::TEXT AS k0, COUNT(*)::BIGINT AS a0, SUM(amount)::BIGINT AS a1 FROM source.orders GROUP BY 1"
JOINED_BY_REGION = (
    "SELECT s.region::TEXT AS k0, AVG(o.amount)::DOUBLE AS a0, SUM(o.paid)::BIGINT AS a1 "
    "FROM source.orders AS o JOIN source.stops AS s ON s.region = o.region GROUP BY 1"
)


@pytest.mark.parametrize("is_captured", [True, False])
def test_a_column_with_a_default_joins_between_two_nights(check: Check, is_captured: bool) -> None:
    """A log with everything in it, whatever Hypothesis draws."""
    check(
        [
            Put("orders", (1,), {"region": "a", "amount": 3}),
            Put("orders", (2,), {"region": "a", "amount": 4}),
            Put("stops", (1,), {"region": "a", "n": 4}),
            Put("stops", (2,), {"region": "b", "n": None}),
            Hour(),
            Add("orders", 7),
            Put("orders", (2,), {"region": "b", "amount": 4}),
            Hour(is_night=True),
            Declare("orders"),
            Put("orders", (3,), {"region": "a", "amount": 4, "paid": 1}),
            Delete("orders", (2,)),
            Hour(hours=2, folds="none"),
            Lose(Put("orders", (1,), {"amount": 5})),
            Put("orders", (1,), {"amount": 6}),
            Hour(is_night=True),
            Resync("orders"),
            Hour(folds="all"),
        ],
        [Fact(BY_REGION), Fact(JOINED_BY_REGION), Fact(BY_REGION, is_recomputed=True)],
        is_captured=is_captured,
    )
