"""The notes of what the partitions of captured tables were."""

from __future__ import annotations

from pathlib import Path

import pytest

from lockstep.errors import LockstepError
from lockstep.partitions import Partition, gaps, note, noted

PARTITIONS = {"payment": {"16400": Partition('"payment_2025"', "740", "740", "16400", "740")}, "visit": None}


def test_they_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert noted(tmp_path) == {}
    note(tmp_path, PARTITIONS)
    assert noted(tmp_path) == PARTITIONS
    note(tmp_path, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["", "[]", '{"payment": {"1": {"name": "x"}}}'])
def test_a_damaged_file_is_named_with_the_way_out(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "partitions.json"
    path.write_text(damage)
    with pytest.raises(LockstepError, match=r"partitions\.json is damaged\. Move it away") as raised:
        noted(tmp_path)
    assert str(path) in str(raised.value)
    path.rename(tmp_path / "partitions.json.damaged")  # the way out that was printed
    note(tmp_path, PARTITIONS)
    assert noted(tmp_path) == PARTITIONS


def test_several_that_are_gone_are_named_together() -> None:
    months = {str(n): Partition(f"month_{n}", "740", "740", str(n), "740") for n in (1, 2, 3)}
    found = gaps({"payment": months, "visit": None}, {"payment": {"3": months["3"]}, "visit": {}}, {}, {})
    assert found.keys() == {"payment"}
    assert "month_1, month_2 were dropped or detached" in found["payment"]
    assert "`lockstep capture ... --resync payment`" in found["payment"]
