"""docs/guarantees.md says what the tests try."""

from __future__ import annotations

import guarantees


def test_the_table_is_the_one_that_the_command_makes():
    assert guarantees.PAGE.read_text() == guarantees.page(), "the tests have changed: run `make guarantees`"


def test_every_promise_is_made_once():
    promises = [g.promise for g in guarantees.GUARANTEES]
    assert len(set(promises)) == len(promises)
