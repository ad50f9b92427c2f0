"""Data sets as `datasets` keeps them: folders that it reads, folders that it saved, and names that it does not find."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import soundfile

from assets.contents import attach_data
from assets.scan import Scan, scan
from assets.source_settings import SourceSettings
from assets.sources.base import SourceError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder


def settings(modality: str = "image", **options: Any) -> SourceSettings:
    return SourceSettings.of(name="s", modality=modality, kind="huggingface", **options)


def items(listed: Scan) -> dict[str, Mapping[str, str]]:
    return {row["key"]: json.loads(row["attributes"]) for row in listed.rows.to_pylist()}


def refused(listed: Scan) -> dict[str, str]:
    return {row["reason"]: row["message"] for row in listed.quarantine.to_pylist()}


def save(path: Path, rows: list[dict[str, Any]], **features: Any) -> None:
    datasets.Dataset.from_list(rows, features=datasets.Features(features)).save_to_disk(path)


def test_folders_of_pictures_are_splits_and_class_names(tmp_path, make_png):
    for name in ("train/cat/0", "train/dog/1", "test/dog/2"):
        path = tmp_path / f"pets/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        make_png(path, int(name[-1]))
    source = settings(dataset="pets", column="image")
    listed = scan(source, tmp_path)
    assert items(listed) == {
        "train/0": {"split": "train", "label": "cat"},
        "train/1": {"split": "train", "label": "dog"},
        "test/0": {"split": "test", "label": "dog"},
    }
    data = attach_data(listed.rows, {"s": source.make(tmp_path)})["data"].to_pylist()
    assert set(data) == {path.read_bytes() for path in (tmp_path / "pets").rglob("*.png")}
    assert list(items(scan(settings(dataset="pets", column="image", splits="test"), tmp_path))) == ["test/0"]
    with pytest.raises(SourceError, match=r"pets: no split 'val'; it has train, test"):
        scan(settings(dataset="pets", column="image", splits="val"), tmp_path)


def test_a_name_that_was_loaded_before_needs_no_network(tmp_path, make_png):
    name = "loaded-before-by-triptych"
    for folder in ("a", "b"):
        (tmp_path / name / folder).mkdir(parents=True)
        make_png(tmp_path / name / folder / "1.png", ord(folder))
    source = settings(dataset=name, column="image")
    before = items(scan(source, tmp_path))
    assert len(before) == 2
    (tmp_path / "elsewhere").mkdir()
    listed = scan(source, tmp_path / "elsewhere")  # no folder there, and no such name on the hub
    assert listed.seen == 2  # its rows name files of this machine, which a data set of the hub must not
    for row in listed.quarantine.to_pylist():
        assert (row["uri"], row["reason"]) == (f"hf://datasets/{name}/train", "outside_root")


def test_a_folder_of_recordings_with_a_table(tmp_path):
    (tmp_path / "said").mkdir()
    for n in range(2):
        soundfile.write(tmp_path / f"said/{n}.wav", np.full(800, 0.1 * n), 8000)
    (tmp_path / "said/metadata.csv").write_text("file_name,who,said\n0.wav,ann,yes\n1.wav,bob,no\n")
    source = settings("speech", dataset="said", column="audio", key="who")
    speech = scan(source, tmp_path)
    assert pickle.loads(pickle.dumps(source.make(tmp_path))).signature() == source.make(tmp_path).signature()
    assert items(speech) == {key: {"said": said, "split": "train"} for key, said in (("ann", "yes"), ("bob", "no"))}
    assert {Path(row["uri"]).name for row in speech.rows.to_pylist()} == {"0.wav", "1.wav"}
    texts = scan(settings("text", dataset="said", column="said", key="who"), tmp_path)
    assert texts.rows["text"].to_pylist() == ["yes", "no"]


def test_labels_without_a_name_and_lists_of_labels(tmp_path):
    names = datasets.ClassLabel(names=["a", "b"])
    rows = [{"text": f"Row {n}.", "one": n - 1, "some": [0, 1][:n]} for n in range(3)]
    save(tmp_path / "d", rows, text=datasets.Value("string"), one=names, some=datasets.List(names))
    found = items(scan(settings("text", dataset="d", column="text"), tmp_path))
    assert found == {
        "all/0": {"some": "[]"},
        "all/1": {"one": "a", "some": '["a"]'},
        "all/2": {"one": "b", "some": '["a", "b"]'},
    }


def test_what_was_read_is_not_read_again(tmp_path, monkeypatch):
    rows = [{"image": {"bytes": b"%d" % n, "path": None}} for n in range(40)]
    save(tmp_path / "d", rows, image=datasets.Image())
    monkeypatch.setattr("assets.sources.huggingface._last_change", lambda data: 7)  # as if it had lain there for long
    first = scan(settings(dataset="d", column="image"), tmp_path)
    again = scan(settings(dataset="d", column="image"), tmp_path, first.rows)
    assert (first.reused, again.reused, again.rows.num_rows) == (0, 40, 40)


def test_a_data_set_names_no_files_of_this_machine(tmp_path):
    (tmp_path / "secret").write_text("x")
    paths = [str(tmp_path / "secret"), "gone.png", "../secret"]
    rows = [{"id": f"{n}", "image": {"bytes": None, "path": path}} for n, path in enumerate(paths)]
    kind = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    save(tmp_path / "d", rows, id=datasets.Value("string"), image=kind)
    listed = scan(settings(dataset="d", column="image", key="id"), tmp_path)
    assert listed.rows.num_rows == 0
    reasons = {row["key"]: row["reason"] for row in listed.quarantine.to_pylist()}
    assert reasons == {"0": "outside_root", "1": "not_found", "2": "outside_root"}
    assert all("secret" in message for reason, message in refused(listed).items() if reason == "outside_root")


@pytest.mark.parametrize(
    ("modality", "options", "words"),
    [
        ("image", {"column": "picture"}, "no column 'picture'; it has id, image"),
        ("image", {"column": "id"}, "column 'id' is Value.* holds no media"),
        ("image", {"column": "image", "key": "name"}, "no column 'name'"),
        ("text", {"column": "image"}, "column 'image' is Image.* holds no text"),
    ],
)
def test_a_column_that_does_not_fit_is_named(tmp_path, modality, options, words):
    rows = [{"id": "1", "image": {"bytes": b"1", "path": "1.png"}}]
    save(tmp_path / "d", rows, id=datasets.Value("string"), image=datasets.Image())
    with pytest.raises(SourceError, match=words):
        scan(settings(modality, dataset="d", **options), tmp_path)


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ("no-such-owner-of-triptych/no-such-set", r"dataset is 'no-such-owner.*spelled right.*hf download"),
        ("./no/such/folder", r"no such folder; correct `dataset`"),
        ("empty", r"empty: cannot be read as a data set"),
        ("script", r"script: cannot be read as a data set"),
    ],
)
def test_what_is_not_there_says_so(tmp_path, dataset, words):
    for folder in ("empty", "script"):
        (tmp_path / folder).mkdir()
    (tmp_path / "script/script.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(SourceError, match=words):
        scan(settings(dataset=dataset, column="image"), tmp_path)
