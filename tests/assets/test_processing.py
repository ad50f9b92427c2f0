"""One batch in, three tables out: nothing lost, nothing made twice, every refusal says which file and what to do."""

import hashlib
import io
import pickle
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.processing import PARTS, Outcome, Step
from training.features import FeatureSettings
from training.featurizers.log_mel import LogMelFeaturizer
from training.media import MediaError
from training.processor import Processor
from training.recordings import Speech
from training.schema import CLEAN, MANIFEST, MODALITIES, QUARANTINE, features_schema, tensor
from training.settings import MediaLimits
from training.spectra import speech_spectra

PROCESSOR = Processor(
    FeatureSettings(image={"size": 8}, speech={"sample_rate": 8000, "max_seconds": 0.2}),
    MediaLimits(),
)


def png(value: int = 9, **options: Any) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (12, 10), (value, 0, 0)).save(buffer, "PNG", **options)
    return buffer.getvalue()


def wav(seconds: float = 0.1, level: float = 0.5) -> bytes:
    buffer = io.BytesIO()
    samples = level * np.sin(np.arange(round(8000 * seconds)))
    soundfile.write(buffer, samples, 8000, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def batch(modality: str, *contents: bytes | None, clean: bool = True, features: bool = True) -> pa.RecordBatch:
    """Manifest rows as the reader hands them over."""
    suffix = "wav" if modality == "speech" else "png"
    places = [
        {"item_id": f"item{i}", "source": "silo", "uri": "data/silo.tar", "member": f"folder/{i}.{suffix}"}
        for i in range(len(contents))
    ]
    need = ["clean"] * clean + ["features"] * features
    rows = [
        {
            **places[i],
            "modality": modality,
            "sha256": hashlib.sha256(content or b"").hexdigest(),
            "text": content.decode() if modality == "text" and content is not None else None,
            "data": content,
            "data_error": None if content is not None else "cannot be read: gone",
            "parts": [{**places[i], "need": need}],
        }
        for i, content in enumerate(contents)
    ]
    schema = MANIFEST
    for name, type in (("data", pa.large_binary()), ("data_error", pa.string())):
        schema = schema.append(pa.field(name, type))
    schema = schema.append(pa.field("parts", PARTS))
    return pa.RecordBatch.from_pylist(rows, schema)


def run(modality: str, *contents: bytes | None, **need: bool) -> Outcome:
    outcome = Step(modality, PROCESSOR)(batch(modality, *contents, **need))
    assert outcome.items == len(contents)
    assert outcome.clean.schema == CLEAN[modality]
    assert outcome.features.schema == features_schema(modality, PROCESSOR.featurizers[modality].tensors)
    assert outcome.quarantine.schema == QUARANTINE
    return outcome


GOOD = {"text": b"What do you see?", "image": png(), "speech": wav()}


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_good_item_gives_its_clean_and_its_feature_row(modality: str) -> None:
    outcome = run(modality, GOOD[modality])
    clean, features = outcome.clean, outcome.features
    digest = hashlib.sha256(GOOD[modality]).hexdigest()
    row, feature = clean.to_pylist()[0], features.to_pylist()[0]
    assert features.num_rows == len(PROCESSOR.features.rows(modality))
    assert (row["id"], row["parent_id"], row["fingerprint"]) == (digest, digest, PROCESSOR.clean_fingerprint(modality))
    assert (feature["id"], feature["fingerprint"]) == (digest, PROCESSOR.fingerprint(modality))
    if modality == "text":
        assert (row["text"], row["language"], row["content_words"]) == ("What do you see?", "en", ["see"])
        assert tensor(feature, "input_ids", "int32").tolist() == list(GOOD["text"])
        assert feature["text"] == "What do you see?"
    elif modality == "image":
        assert (row["format"], row["mode"], row["width"], row["height"]) == ("PNG", "RGB", 12, 10)
        assert (tensor(feature, "pixels", "uint8")[0] == 9).all()
    else:
        assert (row["format"], row["sample_rate"], row["channels"], row["frames"]) == ("WAV", 8000, 1, 800)
        assert row["seconds"] == pytest.approx(0.1)
        assert row["rms"] == pytest.approx(0.5 / 2**0.5, abs=0.01)
        assert tensor(feature, "log_mel", "float32").shape == (11, 64)
        assert "waveform" not in feature


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize(("need_clean", "need_features"), [(True, False), (False, True), (False, False)])
def test_only_what_is_needed_is_made(modality: str, need_clean: bool, need_features: bool) -> None:
    outcome = run(modality, GOOD[modality], clean=need_clean, features=need_features)
    rows = len(PROCESSOR.features.rows(modality))
    assert (outcome.clean.num_rows, outcome.features.num_rows) == (need_clean, need_features * rows)
    assert outcome.quarantine.num_rows == 0


def test_of_several_feature_rows_only_those_that_lack_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    speech = Processor(FeatureSettings(speech={"keep_waveform": True}), MediaLimits())
    rows = batch("speech", wav(), wav(0.2)).to_pylist()
    whole = Step("speech", speech)(batch("speech", wav(), wav(0.2))).features
    rows[0]["parts"][0]["need"] = ["features waveform"]
    monkeypatch.setattr("training.featurizers.log_mel.speech_spectra", alone := Calls(speech_spectra))
    made = Step("speech", speech)(pa.RecordBatch.from_pylist(rows, batch("speech", wav()).schema)).features
    assert made.equals(pa.concat_tables([whole.slice(2, 1), whole.slice(3)])), "of the second all three"
    assert [len(waveforms) for waveforms, _ in alone.given] == [1], "no spectrum is made where none is asked for"


class Calls:
    """A function that keeps what it was given."""

    def __init__(self, function: Any) -> None:
        self.function, self.given = function, list[Any]()

    def __call__(self, *given: Any) -> Any:
        self.given.append(given)
        return self.function(*given)


def test_bad_items_go_to_quarantine_and_the_others_pass() -> None:
    outcome = run("image", png(1), png()[:40], b"", b"no picture", png(2))
    assert outcome.clean.num_rows == outcome.features.num_rows == 2
    rows = outcome.quarantine.to_pylist()
    assert [row["item_id"] for row in rows] == ["item1", "item2", "item3"]
    assert [row["reason"] for row in rows] == ["corrupt", "empty", "unsupported"]
    for row in rows:
        assert (row["stage"], row["outcome"], row["modality"]) == ("clean", "quarantined", "image")
        assert row["fingerprint"] == PROCESSOR.clean_fingerprint("image")
        assert row["message"].startswith(f"{row['uri']}/{row['member']}: ")
        assert len(row["sha256"]) == 64
    assert "convert it to JPEG or PNG" in rows[2]["message"]


def test_refused_while_only_features_were_wanted() -> None:
    row = run("image", b"no picture", clean=False).quarantine.to_pylist()[0]
    assert (row["stage"], row["fingerprint"]) == ("featurize", PROCESSOR.fingerprint("image"))


def test_what_could_not_be_read_is_tried_again() -> None:
    outcome = run("speech", None, wav())
    (row,) = outcome.quarantine.to_pylist()
    assert (row["reason"], row["fingerprint"]) == ("unreadable", None)
    assert "gone" in row["message"]
    assert outcome.clean.num_rows == 1


def test_a_text_that_memory_does_not_suffice_for_is_refused_until_limits_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any) -> Any:
        raise MemoryError("9 GB")

    monkeypatch.setattr(PROCESSOR.modalities["text"], "decode", full)
    (row,) = run("text", b"long").quarantine.to_pylist()
    assert row["reason"] == "too_large" and "limits." not in row["message"]
    assert row["fingerprint"] in Step("text", PROCESSOR).parts()


