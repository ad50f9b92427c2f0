"""No setting of the data side silently does nothing: each field of each settings class, changed, changes what it
configures. A field without a case fails; the settings of model and training have theirs in `tests/training`."""

import dataclasses
import functools
import io
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import soundfile

from assets import featurizing, pipeline
from assets.asset_checks import check_leakage, check_null_rates
from assets.catalog import ENGINES
from assets.data_assets import data_assets
from assets.engines.base import WorkerOptions
from assets.engines.ray import RayEngine
from assets.evaluation_settings import CardSettings, EvaluationSettings
from assets.model_assets import model_assets
from assets.pairing import PairingSettings
from assets.scan import scan
from assets.settings import AlignSettings, Project, SplitSettings
from assets.source_settings import SourceSettings
from assets.sources.embedded import EmbeddedSource
from assets.sources.files import FilesSource
from assets.sources.table import TableSource
from orchestration.definitions import project_definitions
from orchestration.project import ProjectError, load
from training.catalog import FEATURIZERS, FILTERS, SIGNATURES
from training.family import Choice
from training.features import FeatureSettings
from training.featurizers.embedding import EmbeddingOptions, ImageEmbeddingOptions, SpeechEmbeddingOptions
from training.featurizers.kaldi_fbank import KaldiFbankOptions
from training.featurizers.phonemes import PhonemesOptions
from training.featurizers.pixels import PixelsOptions
from training.featurizers.processed import ProcessedImageOptions, ProcessedOptions, ProcessedSpeechOptions
from training.featurizers.tfidf import TfidfOptions
from training.featurizers.tokens import TokensOptions
from training.featurizers.vector import VectorOptions
from training.featurizers.whisper_mel import WhisperMelOptions
from training.featurizers.word_vectors import WordVectorsOptions
from training.filters.base import RangeOptions
from training.filters.language import LanguageOptions
from training.filters.similarity import SimilarityOptions
from training.media import MediaError
from training.modalities.image import ImageModality
from training.processor import Processor
from training.schema import SAMPLES
from training.settings import DECODING, MediaLimits, TextCleaning
from training.spectra import SpectrumOptions

TEXT = "Les ﬁlles mangent du pain avec LES amis"


def after_silence() -> bytes:
    """A recording that is silent, then faint, then loud."""
    tone = np.sin(np.arange(4000) / 3) * np.repeat([0.0, 0.02, 0.5, 0.5], 1000)
    buffer = io.BytesIO()
    soundfile.write(buffer, tone, 8000, format="WAV")
    return buffer.getvalue()


CONTENT = {"text": TEXT.encode(), "image": ImageModality().example(), "speech": after_silence()}


def features(modality: str, kind: str = "", limits: MediaLimits | None = None, **options: Any) -> Any:
    """What comes of an item: its clean row, its tensors, and the batch that a model gets."""
    section = {**options, **({"kind": kind} if kind else {})}
    processor = Processor(FeatureSettings(**{modality: section}), limits or MediaLimits())
    try:
        content = processor.decode(modality, CONTENT[modality])
    except MediaError as error:
        return error.reason
    row, featurizer = processor.featurize(modality, content), processor.featurizers[modality]
    values, mask = featurizer.batch([row[featurizer.read]])
    tensors = {name: row[name].tobytes() for name in featurizer.tensors}
    batch = values.numpy().tobytes(), None if mask is None else mask.numpy().tobytes()
    return processor.modalities[modality].describe(content), tensors, batch


def stored(modality: str, **options: Any) -> dict[str, str]:
    """Tensor -> what names the rows that hold it."""
    processor = Processor(FeatureSettings(**{modality: options}), MediaLimits())
    return {name: processor.fingerprint(modality, name) for name in processor.featurizers[modality].tensors}


