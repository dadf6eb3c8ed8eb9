"""The project's own lint rules. Each holds for every model; the exceptions stand in one list, with their reasons."""

from __future__ import annotations

from sqlglot import exp
from sqlmesh.core.linter.rule import Rule
from sqlmesh.core.linter.rules.builtin import AmbiguousOrInvalidColumn, NoMissingUnitTest

EQUAL_ROWS = "has signed rows of a join, or some columns of a table: its rows may be equal"
FILES_OF_THE_LOG = "reads files of the change log, whose columns SQLMesh cannot know"
BLUEPRINT = "stamps one model per domain or source table, so its file cannot have the name of one of them"

# Rule -> what is excepted from it and why. A name that ends with `.` stands for a whole schema.
EXCEPTIONS = {
    "hasgrain": dict.fromkeys(("state.", "tail."), EQUAL_ROWS),
    "columnsresolve": dict.fromkeys(
        ("changes.", "checkpoints.", "ops.checkpoints", "reconcile.source_receipts", "reconcile.live_receipts"),
        FILES_OF_THE_LOG,
    ),
    "namedasitsfile": {"each_": BLUEPRINT},  # by the beginning of the file's name
}


def excepted(rule: Rule, name: str) -> bool:
    """Whether a name begins with one of a rule's exceptions."""
    return name.startswith(tuple(EXCEPTIONS.get(rule.name, ())))


class HasGrain(Rule):
    """Every model says what one of its rows is: `grain` names columns that it has."""

    def check_model(self, model):
        if not model.grains and not excepted(self, model.name):
            return self.violation(f"{model.name} has no grain: name the columns that make a row of it unique.")
        columns = {column.name for grain in model.grains for column in grain.find_all(exp.Column)}
        unknown = columns - set(model.columns_to_types or columns)
        if unknown:
            return self.violation(f"The grain of {model.name} names {', '.join(sorted(unknown))}, which it lacks.")
        return None


class HasDescription(Rule):
    """Every model opens with a block comment before `MODEL`, or has a `description`: it is stored in the warehouse."""

    def check_model(self, model):
        if not (model.description or "").strip():
            return self.violation(f"{model.name} has no description: open its file with a block comment.")
        return None


class HasOwner(Rule):
    """Every model has an owner, its own or the default of config.yaml."""

    def check_model(self, model):
        return None if model.owner else self.violation(f"{model.name} has no owner.")


class NamedAsItsFile(Rule):
    """A model lies in the folder of its schema, in a file of its own name, so that either is found from the other."""

    def check_model(self, model):
        schema, name = model.name.split(".")[-2:]
        folder, file = model._path.parent.name, model._path.stem
        if schema != folder or (name != file and not excepted(self, file)):
            return self.violation(f"{model.name} lies in {folder}/{file}.sql, expected {schema}/{name}.sql.")
        return None


class ColumnsResolve(AmbiguousOrInvalidColumn):
    """Every column that a model names exists in exactly one of the tables it reads."""

    def check_model(self, model):
        return None if excepted(self, model.name) else super().check_model(model)


class NamesWhatItAwaits(Rule):
    """A table that reads another table through views lists it in `depends_on`, so that a run waits for it.

    SQLMesh skips an interval whose upstream interval is not ready, and passes that on along the models of the run.
    Only plans make views (config.yaml), so a run passes nothing on through one. A table that reads a rebuild only
    through a view would be computed before the rebuild, and not again after it. A table that reads `source` waits for
    the audit of that table's chain, which only a run's own order of models gives.
    """

    def check_model(self, model):
        if not _is_of_a_run(model):
            return None
        awaited = self._upstream(model, _is_of_a_run)
        missing = []
        for name, upstream in self._upstream(model, lambda of: not _is_of_a_run(of)).items():
            needed = {name: upstream, **self._upstream(upstream, _is_of_a_run)}
            is_guard = upstream.name.startswith("chain.") and name not in awaited
            if _is_of_a_run(upstream) and (is_guard or any(of.signals for n, of in needed.items() if n not in awaited)):
                missing.append(upstream.name)
        if not missing:
            return None
        names = ", ".join(sorted(missing))
        return self.violation(f"{model.name} reads {names} only through views. Add depends_on ({names}).")

    def _upstream(self, model, through):
        """The models that this one reads, directly or through models for which `through` is true, by name."""
        found, readers = {}, [model]
        while readers:
            for name in readers.pop().depends_on - found.keys():
                if of := self.context.get_model(name):  # None if it is not a model of the project
                    found[name] = of
                    readers += [of] if through(of) else []
        return found


class MeasuresAsInTheContract(Rule):
    """Exact measures have the contract's type in both paths: otherwise comparing the paths would round them.

    A UNION of DECIMAL(38, 10) and DECIMAL(38, 2) is DECIMAL(38, 2) in DuckDB.
    """

    def check_model(self, model):
        from lockstep.contracts import load

        schema, name = model.name.split(".")[-2:]
        contract = load().get(name) if schema in ("diffs", "rebuild") else None
        columns = model.columns_to_types or {}

        def fits(m):
            """Whole numbers of any width meet without being rounded, and signed rows are as wide as their sums."""
            wanted = exp.DataType.build(m.type, dialect="duckdb")
            is_whole = m.type in ("BIGINT", "DECIMAL(38, 0)") and (schema == "diffs" or m.type != "BIGINT")
            return columns[m.name] == wanted or (is_whole and columns[m.name].is_type("bigint", "hugeint"))

        wrong = [
            f"{m.name} is {columns[m.name].sql('duckdb')}, must be {m.type}"
            for m in (contract.merged if contract else ())
            if m.type.startswith(("BIGINT", "DECIMAL")) and m.name in columns and not fits(m)
        ]
        if not wrong:
            return None
        return self.violation(f"{model.name} differs from seeds/contract_measures.csv: {'; '.join(wrong)}. Cast it.")


class FactsHaveUnitTests(NoMissingUnitTest):
    """The query of each fact has a unit test: both paths follow it, so that no receipt sees a mistake in it."""

    def check_model(self, model):
        from lockstep.contracts import load

        schema, name = model.name.split(".")[-2:]
        if schema != "rebuild" or name not in load() or super().check_model(model) is None:
            return None
        return self.violation(
            f"{model.name} has no unit test, and no receipt sees a mistake in its query: both paths follow it. Write "
            "rows and what becomes of them into tests/test_*.yaml; `sqlmesh create_test` begins one."
        )


def _is_of_a_run(model):
    """Whether runs compute the model: tables, and views that have audits. Plans make all other views."""
    return not model.kind.is_view or bool(model.audits)
