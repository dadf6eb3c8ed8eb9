"""The check of the prose finds each phrase of its list, and nothing in sentences that only look like one."""

from __future__ import annotations

import pytest

import prose

WRONG = {
    "is no": "A difference is no error.",
    "what stands for": '"""What stands for a model."""',
    "tells of": "a driver that tells of each connection",
    "of which": "marts of which a column has another type",
    "whoever": "for whoever holds the lock already",
    "at most so many": 'help="At most so many, the newest."',
    "with so many": "numbers with so many digits",
    "one dict a row": "The result as one dict a row.",
    "behind the point": "two digits behind the point",
    "carried through": "No plan has been carried\n    # through yet",
    "without a word": "was published empty,\nwithout a word",
    "of before": "homes of before go on",
    "as ever": "commands work as ever",
    "not all is": "not all is well",
}
RIGHT = (
    "There is no log, which is no longer a log, and no slower. A backup is no help.",
    "Some of which, all of which; two rows, of which one is NULL.",
    "It tells why. LSN stands for log sequence number. The lock is quoted so many times that it blurs.",
    "A table without a key, and a change of a key in a row.",
)


def test_every_phrase_is_tried() -> None:
    assert len(WRONG) == len(prose.PHRASES)


@pytest.mark.parametrize("phrase", WRONG)
def test_a_phrase_is_found_where_it_begins(phrase: str) -> None:
    [(line, found, instead)] = prose.findings(f"A first line.\n{WRONG[phrase]}\n")
    assert line == 2 + WRONG[phrase][: WRONG[phrase].lower().find(phrase.split()[0])].count("\n")
    assert found.replace(" #", "").lower() == phrase
    assert instead


def test_good_sentences_pass() -> None:
    assert list(prose.findings("\n".join(RIGHT))) == []