# Class -> modality, and for each field a value that is not the default.
OPTIONS: dict[type, tuple[str, dict[str, Any]]] = {
    PixelsOptions: ("image", {"size": 16, "color": "grey", "fit": "pad", "mean": 0.1, "std": 0.9}),
    SpectrumOptions: (
        "speech",
        {
            **{"sample_rate": 8000, "mels": 30, "coefficients": 9, "window_ms": 40.0, "hop_ms": 5.0, "trim_db": 1.0},
            **{"max_seconds": 0.2, "channel_seconds": 0.5, "keep_waveform": True},
        },
    ),
    WhisperMelOptions: ("speech", {"mels": 30, "max_seconds": 0.2}),
    KaldiFbankOptions: ("speech", {"mels": 30, "sample_rate": 8000, "max_seconds": 0.2, "standardise": False}),
    TextCleaning: ("text", {"form": "NFKC", "language": "de", "lowercase": True}),
    TokensOptions: ("text", {"max_tokens": 3, "tokenizer": "a local folder"}),
    PhonemesOptions: ("text", {"max_tokens": 3}),
    TfidfOptions: ("text", {"columns": 99, "ngrams": 2}),
}
KINDS = {PhonemesOptions: "phonemes", TfidfOptions: "tfidf"}  # of those that are not the default
KINDS |= {WhisperMelOptions: "whisper_mel", KaldiFbankOptions: "kaldi_fbank"}
FIELDS = [(cls, name, value) for cls, (_, values) in OPTIONS.items() for name, value in values.items()]


@pytest.fixture(scope="module")
def word_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "Les": 1, "pain": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(("cls", "name", "value"), FIELDS, ids=[f"{cls.__name__}.{name}" for cls, name, _ in FIELDS])
def test_an_option_of_features_changes_rows_or_batch(cls, name, value, word_tokenizer):
    modality, kind = OPTIONS[cls][0], {"kind": KINDS[cls]} if cls in KINDS else {}
    value = word_tokenizer if name == "tokenizer" else value
    wide = {"fit": "squash"} if name == "fit" else {}
    every = {"keep_waveform": True} if cls is SpectrumOptions and name != "keep_waveform" else {}
    before = features(modality, **kind, **wide, **every)
    after = features(modality, **kind, **every, **{name: value})
    if name == "fit":  # the example picture is a square, which fits in every way
        assert stored(modality, **wide) != stored(modality, **{name: value})
        return
    assert before != after
    changed = before[0] != after[0] or before[1] != after[1]
    named, again = stored(modality, **kind, **every), stored(modality, **kind, **every, **{name: value})
    assert (named != again) == changed, "stored rows are named by what made them"
    unaffected = FeatureSettings(**{modality: kind | every}).unaffected(modality)
    for tensor in named:
        is_other = named[tensor] != again[tensor]
        assert is_other == (changed and name not in unaffected.get(tensor, ())), tensor
        assert is_other or before[1][tensor] == after[1][tensor], tensor


def test_the_kind_of_features_changes_what_is_read():
    assert features("speech")[2] != features("speech", "mfcc")[2]


@pytest.mark.parametrize(
    ("name", "value", "modality"),
    [
        *(("max_bytes", 10, "image"), ("max_pixels", 100, "image")),
        *(("max_seconds", 0.1, "speech"), ("max_characters", 5, "text")),
    ],
)
def test_a_limit_refuses_before_decoding(name, value, modality):
    assert features(modality) != "too_large"
    assert features(modality, limits=MediaLimits(**{name: value})) == "too_large"


