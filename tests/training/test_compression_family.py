"""The contract of a compression over every kind in the catalogue."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from training.catalog import COMPRESSIONS
from training.compressed import Compressed, packed, unpacked
from training.family import Choice
from training.features import FeatureSettings
from training.processor import Processor
from training.settings import MediaLimits

KINDS = COMPRESSIONS.names()
OPTIONS = {"pca": {"components": 4}, "pq": {"subspaces": 6, "centroids": 32}}
LOST = {"float16": 4e-4, "int8": 0.01, "pca": 0.15, "pq": 0.7}  # relative error of the vectors below, at most
WIDTH = 13


def vectors(count: int, seed: int = 0) -> np.ndarray:
    """Four directions in which they differ, and a little noise."""
    random = np.random.default_rng([seed, count])
    directions = np.random.default_rng(9).normal(size=(4, WIDTH))
    return random.normal(size=(count, 4)) @ directions + 0.1 * random.normal(size=(count, WIDTH)) + 1


def made(kind: str) -> Compressed:
    choice = COMPRESSIONS.choose({"kind": kind, **OPTIONS.get(kind, {})})
    fit = COMPRESSIONS.make(choice).fitted(vectors(400, seed=1)) or None
    return Compressed("vector", "float32", kind, COMPRESSIONS.make(choice, fit=fit))


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_come_back_as_they_were_but_for_what_is_told_as_lost(kind):
    compressed = made(kind)
    contents = [vectors(n).astype(np.float32) for n in (1, 3, 40)] + [np.zeros((2, WIDTH), np.float32)]
    rows = compressed.compress(contents)
    for content, row in zip(contents, rows, strict=True):
        assert {name: str(row[name].dtype) for name in compressed.tensors} == compressed.tensors
        assert sum(row[name].nbytes for name in compressed.tensors) < content.nbytes
        again = compressed.restore(row | {"id": "a"})
        assert again.keys() == {"id", "vector"} and again["vector"].dtype == np.float32
        assert again["vector"].shape == content.shape
        error, cosine, size = row[compressed.loss]
        assert size == content.nbytes and -1.0001 <= cosine <= 1.0001
        if content.any():
            lost = np.linalg.norm(again["vector"] - content) / np.linalg.norm(content)
            assert error == pytest.approx(lost, rel=1e-3, abs=1e-6) and (len(content) < 40 or error < LOST[kind])
            assert cosine == pytest.approx(1, abs=0.5 * LOST[kind]) or len(content) < 40


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_beside_a_vector_changes_nothing_nor_does_a_worker(kind):
    compressed, content = made(kind), vectors(5).astype(np.float32)
    sent = pickle.loads(pickle.dumps(compressed))
    (alone,), *_, (beside,) = (
        [one] for one in compressed.compress([content, *[vectors(n) for n in range(1, 90)], content])
    )
    for other in (beside, *sent.compress([content])):
        assert all(np.array_equal(alone[name], other[name]) for name in compressed.tensors)
    empty = compressed.compress([np.zeros((0, WIDTH), np.float32)])[0]
    assert compressed.restore(empty)["vector"].shape == (0, WIDTH) and compressed.compress([]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_is_the_same_of_the_same_vectors_and_part_of_the_name(kind):
    one, same = made(kind), made(kind)
    assert one.identity() == same.identity() and one.is_ready
    if not one.compression.is_fitted:
        return
    fit = one.compression.fit
    assert all(np.array_equal(tensor, fit[name]) for name, tensor in unpacked(packed(fit)).items())
    other = one.compression.fitted(vectors(400, seed=2))
    changed = Compressed("vector", "float32", kind, type(one.compression)(one.compression.options, other))
    assert changed.identity() != one.identity()
    with pytest.raises(ValueError, match="expected 3 at most, which is how many vectors the first run has"):
        one.compression.fitted(vectors(3))


@settings(max_examples=60)
@given(arrays.arrays(np.float32, (3, 7), elements=st.floats(-(2**90), 2**90, width=32)))
def test_of_int8_no_number_is_off_by_more_than_half_a_step(content):
    compressed = Compressed("vector", "float32", "int8", COMPRESSIONS.make(Choice("int8")))
    again = compressed.restore(compressed.compress([content])[0])["vector"]
    step = np.abs(content).max(axis=1, keepdims=True) / 127
    assert (np.abs(again - content) <= 0.5001 * step + 1e-37).all()


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"kind": "vector", "width": 8, "compression": "int9"}, "compression is 'int9', expected one of float16, int8"),
        ({"kind": "vector", "width": 8, "compression": {"kind": "pca", "parts": 3}}, "pca has no option 'parts'"),
        ({"kind": "vector", "width": 8, "compression": {"kind": "pca", "components": 0}}, "components is 0, expected"),
        ({"kind": "vector", "width": 8, "compression": {"kind": "pq", "centroids": 257}}, "centroids is 257, expected"),
        (
            {"kind": "vector", "width": 8, "compression": {"kind": "pca", "components": 9}},
            "components is 9, expected 8",
        ),
        ({"kind": "vector", "width": 8, "compression": {"kind": "pq", "subspaces": 9}}, "subspaces is 9, expected 8"),
        ({"compression": "int8"}, "pixels are stored as uint8: leave it out"),
        ({"kind": "embedding", "model": "m", "compression": "float16"}, "these features are float16 already"),
    ],
)
def test_what_does_not_fit_is_refused(section, words):
    with pytest.raises(ValueError, match=words):
        Processor(FeatureSettings(image=section), MediaLimits()).prepare("image")


def test_served_rows_are_those_of_tables_and_a_saved_processor_is_the_same(tmp_path):
    compressed = made("pca")
    assert compressed.compression.fit is not None
    section = {"kind": "vector", "width": WIDTH, "compression": {"kind": "pca", "components": 4}}
    features = FeatureSettings(text=section)
    processor = Processor(features, MediaLimits(), {"text": compressed.compression.fit})
    assert FeatureSettings.from_plain(features.plain()) == features
    content = vectors(2).astype(np.float32)
    row = processor.row(text=str(content.tolist()))["text"]
    expected = compressed.restore(compressed.compress([content])[0])["vector"]
    assert np.array_equal(row["vector"], expected)
    processor.save_pretrained(tmp_path)
    loaded = Processor.from_pretrained(tmp_path)
    assert loaded.fingerprint("text") == processor.fingerprint("text")
    assert np.array_equal(loaded.row(text=str(content.tolist()))["text"]["vector"], expected)
    plain = Processor(FeatureSettings(text={"kind": "vector", "width": WIDTH}), MediaLimits())
    assert plain.fingerprint("text") == processor.refusing_fingerprint("text") != processor.fingerprint("text")
