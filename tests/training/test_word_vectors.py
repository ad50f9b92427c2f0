"""Word vectors of a file: the same from every format, over the content words of a text, and what the model carries."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from training.features import FeatureSettings
from training.media import MediaError
from training.processor import Processor
from training.settings import MediaLimits

WORDS = ["the", "cat", "Paris", ". . .", "café", "猫", "坐"]
VECTORS = np.arange(3 * len(WORDS), dtype=np.float32).reshape(-1, 3) / 4
HEADER = f"{len(WORDS)} 3\n".encode()


def lines(end: str = "\n") -> bytes:
    rows = (" ".join([word, *map(str, row)]) + end for word, row in zip(WORDS, VECTORS.tolist(), strict=True))
    return "".join(rows).encode()


def binary(end: bytes) -> bytes:
    rows = zip(WORDS, VECTORS, strict=True)
    return HEADER + b"".join(w.replace(" ", "_").encode() + b" " + v.astype("<f4").tobytes() + end for w, v in rows)


FORMS = {
    "glove.txt": lines(),
    "fasttext.vec": HEADER + lines(" \n"),
    "word2vec.bin": binary(b""),
    "gensim.bin": binary(b"\n"),
    "packed.vec.gz": gzip.compress(HEADER + lines()),
}


def processor(path: Path, content: bytes, **options: int) -> Processor:
    path.write_bytes(content)
    section = {"kind": "word_vectors", "file": str(path), **options}
    return Processor(FeatureSettings(text=section), MediaLimits())


@pytest.mark.parametrize("name", FORMS)
def test_every_format_gives_the_vectors_of_content_words(name: str, tmp_path: Path) -> None:
    made = processor(tmp_path / name, FORMS[name])
    row = made.row(text="The cat saw Paris and the café")["text"]
    np.testing.assert_array_equal(row["word_vectors"], VECTORS[[1, 2, 4]])  # stop words are not there, known or not
    assert row["unknown"].tolist() == [1], "saw"
    row = made.row(text="猫在坐")["text"]
    np.testing.assert_array_equal(row["word_vectors"], VECTORS[[5, 6]])
    nothing = made.row(text="Quite unheard")["text"]
    np.testing.assert_array_equal(nothing["word_vectors"], np.zeros((1, 3)))
    assert made.featurizers["text"].shape().width == 3


def test_only_the_first_words_are_read_and_a_saved_model_needs_no_file(tmp_path: Path) -> None:
    path = tmp_path / "glove.txt"
    made = processor(path, lines() + b"broken line", words=2)
    row = made.row(text="cat café")["text"]
    np.testing.assert_array_equal(row["word_vectors"], VECTORS[[1]])
    made.save_pretrained(tmp_path / "model")
    before = made.fingerprint("text")
    assert processor(path, lines(), words=2).fingerprint("text") == before, "what is not read is no part of it"
    assert processor(path, lines(), words=3).fingerprint("text") != before
    assert processor(path, lines().replace(b"0.25", b"0.75", 1), words=2).fingerprint("text") != before
    path.unlink()
    loaded = Processor.from_pretrained(tmp_path / "model")
    assert loaded.fingerprint("text") == before and loaded.featurizers["text"].shape().width == 3
    np.testing.assert_array_equal(loaded.row(text="cat café")["text"]["word_vectors"], VECTORS[[1]])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"word\n", "its first line has no vector"),
        (b"cat 1 2 3\ndog 1 2\n", "its vector 2 is not a word and 3 numbers"),
        (b"cat 1 2 3\ndog 1 x 3\n", "its vector 2 is not"),
        (b"cat 1 2 1e9\n", "its vector 1 holds a number that is not finite as float16"),
        (binary(b"")[:-5], "it ends in vector 7"),
        (b"\x1f\x8babc", "it cannot be read"),
    ],
)
def test_a_file_that_is_none_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    made = processor(tmp_path / "file", content)
    with pytest.raises(ValueError, match=f"features.text: file is .*{words}"):
        made.prepare("text")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="file is '', expected a file of GloVe"):
        FeatureSettings(text="word_vectors")
    made = processor(tmp_path / "file", b"")
    (tmp_path / "file").unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        made.prepare("text")
    with pytest.raises(MediaError, match="white space"):
        made.decode("text", b" ")