@pytest.mark.parametrize(
    ("modality", "kind"), [(m, kind) for m in ("text", "image", "speech") for kind in FEATURIZERS.names(m)]
)
def test_every_package_that_decides_a_row_is_part_of_its_fingerprint(modality, kind, monkeypatch, tmp_path):
    from training import processor as module

    monkeypatch.setattr("training.model_files.model_folder", Path)
    monkeypatch.setattr("training.model_files.digest", lambda folder, weights: str(folder))
    (tmp_path / "glove.txt").write_text("word 1 2 3")
    needed = {"vector": {"width": 3}, "word_vectors": {"file": str(tmp_path / "glove.txt")}}.get(kind, {})
    processor = Processor(FeatureSettings(**{modality: {"kind": kind, **needed}}), MediaLimits())
    version, before = module._version, processor.fingerprint(modality)
    packages = {*processor.modalities[modality].packages, *processor.featurizers[modality].packages}
    expected = {
        "text": {"ftfy", "jieba", "py3langid", "regex"},
        "image": {"opencv-python-headless", "pillow", "simplejpeg"},
        "speech": {"numpy", "scipy", "soundfile", "soxr"},
    }
    expected_here = expected[modality]
    if kind in ("embedding", "processed"):  # by pictures as the model's own preprocessing resizes them
        theirs = {"text": set(), "image": {"timm", "torchvision"}, "speech": {"torchaudio"}}[modality]
        expected_here = expected_here - {"opencv-python-headless", "scipy"} | {"torch", "transformers"} | theirs
    if kind == "vector":
        expected_here = {"numpy"}
    if kind == "phonemes":
        expected_here = expected_here | {"espeakng-loader"}
    assert packages == expected_here
    for package in packages:
        monkeypatch.setattr(module, "_version", lambda name, one=package: "0" if name == one else version(name))
        assert processor.fingerprint(modality) != before, package


# Alignment: a project that is cleaned already.


@pytest.fixture(scope="module")
def cleaned(make_project: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aligned")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("TRIPTYCH_HOME", str(folder / "home"))
        path = make_project(folder / "project")
        links = [f"{n},q{(n + 1) % 20:02d},q{n:02d},{'yes' if n % 2 else 'no'},ä{n}" for n in range(20)]
        (path.parent / "links.csv").write_text(
            "\n".join(["number,pictures,questions,answer,remark", *links]), "latin-1"
        )
        linked = [{"pictures": f"q{n:02d}", "questions": f"q{n:02d}", "answer": "yes"} for n in range(20)]
        (path.parent / "links.json").write_text(json.dumps({"a": linked, "b": linked[:10]}), "latin-1")
        project = load(path)
        lake = pipeline.open_lake(project)
        pipeline.write_manifest(lake, project)
        for modality in project.modalities:
            featurizing.process_modality(lake, project, modality)
    return path


def samples(path: Path, *overrides: str) -> Any:
    """The samples that the settings make, or the error in their place."""
    try:
        project = load(path, overrides)
        lake = pipeline.open_lake(project)
        pipeline.write_samples(lake, project)
    except ValueError as error:
        return str(error)
    return lake.read("samples").to_pylist()


samples_once = functools.cache(samples)

LINKS = "align.table=links.csv", "align.columns={photos: pictures}", "align.encoding=latin-1", "align.group=[]"
LINKS = (*LINKS, "align.columns.recordings=pictures")
SEVERAL = ("align.columns.photos=pictures;questions",)
HELD = "align.group=[]", "align.held_out=[speaker]"
ALIGN: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "on": ((), ("align.on=time",)),
    "table": ((), LINKS),
    "columns": (LINKS, (*LINKS, "align.columns.photos=questions", "align.columns.questions=pictures")),
    "delimiter": (LINKS, (*LINKS, "align.delimiter=;")),
    "quote": (LINKS, (*LINKS, "align.quote=y")),  # yes: a quote without its end
    "rows": ((*LINKS, "align.table=links.json", "align.rows=a"), (*LINKS, "align.table=links.json", "align.rows=b")),
    "missing": (LINKS, (*LINKS, "align.missing=no")),
    "encoding": (LINKS, (*LINKS, "align.encoding=utf-8")),
    "id": (LINKS, (*LINKS, "align.id=number")),
    "label": ((), ("align.label=speaker",)),
    "group": ((), ("align.group=[]",)),
    "held_out": ((), HELD),
    "test_values": (HELD, (*HELD, "align.test_values={speaker: [speaker1]}")),
    "require": ((), ("align.require=[image]",)),
    "max_per_key": ((), ("align.max_per_key=0",)),
    "several": ((*LINKS, *SEVERAL, "align.several={image: 2}"), (*LINKS, *SEVERAL)),
    "split": ((), ("align.split.train=0.3",)),
    "pairing": ((), ("align.pairing={by: {photos: speaker}}",)),
}
PAIRING = {
    "by": (("align.pairing={by: {photos: speaker}}",), ("align.pairing={by: {photos: answer}}",)),
    "draw": (("align.pairing={by: {photos: speaker}}",), ("align.pairing={draw: once, by: {photos: speaker}}",)),
}
SPLIT = {
    "column": ((), ("align.split={column: speaker}",)),
    "train": ((), ("align.split.train=0.3",)),
    "validation": ((), ("align.split.validation=0.35",)),
    "seed": ((), ("align.split.seed=1",)),
}


