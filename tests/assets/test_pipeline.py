"""The data side over several runs: nothing is made twice, nothing is lost, and a project may move."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import duckdb
import pyarrow as pa
import pytest
from deltalake import CommitProperties, write_deltalake

from assets import contents, featurizing, known_files, pipeline
from assets.asset_checks import check_balance, check_schema
from assets.item_warnings import item_warnings
from assets.lake import MEMORY_LIMIT, Lake
from assets.settings import Project
from assets.unchanged import code
from orchestration.project import load
from training import personal_data
from training.cache import open_table
from training.spec import plan_runs

BIG = {"clean_text", "clean_image", "clean_speech", "text_features", "image_features", "speech_features"}
AUGMENTED = ["features.speech.keep_waveform=true", "training.augmentation.speech={noise_snr_db: [0, 10]}"]


class Ran(NamedTuple):
    """What one pass over the data side did."""

    processed: dict[str, int]  # by modality
    quarantined: dict[str, int]
    versions: dict[str, int | None]  # of the tables; quarantine is written in every run
    samples: str  # fingerprint
    dataset: str


def run(path: Path, *overrides: str, between: Callable[[], object] = lambda: None) -> Ran:
    """All steps in order, and the balance of items, which has to hold after each run.

    Args:
        between: done after the manifest is written and before its items are read.
    """
    project = load(path, overrides)
    lake = pipeline.open_lake(project)
    listing = pipeline.write_manifest(lake, project)
    assert listing.seen == listing.listed + listing.refused
    between()
    counts = {m: featurizing.process_modality(lake, project, m) for m in project.modalities}
    samples = pipeline.write_samples(lake, project).fingerprint
    dataset = pipeline.write_dataset(lake, project)
    balance = check_balance(lake, project)
    assert balance.passed, balance.metadata
    return Ran(
        {m: count["processed"] for m, count in counts.items()},
        {m: count["quarantined"] for m, count in counts.items()},
        {name: lake.version(name) for name in (*BIG, "manifest", "samples", "dataset")},
        samples,
        dataset.fingerprint,
    )


def rows(path: Path, query: str) -> list[dict]:
    return pipeline.open_lake(load(path)).sql(query).to_pylist()


def quarantine(path: Path) -> Counter:
    return Counter((row["stage"], row["outcome"], row["reason"]) for row in rows(path, "FROM quarantine"))


def test_a_first_run_gives_every_item_an_outcome_and_a_second_makes_nothing(tiny):
    first = run(tiny)
    assert first.processed == {"text": 60, "image": 48, "speech": 47}
    refused = {
        ("manifest", "quarantined", "not_found"): 1,
        ("manifest", "duplicate", "duplicate"): 1,
        ("clean", "quarantined", "corrupt"): 1,
    }
    assert quarantine(tiny) == refused
    project = load(tiny)
    balance = check_balance(pipeline.open_lake(project), project).metadata
    expected = {"image_seen": 48, "image_passed": 47, "image_quarantined": 1, "image_lost": 0}
    expected |= {"speech_seen": 49, "speech_passed": 47, "speech_quarantined": 1, "speech_duplicate": 1}
    assert expected.items() <= {name: value.value for name, value in balance.items()}.items()
    (cut,) = rows(tiny, "FROM samples WHERE sample_id = 'q05'")
    assert (cut["image_id"], cut["image_status"], cut["speech_status"]) == (None, "quarantined", "present")
    (unheard,) = rows(tiny, "FROM samples WHERE sample_id = 'q08'")
    assert (unheard["speech_id"], unheard["speech_status"], unheard["image_status"]) == (None, "quarantined", "present")

    second = run(tiny)
    assert second == first._replace(processed=dict.fromkeys(first.processed, 0)), "not even a table's version moves"
    assert quarantine(tiny) == refused, "what is bad is neither tried again nor listed twice"


def test_where_nothing_is_new_no_step_is_run_again_and_where_anything_is_they_are(tiny, monkeypatch):
    first, ran = run(tiny), []
    for name in ("scan_into", "align_items", "dataset_sql"):
        step = getattr(pipeline, name)
        told = lambda *given, n=name, s=step: (ran.append(n), s(*given))[1]  # noqa: E731
        monkeypatch.setattr(pipeline, name, told)
    none = first._replace(processed=dict.fromkeys(first.processed, 0))
    assert run(tiny) == none and ran == []
    lake = pipeline.open_lake(load(tiny))

    lake.delete("samples", "sample_id = 'q01'")
    assert run(tiny).samples == first.samples and ran == ["align_items", "dataset_sql"]
    lake.delete("manifest", "modality = 'speech'")
    ran.clear()
    assert run(tiny).dataset == first.dataset and ran == ["scan_into", "align_items"], "the same samples came of it"
    ran.clear()
    assert run(tiny).processed == none.processed and ran == []

    table = tiny.parent / "questions.csv"
    table.write_text(table.read_text().replace("Is it bright? (0)", "Is it dark? (0)"))
    assert run(tiny).processed == none.processed | {"text": 1} and ran == ["scan_into", "align_items", "dataset_sql"]
    assert rows(tiny, "SELECT count(*) AS n FROM manifest WHERE text = 'Is it dark? (0)'") == [{"n": 1}]
    ran.clear()
    assert run(tiny, "align.split={train: 0.5}").samples != first.samples and "align_items" in ran
    ran.clear()
    lake.replace("manifest", lake.sql("SELECT * REPLACE ('other' AS key) FROM manifest"))
    pipeline.write_manifest(lake, load(tiny))
    assert set(ran) == {"scan_into"}, "whatever a row has belongs to it"


def test_what_another_run_lists_meanwhile_is_not_taken_as_done(tiny, monkeypatch):
    project, table, commit = load(tiny), tiny.parent / "questions.csv", featurizing._commit
    lake = pipeline.open_lake(project)
    pipeline.write_manifest(lake, project)

    def and_another_lists(*given):
        needed = commit(*given)
        table.write_text(table.read_text().replace("Is it bright? (0)", "Is it dark? (0)"))
        pipeline.write_manifest(lake, project)
        return needed

    with monkeypatch.context() as changed:
        changed.setattr(featurizing, "_commit", and_another_lists)
        featurizing.process_modality(lake, project, "text")
    assert featurizing.process_modality(lake, project, "text")["processed"] == 1
    assert featurizing.process_modality(lake, project, "text")["processed"] == 0


def test_what_finds_personal_data_belongs_to_the_code(monkeypatch):
    before = code()
    monkeypatch.setattr(personal_data, "identity", lambda: {"python-stdnum": "another"})
    assert code() != before


def test_a_file_that_one_source_could_not_read_is_listed_anew_for_all_that_have_it(tmp_path):
    lake = Lake(str(tmp_path / "lake"))
    listed = {"item_id": ["1", "2", "3"], "source": ["a", "b", "c"], "uri": ["x.tar", "x.tar", "y.tar"]}
    lake.append("manifest", [pa.table(listed)])
    lake.append("quarantine", [pa.table({"item_id": ["1"], "source": ["a"], "uri": ["x.tar"], "stage": ["clean"]})])
    assert [known_files._passing(lake, source) for source in "abc"] == [{"x.tar"}, {"x.tar"}, set()]


@pytest.mark.parametrize("part", ["a ü b% {z}", "it's a*b"])
def test_state_may_lie_under_any_name_that_project_files_allow(tmp_path, monkeypatch, make_project, part):
    monkeypatch.setenv("TRIPTYCH_HOME", str(tmp_path / part / "home"))
    path = make_project(tmp_path / part)
    first = run(path)
    assert first.processed == {"text": 60, "image": 48, "speech": 47}
    assert run(path) == first._replace(processed=dict.fromkeys(first.processed, 0))
    assert open_table(load(path).lake_uri, "dataset").count_rows() == 60


def test_three_new_files_cost_three(tiny, make_png):
    first = run(tiny)
    before = {row["sample_id"]: row["split"] for row in rows(tiny, "FROM samples")}
    for key in ("q03", "q13", "q60"):
        make_png(tiny.parent / "photos" / f"{key}.png", int(key[1:]))
    second = run(tiny)
    assert second.processed == {"text": 0, "image": 3, "speech": 0}
    grown = {name for name, version in second.versions.items() if version != first.versions[name]}
    assert grown == {"manifest", "clean_image", "image_features", "samples", "dataset"}
    assert (second.samples, second.dataset) != (first.samples, first.dataset)
    after = {row["sample_id"]: row["split"] for row in rows(tiny, "FROM samples")}
    assert after == before | {"q60": "unlabelled"}, "splits stay put when data are added"
    assert rows(tiny, "SELECT image_status AS s FROM samples WHERE sample_id = 'q03'") == [{"s": "present"}]


@pytest.mark.slow
def test_a_setting_makes_again_what_it_concerns_and_only_once(tiny):
    first = run(tiny)
    second = run(tiny, "features.image.size=12")
    assert second.processed == {"text": 0, "image": 47, "speech": 0}, "the broken picture is not decoded again"
    assert {name for name in BIG if second.versions[name] != first.versions[name]} == {"image_features"}
    assert second.samples == first.samples
    assert second.dataset != first.dataset
    assert not any(run(tiny, "features.image.size=12").processed.values())

    strict = run(tiny, "limits.max_pixels=399")
    assert not any(strict.processed.values()), "what was decoded within a limit needs no decoding to be over another"
    refused = "SELECT stage, reason, count(*) AS n FROM quarantine WHERE modality = 'image' GROUP BY ALL ORDER BY n"
    assert [tuple(row.values()) for row in rows(tiny, refused)] == [
        ("clean", "corrupt", 1),
        ("filter", "too_large", 47),
    ]
    assert rows(tiny, "SELECT count(image_id) AS n FROM samples") == [{"n": 0}]

    back = run(tiny)
    assert not any(back.processed.values()), "what the first settings made is still there"
    assert back.quarantined["image"] == 1
    assert (back.samples, back.dataset) == (first.samples, first.dataset)


@pytest.mark.parametrize(
    ("tight", "loose", "modality", "refused"),
    [
        ("limits.max_pixels=399", "limits.max_pixels=400", "image", 48),
        ("limits.max_seconds=0.1", "limits.max_seconds=0.3", "speech", 47),
        ("limits.max_characters=16", "limits.max_characters=18", "text", 30),
    ],
)
def test_a_raised_limit_decodes_what_it_had_refused_and_no_more(tiny, tight, loose, modality, refused):
    project = load(tiny, [tight])
    lake = pipeline.open_lake(project)
    pipeline.write_manifest(lake, project)
    assert featurizing.process_modality(lake, project, modality)["quarantined"] == refused
    assert featurizing.process_modality(lake, project, modality)["processed"] == 0, "what is refused is not tried again"
    raised = load(tiny, [loose])
    counts = featurizing.process_modality(lake, raised, modality)
    assert counts["processed"] == refused
    assert counts["quarantined"] <= 1
    for more in (f"{loose.partition('=')[0]}={name}" for name in (1000, 1001)):
        assert featurizing.process_modality(lake, load(tiny, [more]), modality)["processed"] == 0


@pytest.mark.slow
def test_one_more_of_a_limit_recomputes_no_row(tiny):
    first = run(tiny)
    project = load(tiny)
    now = {"features.text.max_tokens": project.features.options("text").max_tokens}
    for name in ("max_characters", "max_pixels", "max_seconds", "max_bytes"):
        now[f"limits.{name}"] = getattr(project.limits, name)
    for limit, value in now.items():
        second = run(tiny, f"{limit}={value + 1}")
        assert not any(second.processed.values()), limit
        assert (second.samples, second.dataset) == (first.samples, first.dataset), limit
        assert {name for name in BIG if second.versions[name] != first.versions[name]} == set(), limit


def test_nothing_is_planned_on_features_of_other_settings(tiny):
    run(tiny)
    before = pipeline.plan(load(tiny))
    for change, modality in (("image.size=12", "image"), ("speech.mels=20", "speech"), ("text.form=NFKC", "text")):
        with pytest.raises(ValueError, match=f"other features of {modality} than .* materialize the features"):
            pipeline.plan(load(tiny, [f"features.{change}"]))
    silent = "sources=[{name: questions, modality: text, table: questions.csv, column: question, key: id}]"
    with pytest.raises(ValueError, match="other features of image, speech than"):
        pipeline.plan(load(tiny, [silent]))
    with pytest.raises(ValueError, match=r"\{age\}, and no sample has a column 'age'; there are file, speaker"):
        pipeline.plan(load(tiny, ["model.prompt='{text}{age}'"]))
    with pytest.raises(ValueError, match=r"evaluation.sensitive names age, and no sample has a column 'age'; there ar"):
        pipeline.plan(load(tiny, ["evaluation.sensitive=[speaker, age]"]))
    with pytest.raises(ValueError, match=r"critic: column is age, and no sample has a column 'age'; there ar"):
        pipeline.plan(load(tiny, ["training.objectives=[answer, {kind: critic, column: age}]"]))
    same = pipeline.plan(load(tiny, ["evaluation.sensitive=[speaker]"]))
    assert [run.fingerprint for run in same] == [run.fingerprint for run in before], "what is looked at trains nothing"
    applied_later = pipeline.plan(load(tiny, ["features.image.mean=0.4"]))
    assert applied_later[0].fingerprint != before[0].fingerprint


def test_a_column_that_is_the_label_is_no_part_of_a_prompt(tiny):
    table = tiny.parent / "questions.csv"
    lines = [line.rstrip() for line in table.read_text().splitlines()]
    table.write_text("".join(f"{line},{line.rpartition(',')[2] if n else 'said'}\n" for n, line in enumerate(lines)))
    run(tiny, "model.prompt='{text}{speaker}'")
    with pytest.raises(ValueError, match=r"\{said\}, which is the label in every sample: the model would read its"):
        run(tiny, "model.prompt='{text}{said}'")


def test_a_moved_project_keeps_ids_and_fingerprints(tiny, tmp_path):
    first = run(tiny)
    ids = rows(tiny, "SELECT item_id, sha256 FROM manifest ORDER BY 1")
    shutil.move(tiny.parent, tmp_path / "elsewhere")
    moved = tmp_path / "elsewhere" / tiny.name
    second = run(moved)
    assert not any(second.processed.values())
    assert (second.samples, second.dataset) == (first.samples, first.dataset)
    assert second.versions == first.versions | {"manifest": 1}
    assert rows(moved, "SELECT item_id, sha256 FROM manifest ORDER BY 1") == ids
    assert all(row["uri"].startswith(str(moved.parent)) for row in rows(moved, "FROM manifest"))


def test_tables_without_a_note_are_named_anew(tiny):
    first = run(tiny)
    lake = pipeline.open_lake(load(tiny))
    for name in ("samples", "dataset"):
        written = lake.read(name)
        shutil.rmtree(lake.table_uri(name))
        lake.replace(name, written)
    assert pipeline.write_dataset(lake, load(tiny)).fingerprint == first.dataset
    again = run(tiny)
    assert (again.samples, again.dataset) == (first.samples, first.dataset)
    assert lake.note("samples")["fingerprint"] == first.samples


def test_tables_of_an_older_version_get_the_columns_of_this_one(tiny):
    first = run(tiny)
    lake = pipeline.open_lake(load(tiny))
    for name in ("samples", "dataset"):
        older = [column for column in lake.read(name).column_names if not column.endswith("_more")]
        rows, note = lake.read(name).select(older), lake.note(name)
        shutil.rmtree(lake.table_uri(name))
        commit = CommitProperties(custom_metadata={f"triptych.{key}": value for key, value in note.items()})
        write_deltalake(lake.table_uri(name), rows, commit_properties=commit)
        assert not check_schema(name)(lake, load(tiny)).passed
    assert pipeline.write_samples(lake, load(tiny)).fingerprint == first.samples, "they are called what they were"
    assert pipeline.write_dataset(lake, load(tiny)).fingerprint == first.dataset
    assert all(check_schema(name)(lake, load(tiny)).passed for name in ("samples", "dataset"))


@pytest.mark.slow
def test_files_that_go_or_change_after_they_were_listed_are_tried_again(tiny):
    gone, changed = (tiny.parent / "photos" / f"q0{n}.png" for n in (0, 1))
    contents = {photo: photo.read_bytes() for photo in (gone, changed)}

    def meddle() -> None:
        gone.unlink()
        changed.write_bytes(b"no" + contents[changed][2:])

    lost = run(tiny, between=meddle)
    assert (lost.processed["image"], lost.quarantined["image"]) == (48, 3)
    query = "SELECT reason, message FROM quarantine WHERE stage = 'clean' AND fingerprint IS NULL ORDER BY uri"
    told = rows(tiny, query)
    assert [row["reason"] for row in told] == ["unreadable", "unreadable"]
    assert str(gone) in told[0]["message"] and str(changed) in told[1]["message"]
    states = "SELECT image_status AS s FROM samples WHERE sample_id IN ('q00', 'q01')"
    assert rows(tiny, states) == [{"s": "quarantined"}] * 2

    for photo, content in contents.items():
        photo.write_bytes(content)
    found = run(tiny)
    assert (found.processed["image"], found.quarantined["image"]) == (2, 1)
    assert rows(tiny, query) == []
    assert rows(tiny, states) == [{"s": "present"}] * 2


@pytest.mark.slow
def test_a_file_that_is_not_what_its_hash_says_is_hashed_anew(tiny):
    first, photo = run(tiny), str(tiny.parent / "photos" / "q00.png")
    lake = pipeline.open_lake(load(tiny))

    def forge() -> None:
        stale = f"SELECT * REPLACE (if(uri = '{photo}', repeat('0', 64), sha256) AS sha256) FROM manifest"
        lake.replace("manifest", lake.sql(stale))

    assert run(tiny, between=forge).quarantined["image"] == 2
    again = run(tiny)
    assert (again.quarantined["image"], again.samples) == (1, first.samples)


def test_files_may_be_mended_taken_away_and_brought_back(tiny, make_png):
    first = run(tiny)
    photo, hidden = tiny.parent / "photos" / "q00.png", tiny.parent / "q00.png"
    photo.rename(hidden)
    broken = tiny.parent / "photos" / "q05.png"
    cut = broken.read_bytes()
    make_png(broken, 5)
    second = run(tiny)
    assert (second.processed["image"], second.quarantined["image"]) == (1, 0)
    states = "SELECT image_status AS s FROM samples WHERE sample_id IN ('q00', 'q05') ORDER BY sample_id"
    assert rows(tiny, states) == [{"s": "absent"}, {"s": "present"}]

    hidden.rename(photo)
    broken.write_bytes(cut)
    back = run(tiny)
    assert not any(back.processed.values()), "both contents are known"
    assert back.quarantined == first.quarantined
    assert (back.samples, back.dataset) == (first.samples, first.dataset)


def test_why_there_are_no_samples_stands_in_quarantine(tiny):
    with pytest.raises(ValueError, match="no samples"):
        run(tiny, "limits.max_pixels=100", "align.require=[image]")
    assert sum(count for (stage, _, _), count in quarantine(tiny).items() if stage == "align") > 0


def test_two_contents_alike_are_computed_once(tiny):
    shutil.copy2(tiny.parent / "photos" / "q00.png", tiny.parent / "photos" / "q03.png")
    project: Project = load(tiny)
    assert run(tiny).processed["image"] == 48
    assert pipeline.open_lake(project).read("clean_image").num_rows == 47
    alike = rows(tiny, "SELECT count(DISTINCT image_id) AS n FROM samples WHERE sample_id IN ('q00', 'q03')")
    assert alike == [{"n": 1}]


@pytest.mark.slow
def test_media_are_held_by_their_bytes_not_by_their_number(tiny, monkeypatch):
    held, attach_data = [], contents.attach_data

    def attach(rows, sources):
        held.append((rows.num_rows, sum(rows["size"].to_pylist())))
        return attach_data(rows, sources)

    monkeypatch.setattr(contents, "_PORTION_BYTES", 5000)
    monkeypatch.setattr(contents, "attach_data", attach)
    ran = run(tiny)
    assert ran.processed == {"text": 60, "image": 48, "speech": 47}
    assert max(size for _, size in held) <= 5000 and max(count for count, _ in held) > 1
    monkeypatch.setattr(contents, "_PORTION_BYTES", 1)
    held.clear()
    assert run(tiny, "features.speech.sample_rate=8000").processed["speech"] == 47
    assert [count for count, _ in held] == [1] * 47, "an item that is larger goes alone"


def test_every_query_is_bounded_in_memory(tiny, monkeypatch):
    connect = duckdb.connect

    def bounded(**given):
        limits.append(given["config"]["memory_limit"])
        assert given["config"]["threads"] >= 1
        return connect(**given)

    limits: list[str] = []
    monkeypatch.setattr(duckdb, "connect", bounded)
    run(tiny, "memory=700MB")
    assert "700MB" in limits and set(limits) <= {"700MB", MEMORY_LIMIT}


def test_where_no_text_can_be_used_nothing_is_cut(tiny):
    (tiny.parent / "questions.csv").write_text("id,question,answer\nq01,   ,yes\n")
    project = load(tiny)
    lake = pipeline.open_lake(project)
    pipeline.write_manifest(lake, project)
    featurizing.process_modality(lake, project, "text")
    assert featurizing.cut_rows(lake, project, "text") is None


@pytest.mark.slow
def test_noise_is_prepared_with_the_speech_and_makes_no_sample(tiny, make_wav):
    before = run(tiny).samples
    (tiny.parent / "noise").mkdir()
    for number in (100, 101):
        make_wav(tiny.parent / "noise" / f"{number}.wav", number)
    (tiny.parent / "noise" / "broken.wav").write_bytes(b"no sound")
    source = "{name: noise, modality: speech, use: noise, optional: true, files: %s}"
    tiny.write_text(tiny.read_text().replace("sources:\n", f"sources:\n  - {source % 'noise'}\n", 1))
    after = run(tiny)
    assert (after.processed["speech"], after.quarantined["speech"], after.samples) == (3, 1, before)
    project = load(tiny)
    lake = pipeline.open_lake(project)
    counts = {name: value.value for name, value in check_balance(lake, project).metadata.items()}
    assert (counts["speech_seen"], counts["speech_passed"], counts["speech_quarantined"]) == (52, 49, 2)
    clips = set(pipeline.noise(lake, project)["id"].to_pylist())
    assert len(clips) == 2
    run(tiny, "filters={speech: {kind: duration, most: 0.1}}")
    short = load(tiny, ["filters={speech: {kind: duration, most: 0.1}}"])
    assert set(pipeline.noise(lake, short)["id"].to_pylist()) == clips, "filters say what samples may have"
    run(tiny, "limits.max_seconds=0.1")
    short = load(tiny, ["limits.max_seconds=0.1"])
    assert pipeline.noise(lake, short).num_rows == 0 and check_balance(lake, short).passed
    run(tiny)
    quiet = pipeline.plan(project)
    run(tiny, *AUGMENTED)
    noisy = pipeline.plan(load(tiny, AUGMENTED))
    assert all(run.noise == {} for run in quiet), "where nothing is augmented, noise is no part of a training"
    assert all(run.noise == {"speech": tuple(sorted(clips))} for run in noisy)
    fewer, more = (
        plan_runs(project.model, load(tiny, AUGMENTED).training, project.features, ["speech"], "d", {"speech": ids})
        for ids in (sorted(clips)[:1], sorted(clips))
    )
    assert fewer[0].fingerprint != more[0].fingerprint
    tiny.write_text(tiny.read_text().replace("files: noise}", "files: elsewhere}"))
    assert run(tiny).samples == before, "an optional source may be missing"


def test_a_warning_about_a_name_stays_with_the_file_and_not_with_its_content(tiny):
    photos = sorted((tiny.parent / "photos").iterdir())
    (tiny.parent / "photos" / "other.png").write_bytes(photos[0].read_bytes())
    (tiny.parent / "photos" / "other.jpg").write_bytes(photos[0].read_bytes())
    run(tiny)
    project = load(tiny)
    lake, image = pipeline.open_lake(project), project.features.modality("image")
    clean = featurizing.make_processor(project).clean_fingerprint("image")
    total, warned = item_warnings(lake, image, clean, most=5)
    assert total == 1 and Path(warned["uri"][0].as_py()).name == "other.jpg"
    assert warned["warning"].to_pylist() == ["named like JPEG, but the content is PNG"]
    assert {tuple(row["warnings"]) for row in rows(tiny, "SELECT warnings FROM clean_image")} == {()}
