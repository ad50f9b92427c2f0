"""Vectors as items: what is read, what is refused and in which words."""

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from training.features import FeatureSettings
from training.media import MediaError
from training.processor import Processor
from training.serving import read_inputs
from training.settings import MediaLimits
from training.vectors import decode_vectors, encode_vectors, text_of_cell

SHAPES = arrays.array_shapes(min_dims=1, max_dims=2, max_side=6)


def npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version)
    return file.getvalue()


@given(arrays.arrays(np.float32, SHAPES, elements=st.floats(-1e6, 1e6, width=32)))
def test_all_forms_give_the_same_numbers_and_tables_one_content(array):
    expected = np.atleast_2d(array)
    cell = json.dumps(array.tolist())
    forms = cell.encode(), npy(array), npy(np.asfortranarray(array), (2, 0)), encode_vectors(array).encode()
    for form in forms:
        np.testing.assert_array_equal(decode_vectors(form), expected)
    assert text_of_cell(cell) == encode_vectors(array)


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        (b"[1, null, 3]", "malformed", "number 2 is null"),
        (b'[1, "2"]', "malformed", 'number 2 is "2"'),
        (b"[true]", "malformed", "number 1 is true"),
        (b"[[1, 2], [3]]", "malformed", "vector 2 has 1 numbers, vector 1 has 2"),
        (b"[[1, 2], 3]", "malformed", "vector 2 is 3"),
        (b"[[[1]]]", "malformed", "number 1 of vector 1 is a list"),
        (b'{"a": 1}', "malformed", "holds an object"),
        (b"a text", "malformed", "starts with b'a text', which is neither"),
        (b"[" * 10_000, "malformed", "neither a JSON list"),
        (b"[1" + b"0" * 400 + b"]", "malformed", "hundreds of digits"),
        (b"[]", "empty", "no number"),
        (b"[[], []]", "empty", "no number"),
        (b"", "empty", "0 bytes"),
        (b"[1e39]", "malformed", "number 1 of vector 1 is 1e[+]39, expected a finite float32"),
        (b"[[1, 2], [3, NaN]]", "malformed", "number 2 of vector 2 is nan"),
        (npy(np.ones((2, 3)))[:-1], "truncated", r"shape \(2, 3\) is cut off"),
        (npy(np.ones((2, 3)))[:9], "truncated|corrupt", "the vector is"),
        (npy(np.array(["a"])), "malformed", "<U1, which are no numbers"),
        (npy(np.ones((1, 2, 3))), "malformed", r"shape \(1, 2, 3\)"),
        (b"k05VTVBZ!", "corrupt", "the vector is corrupt"),
        (b"[1, 2]", "wrong_length", r"vectors of 2 numbers, expected 3 \(features.image.width\)"),
    ],
)
def test_what_is_no_vector_is_refused_in_words(data, reason, words):
    processor = Processor(FeatureSettings(image={"kind": "vector", "width": 3}), MediaLimits())
    with pytest.raises(MediaError, match=words) as refused:
        processor.decode("image", data)
    assert refused.value.reason in reason.split("|")


def test_another_width_is_another_clean_step():
    marks = [
        Processor(FeatureSettings(speech={"kind": "vector", "width": width}), MediaLimits()).clean_fingerprint("speech")
        for width in (2, 3)
    ]
    assert marks[0] != marks[1]


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("vector", "features.text: width is 0, expected how many numbers"),
        ({"kind": "vector", "width": -1}, "width is -1"),
        (
            {"kind": "vector", "width": 3, "lowercase": True},
            "lowercase is not a key that is known here",
        ),
    ],
)
def test_settings_that_do_not_fit_are_named(section, words):
    with pytest.raises(ValueError, match=words):
        FeatureSettings(text=section)


def test_a_request_gives_vectors_as_json():
    processor = Processor(FeatureSettings(image={"kind": "vector", "width": 3}), MediaLimits())
    inputs = read_inputs({"image": "[[1, 2, 3], [4, 5, 6]]", "text": "Hm?"}, 0, ("text", "image"), processor)
    assert inputs == {"image": ["[[1, 2, 3], [4, 5, 6]]"], "text": ["Hm?"]}
    row = processor.row(**{modality: first for modality, (first,) in inputs.items()})
    np.testing.assert_array_equal(row["image"]["vector"], [[1, 2, 3], [4, 5, 6]])