@pytest.mark.parametrize(
    "case",
    [*ALIGN.values(), *SPLIT.values(), *PAIRING.values()],
    ids=[*ALIGN, *(f"split.{n}" for n in SPLIT), *(f"pairing.{n}" for n in PAIRING)],
)
def test_a_setting_of_align_changes_the_samples(cleaned, monkeypatch, case):
    monkeypatch.setenv("TRIPTYCH_HOME", str(cleaned.parent.parent / "home"))
    before, after = (samples_once(cleaned, *overrides) for overrides in case)
    assert isinstance(before, list) and before != after


def test_max_missing_decides_in_the_training_split_too(cleaned, monkeypatch):
    monkeypatch.setenv("TRIPTYCH_HOME", str(cleaned.parent.parent / "home"))
    samples(cleaned)
    project = load(cleaned)
    lake = pipeline.open_lake(project)
    pipeline.write_dataset(lake, project)
    assert check_null_rates(lake, project).passed
    assert not check_null_rates(lake, load(cleaned, ["align.max_missing=0.1"])).passed
    # A fifth of all lacks a picture; of the training rows now all do.
    rows = lake.read("dataset")
    split, ids = rows["split"], rows["image_id"]
    blank = pc.if_else(pc.equal(split, "train"), None, ids)
    lake.replace("dataset", rows.set_column(rows.column_names.index("image_id"), "image_id", blank))
    result = check_null_rates(lake, load(cleaned, ["align.max_missing=0.9"]))
    assert not result.passed and result.metadata["mostly_missing"].value == ["image"]


def test_allow_shared_decides_what_blocks(cleaned, monkeypatch):
    monkeypatch.setenv("TRIPTYCH_HOME", str(cleaned.parent.parent / "home"))
    samples(cleaned)
    project = load(cleaned)
    lake = pipeline.open_lake(project)
    assert check_leakage(lake, project).passed
    rows = lake.read("samples").to_pylist()
    one, other = (next(r for r in rows if r["split"] == split and r["image_id"]) for split in ("train", "test"))
    other["image_id"] = one["image_id"]
    lake.replace("samples", pa.Table.from_pylist(rows, SAMPLES))
    assert not check_leakage(lake, project).passed
    assert not check_leakage(lake, load(cleaned, ["align.allow_shared=speech"])).passed
    allowed = check_leakage(lake, load(cleaned, ["align.allow_shared=image"]))
    assert allowed.passed and allowed.metadata["shared_image"].value == 1


# Sources


@pytest.fixture
def silo(tmp_path: Path) -> Path:
    for folder in ("media", "other"):
        (tmp_path / folder).mkdir()
        for n in range(3):
            (tmp_path / folder / f"{n}.bin").write_bytes(f"{folder} {n}".encode())
    rows = ["id,file,when,number,note", *(f"k{n},{n}.bin,2024-01-0{n + 1},170000000{n},grün {n}" for n in range(3))]
    (tmp_path / "list.csv").write_text("\n".join(rows), "utf-8")
    (tmp_path / "again.csv").write_text("\n".join(rows[:2]), "utf-8")
    (tmp_path / "gone.csv").write_text("\n".join([*rows[:2], "k3,gone.bin,2024-01-05,1700000009,x"]), "utf-8")
    items = [{"id": f"k{n}", "file": f"{n}.bin", "note": "x"} for n in range(2)]
    (tmp_path / "list.json").write_text(json.dumps({"a": items, "b": items[:1]}))
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "one.bin").symlink_to(tmp_path / "media" / "1.bin")
    table = pa.table(
        {"id": ["k0", "k1"], "when": ["2024-01-01", "2024-01-02"], "number": ["1700000000", "1700000001"]}
        | {"media": [b"one", b"two"], "other": [b"3", b"4"]}
    )
    pq.write_table(table, tmp_path / "list.parquet")
    pq.write_table(table.slice(1), tmp_path / "again.parquet")
    return tmp_path


