"""Media that lie in Parquet columns, as Hugging Face writes them: read by row, hashed once, never shown."""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from assets.contents import attach_data
from assets.formats.media_column import MediaColumn
from assets.scan import Scan, scan
from assets.source_settings import SourceSettings
from assets.sources.base import SourceError
from assets.sources.embedded import EmbeddedSource
from training.settings import MediaLimits
from training.vectors import decode_vectors

SECRET = b"\x89PNG never shown"


def write(
    path: Path, rows: list[tuple[str | None, bytes | None, str | None]], plain: bool = False, **more: Any
) -> Path:
    """Key, content and name of each row; a row of neither has no medium."""
    keys, contents, names = zip(*rows, strict=True)
    cells = [None if c is None and n is None else {"bytes": c, "path": n} for c, n in zip(contents, names, strict=True)]
    media = pa.array(contents, pa.binary()) if plain else pa.array(cells)
    pq.write_table(pa.table({"key": keys, "media": media, "note": [f"note {k}" for k in keys]}), path, **more)
    then = time.time() - 100
    os.utime(path, (then, then))
    time.sleep(0.06)  # the time of the inode is not relied on for a few ticks
    return path


def listed(root: Path, before: Scan | None = None, limits: MediaLimits | None = None, **fields: Any) -> Scan:
    settings = SourceSettings.of(**{"name": "s", "modality": "image", "table": "t.parquet", "key": "key"} | fields)
    result = scan(settings, root, before.rows if before else None, limits)
    assert SECRET not in repr((result.rows.to_pylist(), result.quarantine.to_pylist())).encode()
    return result


ROWS = [(f"k{n}", SECRET + bytes([n]) * 1000, f"pictures/{n}.png") for n in range(30)]


@pytest.mark.parametrize("plain", [False, True])
def test_every_row_is_an_item_with_the_other_columns_as_attributes(tmp_path: Path, plain: bool) -> None:
    write(tmp_path / "t.parquet", [*ROWS, ("none", None, None)], plain, row_group_size=7)
    found = listed(tmp_path, column="media")
    rows = {row["key"]: row for row in found.rows.to_pylist()}
    assert rows.keys() == {f"k{n}" for n in range(30)}
    row = rows["k3"]
    assert (row["row"], row["offset"], row["size"]) == (4, 3, len(ROWS[3][1]))
    assert row["member"] == ("media" if plain else "media/pictures/3.png")
    assert json.loads(row["attributes"]) == {"note": "note k3"}
    (absent,) = found.quarantine.to_pylist()
    assert (absent["key"], absent["reason"]) == ("none", "absent")
    assert absent["message"] == f"{tmp_path}/t.parquet line 31: column 'media' holds nothing"
    source = SourceSettings.of(name="s", modality="image", table="t.parquet", key="key", column="media").make(tmp_path)
    data = attach_data(found.rows, {"s": source})
    assert data["data"].to_pylist() == [content for _, content, _ in ROWS] and data["data_error"].null_count == 30


def test_what_has_not_changed_is_not_read_again(tmp_path: Path, monkeypatch) -> None:
    write(tmp_path / "t.parquet", ROWS, row_group_size=7)
    first = listed(tmp_path, column="media")
    with monkeypatch.context() as context:
        context.setattr(MediaColumn, "read", lambda *_: pytest.fail("it was read"))
        second = listed(tmp_path, first, column="media")
        assert second.rows.equals(first.rows) and second.reused == 30
        refused = listed(tmp_path, first, MediaLimits(max_bytes=10), column="media").quarantine["reason"].to_pylist()
        assert refused == ["too_large"] * 30
    write(tmp_path / "t.parquet", [(*ROWS[0][:1], b"another", "x"), *ROWS[1:]], row_group_size=7)
    third = listed(tmp_path, second, column="media")
    assert third.reused == 0
    assert sum(a != b for a, b in zip(first.rows["sha256"], third.rows["sha256"], strict=True)) == 1
    assert sum(a != b for a, b in zip(first.rows["item_id"], third.rows["item_id"], strict=True)) == 1


def test_only_the_batch_that_is_asked_for_is_held(tmp_path: Path) -> None:
    """Rows in any order, of a row group that is far larger than what is decoded at once."""
    rows = [(f"k{n}", bytes([n]) * 1_000_000, None) for n in range(40)]
    path = write(tmp_path / "t.parquet", rows, data_page_size=2**20, write_batch_size=1)
    column = MediaColumn("media")
    before = pa.total_allocated_bytes()
    for row in (1, 2, 30, 40, 3, 39, 1):
        assert column.read(str(path), row) == rows[row - 1][1]
        assert pa.total_allocated_bytes() - before < 12_000_000


def test_refusals_say_where_and_never_what(tmp_path: Path) -> None:
    rows = [
        ("empty", b"", "e.png"),
        ("large", SECRET * 100, "l.png"),
        ("link", None, "elsewhere.png"),
        ("fine", b"x", None),
    ]
    write(tmp_path / "t.parquet", rows)
    found = listed(tmp_path, limits=MediaLimits(max_bytes=100), column="media")
    assert found.rows["key"].to_pylist() == ["fine"]
    said = {row["reason"]: row["message"] for row in found.quarantine.to_pylist()}
    place = f"{tmp_path}/t.parquet line"
    assert said["empty"] == f"{place} 1, media/e.png: the file is empty (0 bytes); copy it again, or remove it"
    assert said["too_large"].startswith(
        f"{place} 2, media/l.png: {len(SECRET) * 100} bytes are over the limit of 100: raise limits.max_bytes"
    )
    assert said["unreadable"].startswith(
        f"{place} 3, media/elsewhere.png: there are no bytes in it; if it names a file"
    )


