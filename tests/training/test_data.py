"""Rows, cache, order and batches: from feature tables made on the spot."""

import multiprocessing
import pickle
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.cache import FeatureCache, open_table
from training.collator import Collator
from training.data import EpochSampler, SampleDataset, open_samples
from training.features import FeatureSettings
from training.outputs.class_ import ClassOutput
from training.outputs.text import TextOutput
from training.schema import DATASET, MODALITIES, features_table
from training.seeding import generator
from training.tokenizer import fit_tokenizer, load_tokenizer

FEATURE_SETTINGS = FeatureSettings(image={"size": 4, "color": "grey"}, speech={"mels": 3, "coefficients": 2})
TOKENIZER = fit_tokenizer(["what do you see", "yes"] * 3, 300)
PIXELS = {"pixels": "uint8"}
TARGETS = partial(TextOutput({}).targets, tokenizer=TOKENIZER)


def image_table(ids: Sequence[str], fingerprint: str = "f") -> pa.Table:
    rows = [{"id": i, "fingerprint": fingerprint, "pixels": np.full((1, 4, 4), n)} for n, i in enumerate(ids)]
    return features_table("image", PIXELS, rows)


def image_cache(root: Path) -> FeatureCache:
    return FeatureCache(root, "image", "f", PIXELS)


def make_row(sample_id: str = "s", epoch: int = 0, label: str | None = None, **columns: Any) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(MODALITIES) | {"sample_id": sample_id, "epoch": epoch, "label": label}
    for name, value in columns.items():
        modality = {"text": "text", "input_ids": "text", "pixels": "image"}.get(name, "speech")
        row[modality] = (row[modality] or {}) | {name: value}
    return row


def full_row(sample_id: str = "s", epoch: int = 0) -> dict[str, Any]:
    return make_row(
        sample_id,
        epoch,
        label="yes",
        text="see",
        input_ids=np.array([1, 2], np.int32),
        pixels=np.zeros((1, 4, 4), np.uint8),
        log_mel=np.ones((5, 3), np.float32),
    )


def make_collator(prompt: str | None = "text", **settings: Any) -> Collator:
    return Collator(TOKENIZER, FEATURE_SETTINGS, ("text", "image", "speech"), prompt, **settings)


def test_cache_adds_only_what_is_missing(tmp_path: Path) -> None:
    cache = image_cache(tmp_path)
    table = ds.dataset(image_table(["a", "b", "c"]))
    assert cache.add(table, ["a", "b"]) == 2
    assert cache.add(table, ["a", "b", "c"]) == 1
    assert cache.add(table, ["c"]) == 0
    assert cache.positions(pa.chunked_array([["c", None, "a"]])).tolist() == [2, -1, 0]
    assert cache.read(2)["pixels"].tolist() == [[[2] * 4] * 4]
    assert image_cache(tmp_path).ids.to_pylist() == ["a", "b", "c"]  # another process sees the same


def test_cache_takes_one_of_equal_rows_and_only_its_fingerprint(tmp_path: Path) -> None:
    table = pa.concat_tables([image_table(["x", "a"], "old"), image_table(["a", "b"]), image_table(["b", "a"])])
    cache = image_cache(tmp_path)
    assert cache.add(ds.dataset(table), ["a", "b"]) == 2
    assert cache.ids.to_pylist() == ["a", "b"]
    assert cache.read(0)["pixels"].max() == 0


def test_cache_names_what_the_table_lacks_and_stays_as_it_was(tmp_path: Path) -> None:
    cache = image_cache(tmp_path)
    with pytest.raises(ValueError, match=r"1 of 2 image features .* \(first: b\)"):
        cache.add(ds.dataset(image_table(["a"])), ["a", "b"])
    assert not list(cache.folder.glob("*.arrow")) and not list(cache.folder.glob("*.tmp"))
    with pytest.raises(ValueError, match="image features of b are not in the cache"):
        cache.positions(pa.chunked_array([["b"]]))


