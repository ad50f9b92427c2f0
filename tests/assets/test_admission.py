"""Personal data do not enter the lake where they are masked; rows that permit no use are not read."""

import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets import featurizing, pipeline
from assets.admission import guard
from assets.asset_checks import check_balance
from assets.data_assets import _clean_metadata
from assets.scan import scan
from assets.source_settings import SourceSettings
from assets.sources.base import Entry
from orchestration.project import ProjectError, load
from training import personal_data
from training.processor import Processor
from training.schema import TABLES
from training.settings import TextCleaning

SECRETS = ("anna@example.org", "4111 1111 1111 1111", "+1 202-555-0143")


def data_side(project):
    lake = pipeline.open_lake(project)
    pipeline.write_manifest(lake, project)
    for modality in project.modalities:
        featurizing.process_modality(lake, project, modality)
    pipeline.write_samples(lake, project)
    pipeline.write_dataset(lake, project)
    return lake


def plant(path):
    """Personal data in three questions, in a column beside them, and in one of another source."""
    questions = path.parent / "questions.csv"
    text = questions.read_text().replace("id,question,answer", "id,question,answer,from")
    lines = [
        f"{line},{SECRETS[0] if n == 1 else 'somebody'}" if n else line for n, line in enumerate(text.splitlines())
    ]
    for n, secret in enumerate(SECRETS):
        lines[n + 1] = lines[n + 1].replace("Is it", f"Ask {secret}: is it")
    questions.write_text("\n".join(lines) + "\n")
    recordings = path.parent / "recordings.csv"
    recordings.write_text(recordings.read_text().replace("speaker0", SECRETS[2]))


def test_why_a_row_is_refused_quotes_no_personal_data(tiny, home):
    plant(tiny)
    rule = "sources.2.require={from: [somebody]}"
    lake = data_side(load(tiny, [rule, "features.text={personal_data: mask}"]))
    refused = lake.sql("SELECT message FROM quarantine WHERE reason = 'not_permitted'")["message"].to_pylist()
    name = hashlib.sha256(SECRETS[0].encode()).hexdigest()[:8]
    assert [words.partition(": ")[2] for words in refused] == [
        f"from is '[EMAIL {name}]', and the source requires somebody"
    ]
    assert holds(home / "projects", SECRETS[:1]) == []


def holds(folder, secrets):
    """Files in a folder that hold one of these, as they are."""
    return [
        path for path in folder.rglob("*") if path.is_file() and any(s.encode() in path.read_bytes() for s in secrets)
    ]


def test_masked_originals_are_nowhere_in_the_lake_and_the_server_masks_the_same(tiny, home):
    plant(tiny)
    project = load(tiny, ["features.text={personal_data: mask}"])
    lake = data_side(project)
    for name in TABLES:
        said = json.dumps(lake.sql(f"SELECT * FROM {name}").to_pylist(), default=str)
        assert not any(secret in said for secret in SECRETS), name
    assert holds(home / "projects", SECRETS) == []
    texts = lake.sql(
        "SELECT m.text AS kept, c.text AS clean FROM manifest m JOIN clean_text c ON sha256 = id"
    ).to_pylist()
    masked = sorted(row["clean"] for row in texts if "[" in row["clean"])
    assert masked == ["Ask [CARD]: is it bright? (1)", "Ask [EMAIL]: is it bright? (0)", "Ask [PHONE]: is it high? (2)"]
    assert all(row["kept"] == row["clean"] for row in texts if "[" in row["clean"])
    processor = Processor(project.features, project.limits)
    assert processor.row(text=f"Ask {SECRETS[0]}: is it bright? (0)")["text"]["text"] == masked[1]
    counts = _clean_metadata(lake, project, "text", {"processed": 0, "reused": 0, "quarantined": 0})
    assert {name: n for name, n in counts.items() if name.startswith("masked_") and n} == {
        "masked_email": 1, "masked_card": 1, "masked_phone": 1
    }  # fmt: skip
    groups = {
        json.loads(row)["speaker"]
        for row in lake.sql("SELECT groups FROM samples")["groups"].to_pylist()
        if row != "{}"
    }
    assert len(groups) == 20 and sum("[PHONE " in group for group in groups) == 1, "the group stays one"
    assert check_balance(lake, project).passed
    versions = {name: lake.version(name) for name in ("clean_text", "text_features")}
    data_side(project)
    assert {name: lake.version(name) for name in versions} == versions, "a second run makes nothing anew"


@pytest.mark.slow
def test_texts_with_personal_data_are_quarantined_without_them(tiny, home):
    plant(tiny)
    project = load(tiny, ["features.text={personal_data: quarantine, personal_kinds: [email, card]}"])
    lake = data_side(project)
    refused = lake.sql("SELECT stage, reason, message FROM quarantine WHERE reason = 'personal_data'").to_pylist()
    assert len(refused) == 2 and {row["stage"] for row in refused} == {"manifest"}
    assert any("questions.csv line 2: the text holds personal data" in row["message"] for row in refused)
    assert holds(home / "projects", SECRETS[:2]) == []
    assert check_balance(lake, project).passed
    lake = data_side(load(tiny))
    assert (
        lake.sql("SELECT count(*) AS n FROM clean_text WHERE contains(text, $s)", {"s": SECRETS[0]})["n"][0].as_py()
        == 1
    )