def listed(root: Path, **values: Any) -> Any:
    try:
        result = scan(SourceSettings.of(name=values.pop("name", "silo"), **values), root)
    except ValueError as error:
        return str(error)
    return result.rows.to_pylist(), result.quarantine.to_pylist()


FILES = {"modality": "image", "files": "media"}
LISTED = {**FILES, "table": "list.csv", "key": "id", "file": "file"}
NOTES = {"modality": "text", "table": "list.csv", "column": "note", "key": "id"}
MEDIA = {"modality": "image", "table": "list.parquet", "column": "media", "key": "id"}
SOURCES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "FilesSource.files": (FILES, {"files": "other"}),
    "FilesSource.table": (LISTED, {"table": "again.csv"}),
    "FilesSource.key": (LISTED, {"key": "when"}),
    "FilesSource.file": (LISTED, {"file": "id"}),
    "FilesSource.time": (LISTED, {"time": "when"}),
    "FilesSource.path": (FILES, {"path": "{number}"}),
    "FilesSource.follow_links": ({**FILES, "files": "links"}, {"follow_links": True}),
    "FilesSource.sha256": (FILES, {"sha256": "0" * 64}),
    "FilesSource.encoding": (LISTED, {"encoding": "utf-16"}),
    "FilesSource.columns": (LISTED, {"columns": ("id", "file", "a", "b", "c")}),
    "FilesSource.delimiter": (LISTED, {"delimiter": ";"}),
    "FilesSource.quote": (LISTED, {"quote": "g"}),
    "FilesSource.rows": ({**LISTED, "table": "list.json", "rows": "a"}, {"rows": "b"}),
    "FilesSource.missing": (LISTED, {"missing": ["grün 1"]}),
    "TableSource.table": (NOTES, {"table": "again.csv"}),
    "TableSource.key": (NOTES, {"key": "when"}),
    "TableSource.column": (NOTES, {"column": "file"}),
    "TableSource.time": (NOTES, {"time": "when"}),
    "TableSource.encoding": (NOTES, {"encoding": "latin-1"}),
    "TableSource.columns": (NOTES, {"columns": ("id", "a", "b", "c", "note")}),
    "TableSource.delimiter": (NOTES, {"delimiter": ";"}),
    "TableSource.quote": (NOTES, {"quote": "g"}),
    "TableSource.rows": ({**NOTES, "table": "list.json", "rows": "a"}, {"rows": "b"}),
    "TableSource.missing": (NOTES, {"missing": "grün 1"}),
    "EmbeddedSource.table": (MEDIA, {"table": "again.parquet"}),
    "EmbeddedSource.key": (MEDIA, {"key": "when"}),
    "EmbeddedSource.column": (MEDIA, {"column": "other"}),
    "EmbeddedSource.time": (MEDIA, {"time": "when"}),
    "EmbeddedSource.missing": (MEDIA, {"missing": "k1"}),
    "FilesSource.until": ({**LISTED, "time": "when"}, {"until": "when"}),
    "FilesSource.duration": ({**LISTED, "time": "when"}, {"duration": "id"}),
    "FilesSource.zone": ({**LISTED, "time": "when"}, {"zone": "Asia/Tokyo"}),
    "FilesSource.unit": ({**LISTED, "time": "number"}, {"unit": "ms"}),
    "TableSource.until": ({**NOTES, "time": "when"}, {"until": "when"}),
    "TableSource.duration": ({**NOTES, "time": "when"}, {"duration": "id"}),
    "TableSource.zone": ({**NOTES, "time": "when"}, {"zone": "Asia/Tokyo"}),
    "TableSource.unit": ({**NOTES, "time": "number"}, {"unit": "ms"}),
    "EmbeddedSource.until": ({**MEDIA, "time": "when"}, {"until": "when"}),
    "EmbeddedSource.duration": ({**MEDIA, "time": "when"}, {"duration": "id"}),
    "EmbeddedSource.zone": ({**MEDIA, "time": "when"}, {"zone": "Asia/Tokyo"}),
    "EmbeddedSource.unit": ({**MEDIA, "time": "number"}, {"unit": "ms"}),
    "SourceSettings.name": (FILES, {"name": "other"}),
    "SourceSettings.modality": (FILES, {"modality": "speech"}),
    "SourceSettings.kind": (FILES, {"kind": "table"}),
    "SourceSettings.options": (FILES, {"files": "other"}),
    "SourceSettings.segments": ({**FILES, "modality": "speech"}, {"segments": "silence"}),
    "SourceSettings.optional": ({**FILES, "files": "nowhere"}, {"optional": True}),
    "SourceSettings.require": (LISTED, {"require": {"note": ["grün 1"]}}),
    "SourceSettings.strict": ({**LISTED, "table": "gone.csv"}, {"strict": True}),
}