def test_a_fault_of_the_code_names_the_item(monkeypatch: pytest.MonkeyPatch) -> None:
    def divided(self: object, modality: str, images: list[Any], tensors: Any) -> list[Any]:
        return [{"pixels": np.full((1, 2, 2), 1 // (9 - int(image.array.max())), np.uint8)} for image in images]

    monkeypatch.setattr(Processor, "featurize_all", divided)
    with pytest.raises(RuntimeError, match=r"data/silo.tar/folder/0.png: ZeroDivisionError"):
        run("image", png(9))


def test_what_is_featurized_together_is_as_if_each_were_alone() -> None:
    contents = [wav(0.01 + 0.05 * n, 0.1 + 0.01 * n) for n in range(30)]
    together = run("speech", *contents).features
    assert together.equals(pa.concat_tables(run("speech", content).features for content in contents))


def test_one_of_several_that_has_no_features_is_refused_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def blank(featurizer: LogMelFeaturizer, contents: list[Speech]) -> list[Any]:
        return [
            row if len(row["log_mel"]) > 5 else MediaError("no_samples", "blank")
            for row in all_of(featurizer, contents)
        ]

    all_of = LogMelFeaturizer.featurize_all
    monkeypatch.setattr(LogMelFeaturizer, "featurize_all", blank)
    outcome = run("speech", wav(0.1), wav(0.02), wav(0.2))
    assert (outcome.clean.num_rows, outcome.features.num_rows) == (3, 2 * 2)
    (row,) = outcome.quarantine.to_pylist()
    assert (row["item_id"], row["stage"], row["reason"]) == ("item1", "featurize", "no_samples")
    assert row["fingerprint"] == PROCESSOR.fingerprint("speech")


def test_warnings_stand_in_the_clean_table() -> None:
    assert "silence" in run("speech", wav(0.5, 0)).clean["warnings"][0].as_py()[0]
    assert run("speech", wav()).clean["warnings"][0].as_py() == []


def test_the_step_can_be_sent_to_another_process() -> None:
    step = pickle.loads(pickle.dumps(Step("image", PROCESSOR)))
    rows = batch("image", png())
    assert step(rows) == Step("image", PROCESSOR)(rows)


@settings(max_examples=60, deadline=None)
@given(
    modality=st.sampled_from(MODALITIES),
    kinds=st.lists(
        st.tuples(st.sampled_from(["good", "bad", "empty", "gone"]), st.booleans(), st.booleans()), max_size=6
    ),
)
def test_every_item_has_exactly_one_outcome(modality: str, kinds: list[tuple[str, bool, bool]]) -> None:
    bad = b"\x00\x01" if modality == "text" else b"neither picture nor sound"
    contents = {"good": GOOD[modality], "bad": bad, "empty": b"", "gone": None}
    rows = [batch(modality, contents[kind], clean=c, features=f) for kind, c, f in kinds]
    if not rows:
        return
    table = pa.concat_batches(rows)
    names = pa.array([f"item{i}" for i in range(len(kinds))])
    parts = [[parts[0] | {"item_id": f"item{i}"}] for i, parts in enumerate(table["parts"].to_pylist())]
    table = table.set_column(0, "item_id", names)
    table = table.set_column(table.num_columns - 1, "parts", pa.array(parts, PARTS))
    outcome = Step(modality, PROCESSOR)(table)
    good = [(c, f) for kind, c, f in kinds if kind == "good"]
    assert outcome.clean.num_rows == sum(c for c, _ in good)
    assert outcome.features.num_rows == sum(f for _, f in good) * len(PROCESSOR.features.rows(modality))
    refused = [f"item{i}" for i, (kind, _, _) in enumerate(kinds) if kind != "good"]
    assert sorted(outcome.quarantine["item_id"].to_pylist()) == refused


def test_a_refusal_is_short_whatever_the_name() -> None:
    rows = batch("image", b"no picture").to_pylist()
    rows[0]["parts"][0]["member"] = "data:image/png;base64," + "iVBORw0KGgo" * 20_000
    (message,) = (
        Step("image", PROCESSOR)(pa.RecordBatch.from_pylist(rows, batch("image", b"").schema))
        .quarantine["message"]
        .to_pylist()
    )
    assert len(message) <= 500 and message.startswith("data/silo.tar/data:image/png")
    assert "convert it to JPEG or PNG" in message
