"""Several items of a modality in one sample: which, in which order, and what becomes of the others."""

import json
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.alignment import align
from assets.dataset import dataset_sql, samples_fingerprint
from assets.joins.key import KeyJoin
from assets.lake import open_duckdb
from assets.leakage import leak_words, leakage
from assets.settings import AlignSettings
from assets.source_settings import SourceSettings
from tests.assets.test_alignment import IMAGES, SOUNDS, TEXTS, aligned, items, manifest_of, reasons, sha, write_csv
from training.family import Choice
from training.schema import MODALITIES, SAMPLES

SIDE = SourceSettings.of(name="side", modality="image", files="side.tar", table="side.csv", key="file")
SOURCES = (IMAGES, SIDE, SOUNDS, TEXTS)


def images_of(row: dict[str, Any]) -> list[str]:
    return [item for item in [row["image_item"], *(more["item"] for more in row["image_more"] or [])] if item]


def test_items_of_one_key_stand_in_one_sample_in_order_of_source_time_and_place() -> None:
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    rows = items(SIDE, ["a", "b"]) + items(IMAGES, ["a", ("a", "two"), ("a", "three"), ("a", "bad"), "c"])
    for row, minutes in zip(rows[2:5], (2, 0, 1), strict=True):
        row["time"] = noon + timedelta(minutes=minutes)
    manifest = manifest_of(rows, items(SOUNDS, ["a", ("a", "again")]))
    found = aligned(manifest, AlignSettings(several={"image": 3}), sources=SOURCES, bad=["bad"])
    samples = {row["sample_id"]: row for row in found.samples.to_pylist()}
    assert sorted(key.partition("#")[0] for key in samples) == ["a", "a", "b", "c"], "of others there is one each"
    several = [row for key, row in samples.items() if key.startswith("a#")]
    for row in several:
        assert images_of(row) == ["pictures:1", "pictures:2", "pictures:0"]
        assert row["image_id"] == sha("two") and row["image_more"][0]["id"] == sha("three")
        assert row["image_status"] == "incomplete" and row["speech_status"] == "present"
    assert samples["b"]["image_more"] is None and samples["b"]["image_status"] == "present"
    assert reasons(found) == {"side:0": "over_several"}
    with open_duckdb() as connection:
        connection.register("samples", labelled(found.samples))
        ids = {
            row["sample_id"]: row["image_more"] for row in connection.sql(dataset_sql()).to_arrow_table().to_pylist()
        }
    assert ids["b"] is None and ids[several[0]["sample_id"]] == [sha("three"), sha("pictures a")]


def labelled(samples: pa.Table) -> pa.Table:
    return samples.set_column(samples.column_names.index("split"), "split", pa.repeat("train", len(samples)))


def test_the_order_is_part_of_what_a_dataset_is_called_and_a_single_item_is_called_as_ever() -> None:
    rows = items(IMAGES, [("a", "one"), ("a", "two"), "b"])
    one = aligned(manifest_of(rows), AlignSettings(several={"image": 2})).samples
    rows[0]["row"], rows[1]["row"] = rows[1]["row"], rows[0]["row"]
    other = aligned(manifest_of(rows), AlignSettings(several={"image": 2})).samples
    assert samples_fingerprint(one) != samples_fingerprint(other)
    single = manifest_of(items(IMAGES, ["a", "b"]), items(SOUNDS, ["a"]))
    plain, may = (aligned(single, AlignSettings(several=n)).samples for n in ({}, {"image": 2}))
    assert plain.equals(may)
    assert samples_fingerprint(plain) == samples_fingerprint(may) == "dba0bf564c980ad4"


