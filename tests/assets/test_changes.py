"""What a listing has that the one before had not."""

import pyarrow as pa
import pytest

from assets.changes import SourceChange, source_changes
from training.schema import MANIFEST, QUARANTINE, conform


def manifest(items: dict[str, str], **more: str) -> pa.Table:
    """Items of source `here`, by id, with their hashes."""
    shared = {"source": "here", "attributes": "{}", **more}
    rows = [{"item_id": n, "uri": f"{n}.png", "key": n, "sha256": content, **shared} for n, content in items.items()]
    return conform(pa.Table.from_pylist(rows, MANIFEST), MANIFEST)


BEFORE = manifest({"a": "1", "b": "2", "c": "3"})


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (BEFORE, SourceChange(3, 0, 0, 0, [], [])),
        (manifest({"a": "1", "b": "2", "c": "3", "d": "3"}), SourceChange(4, 1, 0, 0, [], [])),
        (manifest({"a": "1", "b": "9", "c": "3"}), SourceChange(3, 0, 1, 0, ["b.png (b)"], [])),
        (manifest({"a": "1", "b": "2"}), SourceChange(2, 0, 0, 1, [], ["c.png (c)"])),
        (
            manifest({"a": "1", "b": "2", "c": "3"}, attributes='{"x": "y"}'),
            SourceChange(3, 0, 3, 0, ["a.png (a)", "b.png (b)", "c.png (c)"], []),
        ),
    ],
)
def test_items_are_compared_by_place_and_key(now, expected):
    found = source_changes(["here"], BEFORE, now, QUARANTINE.empty_table())
    assert found == {"here": expected}


def test_what_is_refused_now_has_changed_and_not_vanished():
    refused = conform(pa.Table.from_pylist([{"item_id": "c", "source": "here"}], QUARANTINE), QUARANTINE)
    found = source_changes(["here"], BEFORE, BEFORE.slice(0, 2), refused)["here"]
    assert (found.changed_items, found.vanished, found.words) == (["c.png (c)"], 0, "1 changed")


def test_the_first_listing_is_new_and_a_source_that_was_taken_out_is_told():
    assert source_changes(["here"], None, BEFORE, QUARANTINE.empty_table())["here"].new == 3
    other = manifest({"d": "4"}, source="other")
    found = source_changes(["other"], BEFORE, other, QUARANTINE.empty_table())
    assert list(found) == ["other", "here"] and found["here"].vanished == 3 and found["here"].items == 0
    many = manifest({f"{n:02}": "x" for n in range(40)})
    assert len(source_changes(["here"], many, BEFORE, QUARANTINE.empty_table())["here"].vanished_items) == 5