@pytest.mark.parametrize("case", SOURCES.values(), ids=list(SOURCES))
def test_a_setting_of_a_source_changes_what_is_listed(silo, case):
    base, change = case
    assert listed(silo, **base) != listed(silo, **{**base, **change})


def test_noise_makes_no_sample(tiny):
    noise = "sources=[{name: photos, modality: image, files: photos}, {name: s, modality: speech, files: recordings}]"
    assert load(tiny, [noise]).noise == ()
    with pytest.raises(ProjectError, match="no speech that it could be added to"):
        load(tiny, [noise, "sources.1.use=noise"])
    both = noise.replace("}]", "}, {name: n, modality: speech, files: recordings, use: noise}]")
    project = load(tiny, [both])
    assert project.noise == ("n",) and project.modalities == ("image", "speech")


# Engines and filters


@pytest.mark.parametrize("kind", ENGINES.names())
def test_workers_work_at_once(kind):
    assert ENGINES.make(ENGINES.choose({"kind": kind, "workers": 3})).options.workers == 3
    if kind == "threads":
        together = threading.Barrier(3, timeout=20)
        engine = ENGINES.make(ENGINES.choose({"kind": kind, "workers": 3}))
        assert sorted(engine.map(lambda _: together.wait(), range(3))) == [0, 1, 2]
        alone = threading.Barrier(2, timeout=0.2)
        with pytest.raises(threading.BrokenBarrierError):
            list(ENGINES.make(ENGINES.choose({"kind": kind, "workers": 1})).map(lambda _: alone.wait(), range(2)))


def test_batches_have_the_size_that_is_set(tiny, monkeypatch):
    sizes, work = [], featurizing.process_contents

    def noted(batch: Any, **more: Any) -> Any:
        sizes.append(batch.num_rows)
        return work(batch, **more)

    monkeypatch.setattr(featurizing, "process_contents", noted)
    project = load(tiny, ["engine={batch_size: 25}"])
    lake = pipeline.open_lake(project)
    pipeline.write_manifest(lake, project)
    featurizing.process_modality(lake, project, "image")
    assert sorted(sizes) == [23, 25]
    sizes.clear()
    featurizing.process_modality(lake, project, "text")
    assert sizes == [60], "texts are small: 16 times as many"