def test_cells_of_a_link_table_name_several(tmp_path: Path) -> None:
    manifest = manifest_of(items(IMAGES, ["a.png", "b.png", "c.png", "bad.png", "spare.png", "d.png"]))
    write_csv(
        tmp_path / "links.csv",
        ["id", "pictures", "more"],
        ["1", "c.png; a.png;b.png", ""],
        ["2", '["b.png", "a.png"]', "c.png"],
        ["3", "bad.png;a.png;gone.png", ""],
        ["4", "gone.png", "bad.png"],
        ["5", "", "a.png;a.png"],
        ["6", "b.png;a.png;c.png;d.png", ""],
    )
    rule: dict[str, Any] = {"table": "links.csv", "id": "id", "several": {"image": 3}}
    both = AlignSettings(**rule, columns={"pictures": ("pictures;more",)})
    found = aligned(manifest, both, tmp_path, [IMAGES], ["pictures bad.png"])
    rows = {row["sample_id"]: row for row in found.samples.to_pylist()}
    assert {k: ([int(i[9:]) for i in images_of(row)], row["image_status"]) for k, row in rows.items()} == {
        "1": ([2, 0, 1], "present"),
        "2": ([1, 0, 2], "present"),
        "3": ([0], "incomplete"),
        "5": ([0], "present"),
        "6": ([1, 0, 2], "present"),
    }
    assert reasons(found) == {"pictures:4": "not_linked", "pictures:5": "over_several"}
    with pytest.raises(ValueError, match=r"align\.columns\.pictures is .* one column, unless align\.several"):
        other = {**rule, "several": {"speech": 2}}
        aligned(manifest, AlignSettings(**other, columns={"pictures": ("pictures;more",)}), tmp_path, [IMAGES])


def test_link_rows_without_any_key_are_no_samples_and_no_double(tmp_path: Path) -> None:
    write_csv(tmp_path / "links.csv", ["image", "label"], ["a.png", "x"], ["", "y"], ["", "y"], ["b.png", "x"])
    manifest = manifest_of(items(IMAGES, ["a.png", "b.png"]))
    found = aligned(manifest, AlignSettings(table="links.csv", label="label"), tmp_path, [IMAGES])
    assert found.samples["image_item"].to_pylist() in (["pictures:0", "pictures:1"], ["pictures:1", "pictures:0"])
    rows = [(row["reason"], row["row"]) for row in found.quarantine.to_pylist()]
    assert rows == [("no_input", 3), ("no_input", 4)]


