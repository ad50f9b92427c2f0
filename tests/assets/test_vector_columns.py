"""Vectors in the kinds of sources that are no tables: read as those of tables are, whatever the modality."""

import io
import json
import sqlite3
import tarfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from assets.contents import attach_data
from assets.scan import scan
from assets.source_settings import SourceSettings
from assets.sources.base import SourceError
from orchestration.project import load
from training.vectors import decode_vectors

VECTORS = {"a": [1.5, 2.0], "b": [[1.0, 2.0], [3.0, 4.0]], "c": None}


def npy(value: Any) -> bytes:
    np.save(file := io.BytesIO(), np.array(value, np.float64))
    return file.getvalue()


def of_huggingface(root: Path) -> dict[str, Any]:
    rows = [{"id": key, "face": value and np.atleast_2d(value).tolist(), "mood": "x"} for key, value in VECTORS.items()]
    datasets.Dataset.from_list(rows).save_to_disk(root / "saved")
    return {"kind": "huggingface", "dataset": "saved", "column": "face", "key": "id"}


def of_sql(root: Path) -> dict[str, Any]:
    cells = [("a", json.dumps(VECTORS["a"]), "x"), ("b", npy(VECTORS["b"]), "x"), ("c", None, "x")]
    with sqlite3.connect(root / "clips.db") as connection:
        connection.execute("CREATE TABLE clips (id, face, mood)")
        connection.executemany("INSERT INTO clips VALUES (?, ?, ?)", cells)
    query = {"url": "sqlite:///clips.db", "query": "SELECT * FROM clips"}
    return {"kind": "sql", **query, "column": "face", "key": "id"}


def of_webdataset(root: Path) -> dict[str, Any]:
    with tarfile.open(root / "0.tar", "w") as archive:
        for key, value in VECTORS.items():
            members = {"json": json.dumps({"face": value, "mood": "x"}).encode()}
            for suffix, content in (members | ({} if value is None else {"npy": npy(value)})).items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return {"kind": "webdataset", "files": "0.tar", "column": "face", "key": "__key__"}


@pytest.mark.parametrize("modality", ["text", "image"])
@pytest.mark.parametrize("kind", ["huggingface", "sql", "webdataset", "npy"])
def test_vectors_of_a_column_are_its_items(tmp_path: Path, kind: str, modality: str) -> None:
    options = {"huggingface": of_huggingface, "sql": of_sql}.get(kind, of_webdataset)(tmp_path)
    if kind == "npy":
        options |= {"column": None, "member": "npy"}
    source = SourceSettings.of(name="s", modality=modality, **options).of_vectors()
    listed = scan(source, tmp_path)
    data = attach_data(listed.rows, {"s": source.make(tmp_path)}).to_pylist()
    assert {row["key"]: decode_vectors(row["data"]).tolist() for row in data} == {
        "a": [VECTORS["a"]],
        "b": VECTORS["b"],
    }
    assert {json.loads(row["attributes"])["mood"] for row in data} == {"x"}
    assert not any("face" in row["attributes"] for row in data) or kind == "npy"
    assert listed.quarantine["reason"].to_pylist() == ["absent"]
    assert scan(source, tmp_path).rows.equals(listed.rows)


def test_features_say_that_they_are_vectors(tmp_path: Path, home: Path) -> None:
    of_webdataset(tmp_path)
    (path := tmp_path / "project.yaml").write_text(
        "name: faces\n"
        "sources: [{name: faces, modality: image, kind: webdataset, files: 0.tar, column: face}]\n"
        "align: {label: mood}\n"
        "features: {image: {kind: vector, width: 2}}\n"
    )
    (source,) = load(path).make_sources().values()
    assert source.vectors and [entry.text is not None for entry in source.list()] == [True, True, False]
    with pytest.raises(SourceError, match=r"0\.tar: image lies in no column: name its suffix as `member`"):
        load(path, ["features.image={kind: pixels}"]).make_sources()