@pytest.mark.parametrize("key", ["key", "media"])
def test_a_files_source_whose_files_lie_in_its_table_reads_them_there(tmp_path: Path, key: str) -> None:
    write(tmp_path / "t.parquet", ROWS)
    column = {} if key == "media" else {"file": "media"}
    found = listed(tmp_path, files="photos", key=key, **column)
    assert found.rows["key"].to_pylist()[:2] == (["k0", "k1"] if key == "key" else ["pictures/0", "pictures/1"])
    source = SourceSettings.of(name="s", modality="image", files="photos", table="t.parquet", key=key, **column)
    assert isinstance(source.make(tmp_path), EmbeddedSource)
    (tmp_path / "photos/pictures").mkdir(parents=True)  # now the table's cells are names
    (tmp_path / "photos/pictures/3.png").write_bytes(b"a file")
    found = listed(tmp_path, files="photos", key=key, **column)
    assert [Path(uri).name for uri in found.rows["uri"].to_pylist()] == ["3.png"]


@pytest.mark.parametrize(
    ("column", "says"),
    [
        ("note", r"t\.parquet: column 'note' is string and holds no media: expected bytes"),
        ("gone", "no column 'gone'; it has key, note"),
        ("lists", r"column 'lists' is list<.*> and holds no media: expected bytes, one medium a row"),
    ],
)
def test_a_column_without_media_is_named(tmp_path: Path, column: str, says: str) -> None:
    table = pa.table({"key": ["a"], "note": ["b"], "lists": [[{"bytes": b"x", "path": "y"}]]})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(SourceError, match=says):
        listed(tmp_path, column=column)
    (tmp_path / "t.csv").write_text("key,note\n1,x.png\n")
    with pytest.raises(SourceError, match="column 'note' is to hold media, which only a Parquet file can"):
        listed(tmp_path, table="t.csv", column="note")


def test_two_sources_of_one_table_share_its_columns(tmp_path: Path, monkeypatch) -> None:
    """Photos keyed by their names, texts by the article: the label is the same row's, or the conflict is an error."""
    from assets import featurizing, pipeline
    from orchestration.project import load
    from training.modalities.image import ImageModality

    monkeypatch.setenv("TRIPTYCH_HOME", str(tmp_path / "home"))
    (tmp_path / "project.yaml").write_text(
        "name: shared\nsources:\n"
        "  - {name: photos, modality: image, files: photos, table: t.parquet, key: image}\n"
        "  - {name: reviews, modality: text, table: t.parquet, column: review, key: article}\n"
        "align: {label: category}\nfeatures:\n  image: {size: 8}\n"
    )
    picture = ImageModality().example()
    rows = {
        "image": [{"bytes": picture, "path": f"{n}.png"} for n in range(20)],
        "article": [str(n) for n in range(20)],
    }
    rows |= {"review": [f"text {n}" for n in range(20)], "category": [f"c{n % 2}" for n in range(20)]}
    for articles in (rows["article"], [*rows["article"][1:], "0"]):
        pq.write_table(pa.table(rows | {"article": articles}), tmp_path / "t.parquet")
        project = load(tmp_path / "project.yaml")
        lake = pipeline.open_lake(project)
        pipeline.write_manifest(lake, project)
        for modality in project.modalities:
            featurizing.process_modality(lake, project, modality)
        if articles is rows["article"]:
            pipeline.write_samples(lake, project)
            samples = lake.read("samples").to_pylist()
            assert len(samples) == 20 and all(row["image_status"] == row["text_status"] == "present" for row in samples)
            assert all(row["label"] == f"c{int(row['sample_id']) % 2}" for row in samples)
        else:
            with pytest.raises(
                ValueError, match=r"'category' holds different values.*write one of photos.category, rev"
            ):
                pipeline.write_samples(lake, project)


HALF, WIDE = pa.list_(pa.float16(), 2), pa.large_list(pa.large_list(pa.int32()))
TENSOR = pa.fixed_shape_tensor(pa.float32(), [2, 2])
VECTORS = {
    "one each": (pa.list_(pa.float64()), [[1.0, 2.0], [3.0, 4.0]]),
    "of a fixed width": (HALF, [[1.0, 2.0], [3.0, 4.0]]),
    "sequences": (pa.list_(HALF), [[[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0]]]),
    "of whole numbers": (WIDE, [[[1, 2]], [[3, 4], [5, 6]]]),
    "tensors": (TENSOR, [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]),
}


@pytest.mark.parametrize("name", VECTORS)
def test_every_way_to_write_vectors_in_parquet_is_read(name: str, tmp_path: Path):
    kind, values = VECTORS[name]
    # PyArrow 25 does not read null lists of a fixed width from Parquet at all.
    cells = values if kind in (HALF, TENSOR) else [*values, None]
    storage = pa.array(cells, kind.storage_type if kind is TENSOR else kind)
    column = pa.ExtensionArray.from_storage(kind, storage) if kind is TENSOR else storage
    table = pa.table({"id": ["a", "b", "c"][: len(cells)], "v": column})
    pq.write_table(table, tmp_path / "v.parquet", row_group_size=2)
    settings = SourceSettings.of(name="s", modality="speech", kind="vectors", table="v.parquet", key="id", column="v")
    found = scan(settings, tmp_path)
    assert found.rows["key"].to_pylist() == ["a", "b"]
    assert found.quarantine["reason"].to_pylist() == ["absent"] * (len(cells) - 2)
    data = attach_data(found.rows, {"s": settings.make(tmp_path)})["data"].to_pylist()
    for vectors_ND, expected in zip(map(decode_vectors, data), values, strict=True):
        shape = (2, 2) if kind is TENSOR else np.atleast_2d(expected).shape
        np.testing.assert_array_equal(vectors_ND, np.reshape(expected, shape))