@pytest.mark.parametrize(
    ("kind", "modality", "options"),
    [
        ("duration", "speech", {"least": 1}),
        ("duration", "speech", {"most": 1}),
        ("language", "text", {"any_of": ("en",)}),
    ],
)
def test_an_option_of_a_filter_changes_its_decision(kind, modality, options):
    other = {"any_of": ("de",)} if kind == "language" else {}
    plain, changed = (
        FILTERS.make(FILTERS.choose({"kind": kind, **values}, modality), scope=modality) for values in (other, options)
    )
    assert plain.keeps("v") != changed.keeps("v") and plain.expected() != changed.expected()


# The project

PROJECT: dict[str, tuple[str, Callable[[Project], Any]]] = {
    "name": ("name=other", lambda p: p.lake_uri),
    "sources": ("sources.0.files=elsewhere", lambda p: str(p.make_sources()["photos"])),
    "align": ("align.label=speaker", lambda p: p.align.label),
    "features": ("features.image.size=9", lambda p: featurizing.make_processor(p).fingerprint("image")),
    "limits": ("limits.max_pixels=9", lambda p: featurizing.make_processor(p).refused_fingerprint("image")),
    "filters": ("filters={image: sharpness}", lambda p: featurizing.make_step(p, "image").fingerprints),
    "duplicates": ("duplicates={image: off}", lambda p: featurizing.make_step(p, "image").fingerprints),
    "model": ("model.fusion=concat", lambda p: p.model.fusion),
    "pretraining": (
        "pretraining={epochs: 2}",
        lambda p: [a.key for a in project_definitions(p).resolve_all_asset_specs()],
    ),
    "federation": (
        "federation={silos: [a, b], silo: a, coordinator: 'http://127.0.0.1:1'}",
        lambda p: [a.key for a in project_definitions(p).resolve_all_asset_specs()],
    ),
    "training": ("training.epochs=9", lambda p: p.training.epochs),
    "evaluation": ("evaluation.sensitive=[speaker]", lambda p: p.evaluation.sensitive),
    "card": ("card.watts=65", lambda p: p.card.watts),
    "promotion": ("promotion.margin=0.1", lambda p: p.promotion.margin),
    "variants": ("variants=[int8]", lambda p: [key.path[-1] for a in model_assets(p) for key in a.keys]),
    "engine": ("engine=processes", lambda p: type(ENGINES.make(p.engine))),
    "launcher": ("launcher=no_such_module:Launcher", lambda p: p.launcher),
    "owners": ("owners=[team:vision]", lambda p: {o for a in data_assets(p) for s in a.specs for o in s.owners}),
    "memory": (
        "memory=300MB",
        lambda p: pipeline.open_lake(p).sql("SELECT current_setting('memory_limit')").to_pylist(),
    ),
    "schedule": ("schedule='1 2 * * *'", lambda p: [s.cron_schedule for s in project_definitions(p).schedules or ()]),
    "watch": ("watch=true", lambda p: [s.default_status for s in project_definitions(p).sensors or ()]),
    "data": ("data=/media", lambda p: p.data),
    "lake": ("lake=/other/lake", lambda p: pipeline.open_lake(p).uri),
    "storage_options": ("storage_options={aws_region: x}", lambda p: pipeline.open_lake(p).storage_options),
    "artifacts": ("artifacts=s3://bucket/models", lambda p: p.artifacts_uri),
    "tracking_uri": ("tracking_uri=http://127.0.0.1:1", lambda p: p.mlflow_uri),
}
SET_WHEN_READ = {"path", "home"}


@pytest.mark.parametrize(("override", "observe"), PROJECT.values(), ids=list(PROJECT))
def test_a_section_of_the_project_file_changes_what_it_configures(tiny, override, observe):
    try:
        changed = observe(load(tiny, [override]))
    except ProjectError as error:
        changed = str(error)
    assert observe(load(tiny)) != changed


SIGNED = [(m, kind) for m in SIGNATURES.kinds for kind in SIGNATURES.names(m)]
REMOTE = {"endpoint_url", "allow_private", "token_env"}  # in `test_object_store.py`, `test_web.py`, `test_web_ways.py`
OF_FILES = REMOTE | {"checksum"}  # in `test_checksums.py`