def test_cache_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    cache = image_cache(tmp_path)
    cache.folder.mkdir(parents=True)
    (cache.folder / "000000-dead.tmp").write_bytes(b"half of a file")
    cache.add(ds.dataset(image_table(["a"])), ["a"])
    assert [path.suffix for path in sorted(cache.folder.iterdir()) if path.name != ".lock"] == [".arrow"]


def _add(root: Path, ids: list[str]) -> None:
    image_cache(root).add(ds.dataset(image_table([f"i{n}" for n in range(40)])), ids)


def test_cache_is_safe_in_several_processes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    parts = [[f"i{n}" for n in range(start, start + 20)] for start in (0, 10, 20)]
    processes = [context.Process(target=_add, args=(tmp_path, part)) for part in parts]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert Counter(image_cache(tmp_path).ids.to_pylist()) == Counter(f"i{n}" for n in range(40))


def test_cache_travels_without_its_rows(tmp_path: Path) -> None:
    cache = image_cache(tmp_path)
    cache.add(ds.dataset(image_table([f"i{n}" for n in range(500)])), [f"i{n}" for n in range(500)])
    packed = pickle.dumps(cache)
    assert len(packed) < 1000
    assert pickle.loads(packed).read(499)["pixels"].shape == (1, 4, 4)


def test_samples_of_a_lake(tmp_path: Path) -> None:
    deltalake = pytest.importorskip("deltalake")
    lake = str(tmp_path / "lake")
    deltalake.write_deltalake(f"{lake}/image_features", image_table(["a", "b"]))
    index = pa.Table.from_pylist(
        [{"sample_id": "1", "label": "x", "image_id": "b"}, {"sample_id": "2", "label": None}], schema=DATASET
    )
    samples = open_samples(index, lake, {"image": "f", "speech": "g"}, FEATURE_SETTINGS, tmp_path / "cache")
    assert samples.modalities == ("image",)  # no row has speech: its table is not even looked for
    assert samples[0]["image"]["pixels"].max() == 1 and samples[0]["text"] is None
    assert samples[(7, 1)]["epoch"] == 7 and samples[1]["image"] is None
    assert samples.take([1]).labels == [None]
    with pytest.raises(ValueError, match="no table 'speech_features'"):
        open_table(lake, "speech_features")


def test_texts_come_as_often_as_they_occur(tmp_path: Path) -> None:
    ids = np.zeros(0, np.int32)
    rows = [{"id": i, "fingerprint": "f", "text": t, "input_ids": ids} for i, t in ("ax", "by")]
    cache = FeatureCache(tmp_path, "text", "f", {"text": None, "input_ids": "int32"})
    cache.add(ds.dataset(features_table("text", {"input_ids": "int32"}, rows)), ["a", "b"])
    index = pa.Table.from_pylist([{"sample_id": str(n), "text_id": i} for n, i in enumerate("aab")], schema=DATASET)
    assert Counter(SampleDataset(index, {"text": cache}).texts()) == {"x": 2, "y": 1}


def test_order_depends_on_seed_and_epoch_alone() -> None:
    sampler = EpochSampler(50, seed=3)
    torch.manual_seed(1)
    first = list(sampler)
    torch.manual_seed(2)
    assert list(sampler) == first and sorted(n for _, n in first) == list(range(50))
    sampler.set_epoch(1)
    assert [n for _, n in sampler] != [n for _, n in first] and {epoch for epoch, _ in sampler} == {1}


def test_generators_are_keyed() -> None:
    draws = {generator(*key).random() for key in ((0, 0, "a"), (0, 0, "b"), (0, 1, "a"), (1, 0, "a"))}
    assert len(draws) == 4 and generator(0, 1, "a").random() in draws