def test_a_list_of_parquet_names_several(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": ["1"], "image": [["b.png", "a;x.png"]]}), tmp_path / "links.parquet")
    manifest = manifest_of(items(IMAGES, ["a;x.png", "b.png"]))
    rule = AlignSettings(table="links.parquet", id="id", several={"image": 2})
    (row,) = aligned(manifest, rule, tmp_path, [IMAGES]).samples.to_pylist()
    assert images_of(row) == ["pictures:1", "pictures:0"]


def test_what_several_items_say_differently_is_told() -> None:
    rows = items(IMAGES, {"a": {"label": "x", "who": "kim"}}) + items(SIDE, {"a": {"label": "y", "who": "kim"}})
    rule = AlignSettings(label="label", group=("who",), several={"image": 2})
    found = aligned(manifest_of(rows), rule, sources=SOURCES)
    assert found.samples["label"].to_pylist() == ["x"]
    (said,) = found.findings
    assert (
        said.code == "differing_items" and "column 'label', of which the first one's value counts: 'a'" in said.message
    )


def test_a_content_leaks_wherever_it_stands_in_a_list() -> None:
    def row(name: str, split: str, *images: str) -> dict[str, Any]:
        more = [{"item": image, "id": image} for image in images[1:]] or None
        return {"sample_id": name, "split": split, "groups": "{}", "image_id": images[0], "image_more": more}

    rows = [
        row("1", "train", "a", "b", "b"),
        row("2", "test", "c", "b"),
        row("3", "train", "d"),
        row("4", "test", "e", "f"),
    ]
    rule = AlignSettings(several={"image": 2})
    (leak,) = leakage(pa.Table.from_pylist(rows, SAMPLES), rule).to_pylist()
    assert (leak["value"], leak["samples"], leak["examples"]) == ("b", 2, ["2", "1"])
    assert "a column that is the same in all samples that share one" in leak_words(
        leakage(pa.Table.from_pylist(rows, SAMPLES), rule), rule
    )


@pytest.mark.parametrize(
    ("several", "says"),
    [
        ({"image": 1}, "several.image is 1, expected 2 or more"),
        ({"image": ["front"]}, r"several.image: views is \['front'\], expected two names or more"),
        ({"image": ["a", "b", "a"]}, "expected each name once"),
        ({"image": ["a;b", "c"]}, "names without ;"),
        ({"image": {"views": ["a", "b"], "of": "x"}}, "several.image: of is not a key that is known here"),
        ({"odor": 2}, "modalities"),
    ],
)
def test_what_cannot_be_several_is_refused(several: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        AlignSettings(several=several)


keys = st.sampled_from(["a", "b", "c", None])
contents = st.sampled_from(["x", "y", "z", "bad"])
pairs = st.lists(st.tuples(keys, contents), max_size=7)
times = st.lists(st.integers(0, 3) | st.none(), min_size=20, max_size=20)


@settings(max_examples=5, deadline=None)
@given(pairs, pairs, pairs, times, st.integers(2, 4), st.booleans(), st.randoms())
def test_no_item_is_lost_and_the_order_of_rows_never_matters(
    fronts: list[Any], sides: list[Any], sounds: list[Any], times: list[Any], most: int, both: bool, random: Any
) -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    rows = items(IMAGES, [("a", "an image"), *fronts]) + items(SIDE, sides) + items(SOUNDS, [("a", "sound"), *sounds])
    for row, time in zip(rows, times, strict=False):
        row["time"] = None if time is None else start + timedelta(seconds=time)
    rule = AlignSettings(several={"image": most} | ({"speech": most} if both else {}))
    found = aligned(manifest_of(rows), rule, sources=SOURCES, bad=["bad"])  # checks the balance
    usable = [row for row in rows if row["key"] and row["sha256"] != sha("bad")]
    for sample in found.samples.to_pylist():
        key = sample["sample_id"].partition("#")[0]
        mine = [row for row in usable if row["modality"] == "image" and row["key"] == key]
        mine.sort(key=lambda row: (row["source"] != "pictures", row["time"] is None, row["time"] or start, row["row"]))
        assert images_of(sample) == [row["item_id"] for row in mine[:most]]
    random.shuffle(rows)
    clean = {
        m: pa.table({"id": [r["sha256"] for r in rows if r["modality"] == m] or pa.array([], pa.string())})
        for m in MODALITIES
    }
    refused = {m: {sha("bad")} for m in MODALITIES}
    again = align(manifest_of(rows), clean, rule, SOURCES, Path("/data"), refused)
    assert again.samples.equals(found.samples) and again.quarantine.equals(found.quarantine)


cells = st.lists(st.sampled_from(["a", "b", "c", "gone", ""]), max_size=4)


@settings(max_examples=8, deadline=None)
@given(pairs, st.lists(st.tuples(cells, st.booleans()), max_size=5), st.integers(2, 3))
def test_every_linked_item_of_several_ends_in_one_way(
    images: list[Any], links: list[tuple[list[str], bool]], most: int
) -> None:
    manifest = manifest_of(items(IMAGES, [("sure", "x"), *images]))
    with tempfile.TemporaryDirectory() as folder:
        rows = [(str(n), json.dumps(names) if is_json else ";".join(names)) for n, (names, is_json) in enumerate(links)]
        write_csv(Path(folder) / "links.csv", ["id", "image"], ("sure", "sure"), *rows)
        rule = AlignSettings(table="links.csv", id="id", several={"image": most})
        found = aligned(manifest, rule, Path(folder), [IMAGES], bad=["bad"])  # checks the balance
    usable = {
        key: [f"pictures:{n}" for n, (k, c) in enumerate([("sure", "x"), *images]) if k == key and c != "bad"]
        for key in "abc"
    }
    samples = {row["sample_id"]: images_of(row) for row in found.samples.to_pylist()}
    for n, (names, _) in enumerate(links):
        expected = [item for name in dict.fromkeys(names) for item in usable.get(name, [])]
        assert samples.get(str(n), []) == expected[:most]


class OwnJoin(KeyJoin):
    """One that knows of no further pictures and texts, and finds none of speech."""

    def join(self, connection: Any, settings: AlignSettings, *rest: Any) -> Any:
        columns = super().join(connection, settings, *rest)
        none = "[]::STRUCT(item VARCHAR, id VARCHAR)[] AS speech_more"
        connection.execute(f"CREATE TABLE own AS SELECT * EXCLUDE (image_more, text_more) REPLACE ({none}) FROM joined")
        connection.execute("DROP TABLE joined; ALTER TABLE own RENAME TO joined")
        return columns


def test_a_join_need_not_have_further_items() -> None:
    rule = AlignSettings(on=Choice("tests.assets.test_several_items:OwnJoin"))
    found = aligned(manifest_of(items(IMAGES, ["a"]), items(SOUNDS, ["a"])), rule).samples
    assert found["image_more"].null_count == found["speech_more"].null_count == 1
    assert found["image_status"].to_pylist() == ["present"]