# In `tests/orchestration`: `test_alerts.py`, `test_automation.py`, `test_snapshots.py`, `test_answer_log.py`,
# `test_partitions.py`, `test_tuning.py`; and `test_feedback_end_to_end.py`.
OPERATION = {"alerts", "retries", "freshness", "automation", "keep_snapshots", "answers", "partitions", "tuning"}
OPERATION |= {"preference", "personalization"}


def test_every_field_has_a_case():
    cases = {
        **{cls: set(values) for cls, (_, values) in OPTIONS.items()},
        # The last one in `tests/training/test_back_translation.py`:
        TokensOptions: {*OPTIONS[TokensOptions][1], "back_translation"},
        # The last three in `tests/training/test_personal_data.py`:
        TextCleaning: {*OPTIONS[TextCleaning][1], "personal_data", "personal_kinds", "phone_regions"},
        MediaLimits: {"max_bytes", "max_pixels", "max_seconds", "max_characters", *DECODING},  # in `test_decoder.py`
        AlignSettings: {*ALIGN, "allow_shared", "max_missing", *REMOTE},
        SplitSettings: set(SPLIT),
        PairingSettings: set(PAIRING),
        FilesSource.Options: {name.partition(".")[2] for name in SOURCES if name.startswith("FilesSource.")} | OF_FILES,
        TableSource.Options: {name.partition(".")[2] for name in SOURCES if name.startswith("TableSource.")} | OF_FILES,
        EmbeddedSource.Options: {name.partition(".")[2] for name in SOURCES if name.startswith("EmbeddedSource.")}
        | OF_FILES,
        SourceSettings: {name.partition(".")[2] for name in SOURCES if name.startswith("SourceSettings.")} | {"use"},
        # In `test_project.py`, `test_pipeline.py`, and end to end:
        EvaluationSettings: {"sensitive", "maps", "noise"},
        # In `test_cards.py`, and end to end:
        CardSettings: {"use", "limits", "license", "license_column", "consent_column", "watts"},
        WorkerOptions: {"workers", "batch_size"},
        # In `tests/assets/test_ray.py`:
        RayEngine.Options: {"address", "workers", "batch_size", "shared_files", "gpus"},
        RangeOptions: {"least", "most"},
        LanguageOptions: {"any_of"},
        # In `tests/assets/test_near_duplicates.py`:
        **{key: {"least", "keep"} for key in (type(SIGNATURES.options(Choice(k), m)) for m, k in SIGNED)},
        SimilarityOptions: {"model", "least", "most"},  # in `test_similarity.py`
        # In `tests/training/test_pretrained.py`, `test_huggingface.py` and `test_torch_models.py`:
        EmbeddingOptions: {"model", "weights", "tokens", "layer", "batch_size"},
        ImageEmbeddingOptions: {"model", "weights", "tokens", "layer", "batch_size", "crop"},
        SpeechEmbeddingOptions: {"model", "weights", "tokens", "layer", "batch_size", "pad"},
        ProcessedOptions: {"model", "weights"},
        ProcessedImageOptions: {"model", "weights", "crop"},
        ProcessedSpeechOptions: {"model", "weights", "pad", "keep_waveform"},
        # In `tests/training/test_vectors.py` and `test_word_vectors.py`:
        VectorOptions: {"width"},
        WordVectorsOptions: {"file", "words"},
        Project: set(PROJECT) | SET_WHEN_READ | OPERATION,
    }
    for cls, names in cases.items():
        assert names == {field.name for field in dataclasses.fields(cls)}, cls
    listed = {type(FEATURIZERS.options(Choice(kind), m)) for m in FEATURIZERS.kinds for kind in FEATURIZERS.names(m)}
    listed |= {type(FILTERS.options(Choice(kind), m)) for m in FILTERS.kinds for kind in FILTERS.names(m)}
    listed |= {type(SIGNATURES.options(Choice(kind), m)) for m, kind in SIGNED}
    listed |= {type(ENGINES.options(Choice(kind))) for kind in ENGINES.names()}
    assert listed <= {*cases, WorkerOptions}