def test_dropout_is_keyed_and_never_hides_all() -> None:
    collator = make_collator(modality_dropout=0.5)
    shown = {(n, e): tuple(collator.shown(full_row(str(n), e))) for n in range(300) for e in range(2)}
    np.random.seed(0)
    torch.manual_seed(0)
    assert all(tuple(collator.shown(full_row(str(n), e))) == s for (n, e), s in shown.items())
    counts = Counter(shown.values())
    assert len(counts) == 7 and () not in counts
    assert any(shown[n, 0] != shown[n, 1] for n in range(300))
    hidden = sum("image" not in s for s in shown.values()) / len(shown)
    assert 0.4 < hidden < 0.6
    lacking = make_row("1", text="see")
    assert all(collator.shown(lacking | {"sample_id": str(n)}) == ["text"] for n in range(50))


def test_batch() -> None:
    speech_only = make_row("t", label="no", log_mel=np.full((2, 3), 2, np.float32))
    batch = make_collator(targets=TARGETS, prompt=None)([full_row(), speech_only])
    assert batch["present"].tolist() == [[True, True, True], [False, False, True]]
    assert batch["image"].shape == (2, 1, 4, 4) and batch["image"][0].max() == -1.0  # (0 / 255 - 0.5) / 0.5
    assert batch["speech_mask"].sum(1).tolist() == [5, 2] and batch["speech"][1, 2:].abs().sum() == 0
    assert batch["text_mask"].sum(1).tolist() == [2, 0]
    ids = TOKENIZER("see")["input_ids"]
    batch |= make_collator(targets=TARGETS)([full_row(), speech_only])
    assert batch["prompt_ids"][0].tolist() == ids and not batch["prompt_mask"][1].any()
    answer = [token for token in batch["labels"][1].tolist() if token != -100]
    assert answer[-1] == TOKENIZER.eos_token_id and TOKENIZER.decode(answer[:-1]) == "no"


def test_prompts_are_padded_on_the_left() -> None:
    rows = [make_row("a", text="what do you see"), make_row("b", text="see")]
    batch = make_collator()(rows)
    assert batch["prompt_mask"][0].all() and batch["prompt_mask"][1].tolist() == sorted(
        batch["prompt_mask"][1].tolist()
    )
    assert TOKENIZER.decode(batch["prompt_ids"][1][batch["prompt_mask"][1]]) == "see"


def test_keep_hides_the_others() -> None:
    batch = make_collator(keep=frozenset({"image"}))([full_row()])
    assert batch["present"].tolist() == [[False, True, False]]
    assert not batch["speech_mask"].any() and not batch["prompt_mask"].any()


def test_a_row_without_a_label_is_named() -> None:
    with pytest.raises(ValueError, match="sample nameless has no label"):
        make_collator(targets=TARGETS)([make_row("nameless", text="see")])


def test_classes_that_training_never_saw_are_left_out_of_the_loss() -> None:
    rows = [make_row("a", text="x", label=label) for label in ("no", "yes", "never")]
    targets = partial(ClassOutput({"classes": ["no", "yes"]}).targets, tokenizer=TOKENIZER)
    assert make_collator(targets=targets)(rows)["labels"].tolist() == [0, 1, -100]


@given(st.text())
def test_tokenizer_gives_back_any_text(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    ids = TOKENIZER(text)["input_ids"]
    assert TOKENIZER.decode(ids) == text


def test_tokenizer_is_the_same_every_time() -> None:
    texts = [f"{word} {n} 你好" for n in range(20) for word in ("what", "where", "sum of")]
    first = fit_tokenizer(texts, 400).backend_tokenizer.to_str()
    assert all(fit_tokenizer(texts, 400).backend_tokenizer.to_str() == first for _ in range(3))
    assert len(fit_tokenizer(texts, 290)) <= 290
    with pytest.raises(ValueError, match="vocabulary is 100"):
        fit_tokenizer(texts, 100)


def test_a_missing_language_model_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be loaded.*llm: tiny"):
        load_tokenizer(str(tmp_path))
