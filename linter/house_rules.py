"""The project's own lint rules. Each holds for every model; the exceptions stand in one list, with their reasons."""

from __future__ import annotations

from sqlglot import exp
from sqlmesh.core.linter.rule import Rule
from sqlmesh.core.linter.rules.builtin import AmbiguousOrInvalidColumn

FILES_OF_THE_LOG = "reads files of the change log, whose columns SQLMesh cannot know"
BLUEPRINT = "stamps one model per domain or source table, so its file cannot have the name of one of them"

# Rule -> what is excepted from it and why. A name that ends with `.` stands for a whole schema.
EXCEPTIONS = {
    "columnsresolve": {"changes.": FILES_OF_THE_LOG, "reconcile.source_receipts": FILES_OF_THE_LOG},
    "namedasitsfile": {"each_": BLUEPRINT},  # by the beginning of the file's name
}


def excepted(rule: Rule, name: str) -> bool:
    """Whether a name begins with one of a rule's exceptions."""
    return name.startswith(tuple(EXCEPTIONS.get(rule.name, ())))


class HasGrain(Rule):
    """Every model says what one of its rows is: `grain` names columns that it has."""

    def check_model(self, model):
        if not model.grains:
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
    """What a run computes awaits the tables it reads through views, by `depends_on`.

    SQLMesh leaves an interval out while one that it reads is not ready, and passes this on from model to model of the
    run. Views are made by plans and are in no run (config.yaml), so nothing is passed on through them: a table that
    reads a rebuild through a view alone would be computed of a day whose rebuild still waits, and not again after it.
    """

    def check_model(self, model):
        if not _is_of_a_run(model):
            return None
        awaited = self._read(model, _is_of_a_run, _is_of_a_run)
        missing = [
            of.name
            for name, of in self._read(model, _is_view_of_plans).items()
            if _is_of_a_run(of) and any(self._waits(a) for a in {name, *self._read(of, _is_of_a_run)} - awaited.keys())
        ]
        if not missing:
            return None
        names = ", ".join(sorted(missing))
        return self.violation(f"{model.name} reads {names} through views: it needs depends_on ({names}).")

    def _waits(self, name):
        of = self.context.get_model(name)
        return of is not None and bool(of.signals)

    def _read(self, model, through, first=lambda _: True):
        """The models that one reads, and those that are read by what it reads `through`, by name."""
        found, models = {}, [model]
        while models:
            reader = models.pop()
            for name in reader.depends_on - found.keys():
                of = self.context.get_model(name)  # None if it is no model of the project
                if of and (reader is not model or first(of)):
                    found[name] = of
                    if through(of):
                        models.append(of)
        return found


class MeasuresAsInTheContract(Rule):
    """Exact measures have the contract's type in both paths: a wider one would be rounded where the paths meet.

    DuckDB takes columns of DECIMAL(38, 10) and DECIMAL(38, 2), one below the other, for DECIMAL(38, 2).
    """

    def check_model(self, model):
        from lockstep.contracts import load

        schema, name = model.name.split(".")[-2:]
        contract = load().get(name) if schema in ("diffs", "rebuild") else None
        columns = model.columns_to_types or {}
        wrong = [
            f"{m.name} is {columns[m.name].sql('duckdb')}, must be {m.type}"
            for m in (contract.merged if contract else ())
            if m.type.startswith(("BIGINT", "DECIMAL"))
            and m.name in columns
            and columns[m.name] != exp.DataType.build(m.type, dialect="duckdb")
        ]
        if not wrong:
            return None
        return self.violation(f"{model.name} differs from seeds/contract_measures.csv: {'; '.join(wrong)}. Cast it.")


def _is_of_a_run(model):
    return not model.kind.is_view or bool(model.audits)


def _is_view_of_plans(model):
    return not _is_of_a_run(model)
