"""The contract of a featurizer, over every kind in the catalogue and one of a user's own."""

import io
import pickle

import numpy as np
import PIL.Image
import pytest
import soundfile

from tests.training import tiny_encoders
from training import family
from training.catalog import ENCODERS, FEATURIZERS, MODALITIES
from training.features import FeatureSettings
from training.processor import Processor
from training.settings import MediaLimits
from training.validation import to_dict

OWN = '''
from collections.abc import Mapping
from dataclasses import dataclass
import numpy as np
from training.featurizers.base import Featurizer, FeatureShape

class EdgesFeaturizer(Featurizer):
    """Rows of brightness differences, as frames."""
    form, described, version, read = "frames", "edges", 1, "edges"
    tensors: Mapping[str, str] = {"edges": "float32"}

    @dataclass(frozen=True, kw_only=True)
    class Options:
        rows: int = 4

    def featurize(self, content):
        grey = content.array.mean(axis=2)
        return {"edges": np.diff(grey, axis=0)[: self.options.rows, :4].astype(np.float32)}

    def shape(self):
        return FeatureShape(self.form, 4)

    def batch(self, rows):
        from training.padding import padded_frames
        return padded_frames(rows, 4)
'''


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(value).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def wav(seconds: float) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.5 * np.sin(np.arange(round(8000 * seconds))), 8000, format="WAV")
    return buffer.getvalue()


IDS = ("ids", "symbols", "counts")  # forms whose width is that of a vocabulary
VECTORS = [b"[1, 2, 3]", b"[[1, 2, 3], [4, 5, 6]]"]
CONTENTS = {"text": [b"one", b"twenty two"], "image": [png(1), png(2)], "speech": [wav(0.1), wav(0.4)]}
KINDS = [(m, kind) for m in MODALITIES.names() for kind in FEATURIZERS.names(m)]


@pytest.fixture(params=[*KINDS, ("image", "edges_of_test:EdgesFeaturizer")], ids=lambda pair: "-".join(pair))
def case(request, tmp_path, monkeypatch) -> tuple[str, str, Processor]:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "edges_of_test.py").write_text(OWN)
    modality, kind = request.param
    section = {"kind": kind}
    if kind in ("embedding", "processed"):
        encoder = {"text": "bert", "image": "vit", "speech": "whisper"}[modality]
        section["model"] = str(tiny_encoders.make(encoder, tmp_path / encoder))
    if kind == "vector":
        section["width"] = 3
    if kind == "word_vectors":
        section["file"] = str(tmp_path / "glove.txt")
        (tmp_path / "glove.txt").write_text("one 1 2 3\ntwenty 4 5 6\ntwo 7 8 9\n")
    return modality, kind, Processor(FeatureSettings(**{modality: section}), MediaLimits())


def contents(modality: str, kind: str) -> list[bytes]:
    return VECTORS if kind == "vector" else CONTENTS[modality]


def test_declared_tensors_come_and_make_a_batch(case):
    modality, kind, processor = case
    featurizer = processor.featurizers[modality]
    rows = [processor.row(**{modality: data})[modality] for data in contents(modality, kind)]
    for row in rows:
        assert {name: str(row[name].dtype) for name in featurizer.tensors} == dict(featurizer.tensors)
    assert featurizer.read in featurizer.tensors and featurizer.form in ENCODERS.kinds
    shape = featurizer.shape()
    tensors = [row[featurizer.read] for row in rows]
    values, mask = featurizer.batch([tensors[0], None, tensors[1]])
    assert len(values) == 3 and shape.form == featurizer.form
    if shape.form == "grid":
        assert tuple(values.shape[1:]) == (shape.width, shape.size, shape.size) and mask is None
    else:
        assert mask.sum(1).tolist() == [len(tensors[0]), 0, len(tensors[1])]
        assert values.shape[1] == mask.shape[1] and (shape.form in IDS or values.shape[2] == shape.width)
    alone, alone_mask = featurizer.batch([tensors[0]])
    if alone_mask is not None:
        values, alone = values[:, : alone.shape[1]], alone[:, : alone_mask.sum()]
    assert (values[0] == alone[0]).all(), "what stands beside a row does not change it"


def test_it_can_be_sent_to_a_worker_and_saved(case, tmp_path):
    modality, kind, processor = case
    sent = pickle.loads(pickle.dumps(processor))
    processor.save_pretrained(tmp_path / "saved")
    loaded = Processor.from_pretrained(tmp_path / "saved")
    expected = processor.row(**{modality: contents(modality, kind)[0]})[modality]
    for other in (sent, loaded):
        assert other.fingerprint(modality) == processor.fingerprint(modality)
        row = other.row(**{modality: contents(modality, kind)[0]})[modality]
        assert all(np.array_equal(row[name], expected[name]) for name in expected)


def test_options_that_act_in_a_batch_are_no_part_of_the_fingerprint(case):
    modality, kind, processor = case
    featurizer = processor.featurizers[modality]
    for name in FEATURIZERS.option_names(kind, modality):
        if name in featurizer.at_batch:
            value = getattr(featurizer.options, name)
            other = not value if isinstance(value, bool) else value + 1
            section = to_dict(featurizer.options) | {"kind": kind, name: other}
            changed = FeatureSettings(**{modality: section})
            assert Processor(changed, MediaLimits()).fingerprint(modality) == processor.fingerprint(modality)
            assert changed.at_batch(modality) != processor.features.at_batch(modality)


def test_what_augmentation_reads_depends_on_nothing_that_the_encoders_tensor_does_not(case):
    modality, _, processor = case
    featurizer, unaffected = processor.featurizers[modality], processor.features.unaffected(modality)
    if featurizer.augmented in unaffected and featurizer.augmented != featurizer.read:
        others = {*unaffected.get(featurizer.read, ())} - {"keep_waveform"}
        assert others <= {*unaffected[featurizer.augmented]}


def test_the_code_of_a_users_own_kind_is_part_of_the_fingerprint(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "edges_again_of_test.py"
    marks = []
    for text in (OWN, OWN.replace("axis=2", "axis=-1")):
        module.write_text(text)
        family._code_digest.cache_clear()  # as in a new process
        features = FeatureSettings(image="edges_again_of_test:EdgesFeaturizer")
        marks.append(Processor(features, MediaLimits()).fingerprint("image"))
    assert marks[0] != marks[1]
