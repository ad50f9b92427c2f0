"""The command line: what it answers, and how it fails: one line on stderr, exit code 1, or 2 for bad usage."""

import csv
import hashlib
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from orchestration.cli import main
from orchestration.predict import _listed as listed_of
from orchestration.processes import project_lock
from orchestration.project import load
from orchestration.run import open_instance
from training.score import answers_schema

ROOT = Path(__file__).parents[2]


def triptych(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def answer(*arguments: Any) -> dict[str, Any]:
    """The JSON object that stdout ends with."""
    result = triptych(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


def error(*arguments: Any) -> str:
    """The one line that says what is wrong."""
    result = triptych(*arguments)
    assert result.exit_code == 1
    assert result.stdout == "" or arguments[0] == "check", "which first says what it found"
    assert "Traceback" not in result.stderr
    lines = result.stderr.splitlines()
    (found,) = [line for line in lines if line.startswith("Error: ")]
    assert lines[-1] == found, "it is the last that a person sees"
    assert "--debug" not in found, "what a person can mend needs no traceback"
    assert "Error" not in found.removeprefix("Error: "), "nor the name of a class"
    return found


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One TRIPTYCH_HOME for projects of several names: making a Dagster instance takes seconds."""
    home = tmp_path_factory.mktemp("shared") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIPTYCH_HOME", str(home))
        patch.setenv("DAGSTER_HOME", str(home))
        yield home


@pytest.fixture(scope="module")
def data_made(shared_home: Path, tmp_path_factory: pytest.TempPathFactory, make_project: Callable[..., Path]) -> Path:
    """A project whose data side was run."""
    path = make_project(tmp_path_factory.mktemp("made") / "project", name="made")
    told = answer("run", path, "--select", "+dataset")
    assert told["items"] == {"seen": 157, "processed": 155, "reused": 0, "quarantined": 2}
    assert sum(told["dataset"]["rows"].values()) == 60
    assert told["model"] == {"name": "made", "version": None, "aliases": []}
    assert set(told["seconds"]) == {
        *(name for m in ("text", "image", "speech") for name in (f"clean_{m}", f"{m}_features")),
        *("manifest", "samples", "dataset"),
    }
    return path


def test_help_answers_at_once():
    command = [sys.executable, "-m", "orchestration.cli", "--help"]
    spent = []
    for _ in range(3):  # processor time: the machine may be busy
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.5
    for command_name in ("init", "check", "run", "status", "report", "sql", "predict", "serve", "ui", "gc"):
        assert f"\n  {command_name} " in done.stdout


def test_a_file_that_is_not_there_is_bad_usage(tiny):
    result = triptych("predict", str(tiny), "--image", "nowhere.png")
    assert result.exit_code == 2 and "does not exist" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["frobnicate"], "No such command"),
        (["sql"], "Missing argument"),
        (["run", "--frob"], "No such option"),
        (["predict", "somewhere"], "give one or more of"),
        (["init", "somewhere", "--example", "nope"], "digits"),
    ],
)
def test_bad_usage_is_exit_code_2(tmp_path, monkeypatch, home, arguments, words):
    monkeypatch.chdir(tmp_path)
    result = triptych(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["run", "check", "status", "report", "serve", "gc"])
def test_a_project_that_is_not_there(home, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    assert "nowhere: no such file or folder" in error(command, "nowhere")
    assert "digits" in error(command, "nowhere"), "the ones that are known"


def test_a_project_file_that_is_wrong(tiny):
    good = tiny.read_text()
    tiny.write_text("name: [")
    assert f"{tiny}: not valid YAML" in triptych("run", tiny).stderr
    tiny.write_text(good.replace("learning", "learnt") + "\nlearning: {}\n")
    assert f"{tiny}: learning: is not a key that is known here" in error("run", tiny)
    tiny.write_text(good)
    assert "training.epochs: is 'x'" in error("run", tiny, "--set", "training.epochs=x")
    assert "expected cron" in error("check", tiny, "--set", "schedule=at three")
    assert triptych("run", tiny, "--set", "training.epochs=x").exit_code == 1
    told = triptych("--debug", "run", tiny, "--set", "training.epochs=x")
    assert type(told.exception).__name__ == "ProjectError", "with --debug the traceback shows"


def nothing(path: Path) -> None: ...


def empty_source(path: Path) -> None:
    for photo in (path.parent / "photos").iterdir():
        photo.unlink()


def other_keys(path: Path) -> None:
    for photo in (path.parent / "photos").iterdir():
        photo.rename(photo.with_name("photo_" + photo.name))


def no_answers(path: Path) -> None:
    table = path.parent / "questions.csv"
    table.write_text(
        "".join(line.rpartition(",")[0] + ",\n" for line in table.read_text().splitlines()).replace(
            "question,\n", "question,answer\n"
        )
    )


WRONG = {
    "empty": (empty_source, [], "source 'photos' is empty"),
    "label": (nothing, ["align.label=verdict"], "no table has a column 'verdict'; there are "),
    "unlabelled": (no_answers, [], "column 'answer' is empty in every row"),
    "keys": (other_keys, [], "no key of modality image occurs in another modality"),
    "split": (nothing, ["align.split={train: 1, validation: 0}"], "no sample in test"),
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if n % 4 else case for n, case in enumerate(WRONG)]
)
def test_what_cannot_work_ends_before_anything_trains(shared_home, tmp_path, make_project, case):
    spoil, overrides, words = WRONG[case]
    path = make_project(tmp_path / "project", name=f"wrong_{case}")
    spoil(path)
    given = [part for override in overrides for part in ("--set", override)]
    assert words in error("check", path, *given)
    assert words in error("run", path, *given)
    with open_instance(shared_home) as instance:
        (ran,) = instance.get_runs(dg.RunsFilter(job_name=f"wrong_{case}"))
        assert ran.status == dg.DagsterRunStatus.FAILURE
        done = {step.step_key for step in instance.get_run_step_stats(ran.run_id)}
    assert f"wrong_{case}__manifest" in done
    assert not {f"wrong_{case}__{asset}" for asset in ("dataset", "baselines", "model")} & done


def test_a_selection_of_what_is_not_there(data_made):
    found = error("run", data_made, "--select", "nothing")
    assert "'nothing' names no asset of made" in found
    assert "champion, clean_image, clean_speech" in found


def test_the_counts_of_a_run_are_of_this_run(data_made):
    images = ("run", data_made, "--select", "manifest,clean_image,samples")
    strict = answer(*images, "--set", "limits.max_pixels=100")
    assert strict["items"] == {"seen": 157, "processed": 0, "reused": 48, "quarantined": 49}, "a limit decodes nothing"
    again = answer(*images)
    assert again["items"] == {"seen": 157, "processed": 0, "reused": 48, "quarantined": 2}


def test_sql_as_a_table_and_as_json(data_made):
    query = "SELECT modality, count(*) AS n FROM manifest GROUP BY 1 ORDER BY 1"
    rows = [{"modality": "image", "n": 48}, {"modality": "speech", "n": 47}, {"modality": "text", "n": 60}]
    assert answer("sql", "made", query) == {"rows": rows}, "a project that was run is known by its name"
    shown = triptych("sql", data_made, query)
    assert shown.exit_code == 0
    for word in ("modality", "speech", "47"):
        assert word in shown.stdout
    (row,) = answer("sql", data_made, "SELECT pixels, length(id) AS n FROM image_features LIMIT 1")["rows"]
    assert row == {"pixels": "<256 bytes>", "n": 64}
    assert "samplez" in error_of_sql(data_made, "SELECT * FROM samplez")


def error_of_sql(path: Path, query: str) -> str:
    result = triptych("sql", path, query)
    assert result.exit_code == 1
    assert "Traceback" not in result.stderr
    return result.stderr


@pytest.mark.parametrize(
    "table",
    [
        *("manifest", "quarantine", "samples", "dataset"),
        *(name for m in ("text", "image", "speech") for name in (f"clean_{m}", f"{m}_features")),
    ],
)
def test_every_table_is_a_view_before_any_run(tiny, table):
    assert answer("sql", tiny, f"SELECT count(*) AS n FROM {table}") == {"rows": [{"n": 0}]}


def test_init_writes_a_project_that_check_accepts(home, tmp_path, make_png, make_wav):
    folder = tmp_path / "mine"
    told = triptych("init", folder)
    assert told.exit_code == 0
    assert str(folder / "project.yaml") in told.stdout
    assert "no such file or folder" in error("check", folder), "the template's files are still to be brought"
    for name, make in (("photos", make_png), ("recordings", make_wav)):
        (folder / name).mkdir()
        for n in range(40):
            make(folder / name / f"item{n}.{'png' if name == 'photos' else 'wav'}", n)
    with (folder / "notes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "note", "answer"], *([f"item{n}", "bright?", n % 2] for n in range(40))])
    told = answer("check", folder)
    assert {name: source["listed"] for name, source in told["sources"].items()} == {
        "photos": 40,
        "recordings": 40,
        "notes": 40,
    }
    assert sum(told["samples"].values()) == 40
    assert (told["refused"], told["unmatched"], told["unreadable"]) == ({}, {}, [])
    assert "exists already" in error("init", folder)


@pytest.mark.parametrize(
    ("folder", "name"),
    [("Mine-2 (new)", "mine_2_new"), ("2026", "project_2026"), ("项目", "project"), ("x" * 80, "x" * 64)],
)
def test_init_names_a_project_like_its_folder(home, tmp_path, folder, name):
    assert triptych("init", tmp_path / folder).exit_code == 0
    assert load(tmp_path / folder).name == name


def test_check_shows_what_is_refused_unmatched_and_unreadable_and_writes_nothing(tiny, home):
    told = answer("check", tiny, "--set", "align.require=[image]")
    assert told["refused"] == {"not_found": 1, "duplicate": 1}
    assert told["unmatched"] == {"requires_image": 13 + 7}  # 12 and 6 without a picture, and 1 whose is cut short
    assert any("q08.wav" in message for message in told["refused_examples"])
    (unreadable,) = told["unreadable"]
    assert "q05.png" in unreadable
    shown = triptych("check", tiny, "--set", "align.require=[image]").stdout
    for word in ("2 refused", "1 not_found", "q08.wav", "requires_image", "q05.png", "samples: "):
        assert word in shown
    assert [path.name for path in home.iterdir()] == ["mlflow.db"]


def test_check_looks_at_items_of_every_kind_all_over_a_source(tiny, make_png):
    photos = tiny.parent / "photos"
    for n in range(100):
        make_png(photos / f"q{n:03}.png", n)
    for n in range(12):
        (photos / f"z{n}.TXT").write_text("no picture")
    (photos / "Thumbs.db").write_bytes(b"none either")
    kinds = answer("check", tiny)["sources"]["photos"]["suffixes"]
    assert {k: (v["items"], v["decoded"], v["unreadable"]) for k, v in kinds.items()} == {
        ".png": (148, 45, 0),
        ".txt": (12, 3, 3),
        ".db": (1, 1, 1),
    }
    assert "Thumbs.db" in kinds[".db"]["example"]
    shown = triptych("check", tiny).stdout
    assert "161 items, 0 refused; 148 .png, 12 .txt, 1 .db; decoded 49 of 161" in shown
    assert "cannot be read: 3 of 3 decoded .txt (12 in all), such as" in shown
    assert triptych("check", tiny).stdout == shown, "the same items every time"


def test_check_says_what_is_odd_about_keys_and_labels(tiny):
    table = tiny.parent / "questions.csv"
    table.write_text(table.read_text().replace("q00,", "Q00,").replace(",yes", ",Yes", 1))
    shown = triptych("check", tiny, "--set", "model.output=class")
    assert shown.exit_code == 0
    said = "source questions: 7 of 60 keys occur in no other modality, such as 'Q00', 'q09', 'q19'"
    assert f"{said}; of these 1 would match without case ('Q00' and 'q00')" in shown.stdout
    assert "labels that may mean one class are several: 'yes'" in shown.stdout
    told = answer("check", tiny, "--set", "model.output=class")
    assert {"unmatched_keys", "labels_alike", "rare_class"} <= {finding["code"] for finding in told["findings"]}


def test_check_blocks_what_a_run_would_block(tiny):
    photos = sorted((tiny.parent / "photos").glob("*.png"))
    for photo in photos[10:]:
        photo.write_bytes(photos[0].read_bytes())
    assert "of image stands on more than one side of a split" in error("check", tiny)
    assert "align.group: [speaker, image_id]" in error("check", tiny)
    assert triptych("check", tiny, "--set", "align.allow_shared=image").exit_code == 0


def test_a_part_of_a_run_ends_with_the_dataset_that_is_there(data_made):
    told = answer("run", data_made, "--select", "manifest")
    assert sum(told["dataset"]["rows"].values()) == 60
    assert f"Dataset {told['dataset']['fingerprint']} (" in triptych("run", data_made, "--select", "manifest").stdout


def test_status_before_any_run(tiny):
    told = answer("status", tiny)
    assert (told["project"], told["tables"], told["models"]) == ("tiny", {}, [])
    shown = triptych("status", tiny)
    assert "no model yet" in shown.stdout
    assert shown.stderr == ""


def test_status_of_what_was_made(data_made):
    tables = answer("status", data_made)["tables"]
    assert tables["samples"]["rows"] == 60
    assert tables["image_features"]["rows"] == 47


def test_predict_before_any_champion(tiny):
    assert "tiny has no model yet" in error("predict", tiny, "--text", "Is it bright?")


def test_layers_that_are_not_there_end_a_run_before_anything_is_read(tiny, tmp_path):
    from transformers import GPT2Config

    GPT2Config(n_embd=8, n_head=2, n_layer=1, vocab_size=9).save_pretrained(tmp_path / "llm")
    (tmp_path / "llm" / "model.safetensors").touch()
    llm = f"model.llm={{model: {tmp_path / 'llm'}, train: lora, targets: q_proj}}"
    for command in ("check", "run"):
        assert "model.llm: targets q_proj: no layer is called so" in error(command, tiny, "--set", llm)
    assert not (load(tiny).folder / "lake").exists()


def test_nothing_is_collected_while_a_run_is_at_work(tiny):
    with project_lock(load(tiny)):
        assert "a run of tiny is at work" in error("gc", tiny)
    assert triptych("gc", tiny).exit_code == 0


def test_a_problem_is_said_after_what_was_refused(tiny):
    result = triptych("check", tiny, "--set", "align.split={train: 1, validation: 0}")
    assert result.exit_code == 1
    assert "2 refused" in result.stdout
    assert "no sample in test" in result.stderr
    for setting, words in (
        ("model.output=number", "the label 'no' in split train is none of output number: it is no number"),
        ("training.report_to=nothing", "training.report_to is nothing: nothing is not supported, only"),
        ("training.vocabulary=99", "vocabulary is 99, expected at least 259"),
        ("training={early_stopping: 1, evaluations: 2}", "early_stopping is set, and no sample is in validation"),
    ):
        alone = "align.split={train: 0.8, validation: 0}"
        assert words in error("check", tiny, "--set", setting, "--set", alone)
    assert "no sample has a column 'age'; there are file, speaker" in error(
        "check", tiny, "--set", "model.prompt='{text}{age}'"
    )


def test_a_table_that_cannot_be_asked_is_named(tiny):
    photo, other, lost = tiny.parent / "photos" / "q00.png", tiny.parent / "other.csv", tiny.parent / "lost.csv"
    other.write_text("picture\na.png\n")
    lost.write_text("image\nphotos/q00.png\nphotos/none.png\n")
    assert f"{photo}: a table ends in one of .csv" in error("predict", tiny, "--table", photo)
    assert "other.csv: has columns picture, expected one of text, image, speech" in error(
        "predict", tiny, "--table", other
    )
    assert "lost.csv line 3: image" in error("predict", tiny, "--table", lost)


@pytest.fixture
def champion(monkeypatch, tmp_path):
    """A champion that reads every picture but those that begin with a q."""
    batches = []

    def answer_rows(model: Path, rows: pa.RecordBatchReader) -> pa.Table:
        batches.extend(rows)
        images = [image for batch in batches for image in batch["image"].to_pylist()]
        sure = {"prediction": "yes", "probability": 0.75, "best": [{"answer": "yes", "probability": 0.75}]}
        told = [{"error": "image: no picture"} if image[:1] == b"q" else sure for image in images]
        return pa.Table.from_pylist(told, answers_schema(pa.string()))

    values = {"find_version": "1", "local_model": tmp_path, "version_tags": {"dataset_fingerprint": "d"}}
    for name, value in values.items():
        monkeypatch.setattr(f"training.model_registry.{name}", lambda *given, value=value: value)
    monkeypatch.setattr("training.score.answer_rows", answer_rows)
    monkeypatch.setattr("assets.contents._PORTION_BYTES", 100)
    return batches


def test_predict_answers_what_it_can_and_names_the_rest(tiny, champion):
    photos, table = tiny.parent / "photos", tiny.parent / "ask.csv"
    names = ["q00.png", "broken.png", "q01.png"]
    (photos / "broken.png").write_text("q")
    table.write_text("image\n" + "".join(f"photos/{name}\n" for name in names))
    told = triptych("predict", tiny, "--table", table)
    assert (told.exit_code, told.stdout) == (1, "yes\n\nyes\n")
    assert told.stderr.endswith(f"Error: row 2 cannot be answered: image {photos / 'broken.png'}: no picture\n")
    assert [image.as_py() for batch in champion for image in batch["image"]] == [
        (photos / n).read_bytes() for n in names
    ]
    assert len(champion) > 1, "media are read in portions"
    champion.clear()
    as_json = triptych("predict", tiny, "--table", table, "--json")
    assert as_json.exit_code == 1
    origin = {"model_version": "1", "dataset_fingerprint": "d"}
    sure = {"probability": 0.75, "abstained": False, "best": [{"answer": "yes", "probability": 0.75}]}
    unsure = {"probability": None, "abstained": False, "best": []}
    yes = {"prediction": "yes", **sure, **origin}
    no = {"prediction": None, **unsure, **origin, "error": "image: no picture"}
    assert json.loads(as_json.stdout) == {"predictions": [yes, no, yes]}
    champion.clear()
    tiny.write_text(tiny.read_text().replace("model: {", "model: {prompt: '{text}{age}', "))
    assert triptych("predict", tiny, "--image", photos / names[0], "--column", "age=63").exit_code == 0
    table.write_text(f"image,age,weight\nphotos/{names[0]},64,1\nphotos/{names[0]},,1\n")
    triptych("predict", tiny, "--table", table)
    given = [cell.as_py() for batch in champion for cell in batch["attributes"]]
    assert given == ['{"age": "63"}', '{"age": "64"}', "{}"]
    says = "--column 'weight=1': expected NAME=VALUE with a column that model.prompt names (age)"
    assert says in error("predict", tiny, "--text", "x", "--column", "weight=1")
    champion.clear()
    broken = photos / "broken.png"
    assert error("predict", tiny, "--image", broken) == f"Error: image {broken}: no picture"
    for columns, says in (
        ("text,imge", "the column 'imge' is none that is read: did you mean 'image'?"),
        ("a,b", "has columns a, b, expected one of text, image, speech"),
    ):
        table.write_text(f"{columns}\nx,y\n")
        assert says in error("predict", tiny, "--table", table)
    assert "ask.csv is no project file, which is YAML" in error("predict", table, "--text", "x")


def test_answers_are_logged_under_an_id_where_the_project_file_says_so(tiny, champion):
    photo, broken = tiny.parent / "photos" / "q00.png", tiny.parent / "photos" / "broken.png"
    broken.write_text("q")
    assert "answer_id" not in answer("predict", tiny, "--image", photo, "--text", "Is it?")["predictions"][0]
    assert answer("sql", tiny, "SELECT * FROM answers")["rows"] == [], "off, unless somebody says so"
    champion.clear()
    tiny.write_text(tiny.read_text() + "answers: {log: true}\n")
    (told,) = answer("predict", tiny, "--image", photo, "--text", "Is it?")["predictions"]
    (row,) = answer("sql", tiny, "SELECT * EXCLUDE (time) FROM answers")["rows"]
    inputs = [("text", b"Is it?"), ("image", photo.read_bytes())]
    assert row == {
        "answer_id": told["answer_id"],
        "model_version": "1",
        "dataset_fingerprint": "d",
        "subset": "text+image",
        "inputs": [{"name": n, "sha256": hashlib.sha256(data).hexdigest(), "text": None} for n, data in inputs],
        "prediction": '"yes"',
        "probability": 0.75,
        "best": told["best"],
        "adapter": None,
        "x_m": None,
    }
    marked = answer("feedback", tiny, told["answer_id"], "wrong", "--answer", "no")
    assert (marked["answer_id"], marked["answer"]) == (told["answer_id"], "no")
    shown = triptych("feedback", tiny, told["answer_id"], "right", "--by", "ann").stdout
    assert shown == f"answer {told['answer_id']} is right (by ann)\n"
    assert "tiny has given no answer 'nobody'" in error("feedback", tiny, "nobody", "right")
    champion.clear()
    assert triptych("predict", tiny, "--image", photo).stderr.rstrip().endswith(f"answer {newest_answer(tiny)})")
    tiny.write_text(tiny.read_text().replace("log: true", "log: true, texts: true"))
    champion.clear()
    table = tiny.parent / "ask.csv"
    table.write_text(f"text,image\nIs it high?,{photo}\nIs it?,{broken}\n")
    assert triptych("predict", tiny, "--table", table).exit_code == 1
    (row,) = answer("sql", tiny, "SELECT inputs FROM answers WHERE len(inputs) = 2 ORDER BY answer_id DESC LIMIT 1")[
        "rows"
    ]
    assert [one["text"] for one in row["inputs"]] == ["Is it high?", None]
    assert answer("sql", tiny, "SELECT count(*) AS n FROM answers")["rows"] == [{"n": 3}], "a refusal is no answer"
    tiny.write_text(tiny.read_text().replace("log: true", "log: false"))
    assert "answers: texts is True, expected false, unless `log` is true" in error("status", tiny)


def newest_answer(project: Path) -> str:
    return answer("sql", project, "SELECT max(answer_id) AS id FROM answers")["rows"][0]["id"]


@pytest.mark.parametrize(
    ("cell", "names"),
    [
        ("a.jpg", ["a.jpg"]),
        ("a.jpg; b.jpg", ["a.jpg", "b.jpg"]),
        ('["a.jpg", null, "b;c.jpg"]', ["a.jpg", "b;c.jpg"]),
        ("[1.5, 2]", ["[1.5, 2]"]),
        ("[1] x.jpg", ["[1] x.jpg"]),
        ("[" * 5000, ["[" * 5000]),
    ],
)
def test_a_cell_of_a_table_names_one_or_several(cell, names):
    assert listed_of(cell, "image") == names