def test_rows_that_permit_no_use_are_quarantined_and_a_changed_rule_decodes_nothing(tiny, monkeypatch):
    recordings = tiny.parent / "recordings.csv"
    lines = recordings.read_text().splitlines()
    licences = ["licence,consent", "CC0-1.0,yes", "CC-BY-4.0,yes", "CC0-1.0,no", ",yes"]
    said = [licences[n] if n < len(licences) else "CC0-1.0,yes" for n in range(len(lines))]
    recordings.write_text("\n".join(f"{line},{more}" for line, more in zip(lines, said, strict=True)) + "\n")
    rule = "sources.1.require={licence: [CC0-1.0, CC-BY-4.0], consent: yes}"
    project = load(tiny, [rule])
    assert project.sources[1].require == {"licence": ("CC0-1.0", "CC-BY-4.0"), "consent": ("yes",)}
    lake = data_side(project)
    query = "SELECT stage, outcome, message FROM quarantine WHERE reason = 'not_permitted' ORDER BY row"
    refused = lake.sql(query).to_pylist()
    assert {(row["stage"], row["outcome"]) for row in refused} == {("manifest", "quarantined")}
    assert [row["message"].partition("wav: ")[2] for row in refused] == [
        "consent is 'no', and the source requires yes",
        "licence is empty or not there, and the source requires CC0-1.0 or CC-BY-4.0",
    ]
    assert check_balance(lake, project).passed
    stricter = load(tiny, ["sources.1.require={licence: CC0-1.0, consent: yes}"])
    lake = data_side(stricter)
    assert lake.sql(query).num_rows == 3 and check_balance(lake, stricter).passed
    version = lake.version("clean_speech")
    lake = data_side(project)
    assert lake.version("clean_speech") == version, "what is permitted again was decoded before"
    with pytest.raises(ProjectError, match="require"):
        load(tiny, ["sources.1.require={licence: []}"])


def words_of(recording: str, said: str, *, as_text: bool) -> list[Entry]:
    """As a TextGrid lists them; those of speech say their words in a column."""
    entries = []
    for n, word in enumerate(said.split(), 1):
        columns = {"file": recording, "number": str(n), "start": str(n), "end": str(n + 1), "tier": "words"}
        entry = Entry(f"{recording}{n}", f"{recording}.TextGrid", row=n, listing=f"{recording}.TextGrid line {n}")
        entry.attributes = json.dumps(columns if as_text else columns | {"text": word})
        if as_text:
            entry.text, entry.sha256 = word, hashlib.sha256(word.encode()).hexdigest()
        entries.append(entry)
    return entries


@pytest.mark.parametrize("as_text", [True, False])
def test_what_single_words_hold_together_is_masked_in_each_of_them(as_text):
    entries = [
        *words_of("a", "call +1 202 555 0143 now or 4111 1111", as_text=as_text),
        *words_of("b", "1111 1111 555 times", as_text=as_text),
    ]
    before = [entry.sha256 for entry in entries]
    guard(entries, TextCleaning(personal_data="mask"))
    said = [entry.text if as_text else json.loads(entry.attributes)["text"] for entry in entries]
    assert said == ["call", *["[PHONE]"] * 4, "now", "or", "4111", "1111", "1111", "1111", "555", "times"]
    if as_text:
        kept = [entry.sha256 == sha256 for entry, sha256 in zip(entries, before, strict=True)]
        assert kept == [word != "[PHONE]" for word in said], "another content than the same word alone"


def test_texts_with_a_part_of_personal_data_are_refused_where_they_are_to_be():
    entries = words_of("a", "it is 4111 1111 1111 1111 you know", as_text=True)
    guard(entries, TextCleaning(personal_data="quarantine"))
    assert [entry.reason for entry in entries] == [None] * 2 + ["personal_data"] * 4 + [None] * 2
    assert all(entry.text is None for entry in entries[2:6])
    message = "the text holds a part of personal data (card numbers: 1) that goes on beside it"
    assert entries[2].message == f"a.TextGrid line 3: {message}"


@settings(max_examples=100)
@given(st.lists(st.sampled_from(["one", "555", "0143", "+1", "202", "a@b.org", "x", "4111"]), max_size=9))
def test_words_of_a_recording_are_masked_no_matter_how_they_are_cut(words):
    """What is left of single words holds nothing that the joined text does not, and as many words."""
    entries = words_of("a", " ".join(words), as_text=True)
    guard(entries, TextCleaning(personal_data="mask"))
    left = [entry.text for entry in entries]
    assert len(left) == len(words) and personal_data.find(" ".join(map(str, left))) == []
    for before, after in zip(words, left, strict=True):
        assert after == before or "[" in after


def test_a_number_that_two_subtitles_divide_is_in_neither(tmp_path):
    lines = [
        "1",
        "00:00:01,000 --> 00:00:02,000",
        "call +1 202",
        "",
        "2",
        "00:00:02,500 --> 00:00:04,000",
        "555 0143 now",
    ]
    (tmp_path / "a.srt").write_text("\n".join(lines) + "\n")
    source = SourceSettings.of(name="s", modality="text", table="a.srt", column="text", key=["file", "number"])
    rows = scan(source, tmp_path, cleaning=TextCleaning(personal_data="mask")).rows
    assert rows["text"].to_pylist() == ["call [PHONE]", "[PHONE] now"]
