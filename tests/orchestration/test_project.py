"""The project file: what is accepted, and how an error names file, key path, value and what was expected."""

import dataclasses
import re
import subprocess
import sys
import textwrap
import time
import typing
from pathlib import Path

import pytest

from assets.catalog import SOURCES
from assets.pipeline import open_lake
from assets.settings import Project
from orchestration.project import ProjectError, load
from training.catalog import FEATURIZERS, FILTERS
from training.family import Choice
from training.schema import MODALITIES
from training.settings import LlmSettings

GOOD = """
name: shop
data: media
sources:
  - {name: photos, modality: image, files: "${data}/photos", table: photos.csv, key: file}
  - {name: reviews, modality: text, table: reviews.csv, column: review, key: id}
align: {label: answer, split: {train: 0.7, validation: 0.1}}
training: {epochs: 2, report_to: tensorboard}
"""
VECTORS = ["features.image={kind: vector, width: 4}", "features.text={kind: vector, width: 4}"]


def write(folder: Path, text: str) -> Path:
    path = folder / "project.yaml"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def test_reads_a_project_and_its_overrides(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIPTYCH_HOME", str(tmp_path / "home"))
    path = write(tmp_path, GOOD)
    project = load(path, ["training.epochs=5", "sources.0.files=elsewhere", "model.fusion=concat"])
    assert project.training.epochs == 5
    assert project.training.report_to == ("tensorboard",)
    assert project.sources[0].files == ("elsewhere",)
    assert str(project.model.fusion) == "concat"
    assert project.modalities == ("text", "image")
    assert project.root == tmp_path
    assert project.lake_uri == str(tmp_path / "home" / "projects" / "shop" / "lake")
    assert project.mlflow_uri == f"sqlite:///{tmp_path}/home/mlflow.db"
    assert load(tmp_path).sources[0].files == ("media/photos",)


def test_local_models_lie_relative_to_the_project_file(tmp_path, monkeypatch):
    for name in ("project", "models/gpt", "tiny", "bytes"):
        (tmp_path / name).mkdir(parents=True)
    path = write(tmp_path / "project", GOOD)
    monkeypatch.chdir("/")
    project = load(path, ["model.llm=../models/gpt", "features.text.tokenizer=../models/gpt"])
    assert project.model.llm.model == project.features.options("text").tokenizer == str(tmp_path / "models" / "gpt")
    tuned = load(path, ["model.llm.model=../models/gpt", "model.llm.train=lora", "model.llm.targets=q_proj"])
    assert tuned.model.llm == LlmSettings(model=project.model.llm.model, train="lora", targets=("q_proj",))
    hub = load(path, ["model.llm=org/name", "features.text.tokenizer=org/name"])
    assert hub.model.llm.model == hub.features.options("text").tokenizer == "org/name"
    (tmp_path / "glove.txt").touch()
    words = load(path, ["features.text={kind: word_vectors, file: ../glove.txt}"])
    assert words.features.options("text").file == str(tmp_path / "glove.txt")
    (tmp_path / "weights.pth").touch()
    said = "{model: torchvision/resnet18, weights: ../weights.pth, kind: "
    read = load(path, [f"features.image={said}embedding}}", "model.encoders.image=linear"])
    stands = load(path, [f"model.encoders.image={said}huggingface}}"])
    beside = {"model": "torchvision/resnet18", "weights": str(tmp_path / "weights.pth")}
    assert read.features.plain()["image"] == {"kind": "embedding", **beside}
    assert stands.model.encoders["image"].options == beside
    assert stands.features.plain()["image"] == {"kind": "processed", **beside}
    ours = load(write(tmp_path, GOOD))
    assert (ours.model.llm.model, ours.features.options("text").tokenizer) == ("tiny", "bytes")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            ["model.output=embedding", "align.pairing={by: {photos: kind}}"],
            "align.pairing.draw is 'per_epoch', expected",
        ),
        (
            ["model.output=embedding", "model.prompt='{soft}{age}'"],
            "expected no columns: output embedding would tell rows",
        ),
        (["model.output=embedding", "training.objectives=[answer, unimodal]"], "expected others than unimodal"),
        (
            ["model.prompt='{soft}{age}'", "training.mixing=0.3", "model.output=class", *VECTORS],
            "mixing is 0.3, expected 0 beside columns",
        ),
        (
            ["features.text={personal_data: mask}", "answers={log: true, texts: true}"],
            "answers.texts is True, expected false beside features.text.personal_data: mask",
        ),
        (
            [
                "sources.0.modality=speech",
                "sources.0.segments={kind: transcript, model: ctc, text: said, unit: words}",
                "features.text={personal_data: quarantine}",
            ],
            "source 'photos': segments.unit is 'words', expected sentences beside features.text.personal_data: quarant",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, words, tmp_path):
    path = write(tmp_path, GOOD.replace("{label: answer, ", "{" if "embedding" in settings[0] else "{label: answer, "))
    with pytest.raises(ProjectError, match=words):
        load(path, settings)


def test_mlflow_moves_out_by_one_setting(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert load(write(tmp_path, GOOD)).mlflow_uri == "http://127.0.0.1:5000"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("epochs: 2", "epochs: -2"), ["training", "epochs is -2", "positive"]),
        (("epochs: 2", "epochs: soon"), ["training.epochs", "'soon'", "number"]),
        (("epochs: 2", "epoch: 2"), ["training.epoch", "did you mean epochs?"]),
        (("modality: image", "modality: video"), ["sources.0.modality", "'video'", "'text', 'image' or 'speech'"]),
        (("key: id}", "}"), ["sources.1", "reviews", "key"]),
        (("name: reviews", "name: photos"), ["sources named twice: photos"]),
        (("name: shop", "name: My Shop"), ["'My Shop'", "lower case"]),
        (("train: 0.7", "train: 1.7"), ["align.split", "1.8", "at most 1"]),
        (("${data}", "${folder}"), ["${folder}", "only ${data}"]),
        (("align:", "home: x\nalign:"), ["home is not a key"]),
        (("align:", "model: {output: embedding}\nalign:"), ["align.label is 'answer'", "from what samples have"]),
        (("align: {", "align: {pairing: {by: {pics: x}}, "), ["align.pairing.by is 'pics'", "sources of samples"]),
        (("align:", "model: {freeze_llm: true}\nalign:"), ["model.freeze_llm", "write `llm: {model: NAME_OR_FOLDER"]),
        (("align:", "model: {llm: {model: a/b, train: lora, rang: 4}}\nalign:"), ["model.llm.rang", "mean rank?"]),
        (
            ("align:", "model: {llm: {model: a/b, train: frozen, rank: 4}}\nalign:"),
            ["model.llm: rank is 4", "of train"],
        ),
        (("sources:", "sources: ["), ["not valid YAML", "line"]),
    ],
)
def test_an_error_names_file_key_value_and_expectation(tmp_path, change, words):
    assert change[0] in GOOD
    path = write(tmp_path, GOOD.replace(*change))
    with pytest.raises(ProjectError) as error:
        load(path)
    for word in [str(path), *words]:
        assert word in str(error.value)


def test_data_that_is_not_given_is_asked_for(tmp_path):
    path = write(tmp_path, GOOD.replace("data: media\n", ""))
    with pytest.raises(ProjectError, match="--set data=FOLDER"):
        load(path)
    assert load(path, ["data=/media"]).sources[0].files == ("/media/photos",)


@pytest.mark.parametrize("part", ["a[1]", "a#b", "what?", "a^b", "a|b", "a\\b", "b%20"])
def test_a_path_that_tables_cannot_lie_under_is_refused(tmp_path, monkeypatch, part):
    path = write(tmp_path, GOOD)
    with pytest.raises(ProjectError, match=r"lake is .*cannot lie under"):
        load(path, [f"lake='/data/{part}'"])
    assert load(path, [f"lake='s3://bucket/{part}'"]).lake.endswith(part)
    monkeypatch.setenv("TRIPTYCH_HOME", str(tmp_path / part))
    with pytest.raises(ProjectError, match=r"TRIPTYCH_HOME is .*cannot lie under"):
        load(path)


@pytest.mark.parametrize("override", ["training.epochs", "=3", "name.x=3", "training.epochs=[1"])
def test_a_bad_override_is_named(tmp_path, override):
    with pytest.raises(ProjectError, match="--set"):
        load(write(tmp_path, GOOD), [override])


@pytest.mark.parametrize("place", ["photos", "7", "-1"])
def test_a_place_that_a_list_has_not_is_named(tmp_path, place):
    for key in (f"sources.{place}.modality", f"sources.{place}"):
        with pytest.raises(ProjectError, match=f"'{place}' is no place in the list: .* from 0 and below 2"):
            load(write(tmp_path, GOOD), [f"{key}=text"])


def test_a_file_that_is_not_there_says_what_to_do(tmp_path):
    with pytest.raises(ProjectError, match="triptych init"):
        load(tmp_path / "none.yaml")


def test_aliases_that_stand_for_a_billion_values_are_refused_at_once(tmp_path):
    lines = ["bomb: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"bomb{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    path = write(tmp_path, "\n".join([*lines, GOOD]))
    begun = time.monotonic()
    with pytest.raises(ProjectError, match=r"project\.yaml: not valid YAML: its aliases"):
        load(path)
    assert time.monotonic() - begun < 1


@pytest.mark.parametrize("level", ["[", "- ", "{a: "])
def test_sections_without_end_in_sections_are_refused(tmp_path, level):
    path = write(tmp_path, GOOD + "limits: " + ("\n  " if level == "- " else "") + level * 100_000)
    with pytest.raises(ProjectError, match="more than 100 sections in sections"):
        load(path)


def test_references_that_stand_for_a_billion_characters_are_refused_at_once(tmp_path):
    links = [f"c{n}: '{f'${{limits.c{n - 1}}}' * 9}'" for n in range(1, 10)]
    path = write(tmp_path, GOOD + f"limits: {{c0: xxxxxxxxx, {', '.join(links)}}}")
    begun = time.monotonic()
    with pytest.raises(ProjectError, match=r"needs \$\{limits\.c1\}, which is a reference too"):
        load(path)
    wide = f"limits: {{long: {'x' * 100_000}, all: '{'${limits.long}' * 11}'}}"
    with pytest.raises(ProjectError, match="1,100,005 characters"):
        load(write(tmp_path, GOOD + wide))
    assert time.monotonic() - begun < 1


def test_aliases_and_references_save_writing(tmp_path):
    text = GOOD.replace("epochs: 2", "epochs: &few 2").replace("label: answer", "label: '${sources.1.column}'")
    project = load(write(tmp_path, text + "limits: {max_seconds: '${training.epochs}', max_pixels: *few}\n"))
    assert project.align.label == "review"
    assert (project.limits.max_seconds, project.limits.max_pixels) == (2, 2)
    assert load(project.path, ["training.epochs=7"]).limits.max_seconds == 7


def test_a_key_that_stands_twice_is_named(tmp_path):
    with pytest.raises(ProjectError, match=r"(?s)duplicate key epochs.*line 8"):
        load(write(tmp_path, GOOD.replace("epochs: 2", "epochs: 2, epochs: 3")))


@pytest.mark.parametrize(
    "value", ["${oc.env:TRIPTYCH_SECRET}", "${oc.${data}:TRIPTYCH_SECRET}", "\\${oc.env:TRIPTYCH_SECRET}", "${ data }"]
)
def test_nothing_is_read_from_the_environment(tmp_path, monkeypatch, value):
    monkeypatch.setenv("TRIPTYCH_SECRET", "hidden")
    for overrides, text in (([f"schedule={value}"], GOOD), ([], GOOD + f"schedule: '{value}'\n")):
        with pytest.raises(ProjectError, match=r"schedule is .* nothing is read from the environment") as error:
            load(write(tmp_path, text), overrides)
        assert "hidden" not in str(error.value)


@pytest.mark.parametrize("name", ["aws_secret_access_key", "AWS_ACCESS_KEY_ID", "azure_storage_sas_token", "Password"])
def test_credentials_of_the_lake_are_no_settings(tmp_path, name):
    with pytest.raises(
        ProjectError, match=f"storage_options has {name}: credentials come from the environment"
    ) as error:
        load(write(tmp_path, GOOD + f"storage_options: {{{name}: hidden}}"))
    assert "hidden" not in str(error.value)


# An object store that is empty; a process of its own, since deltalake holds the interpreter while it waits.
STORE = """
from http.server import BaseHTTPRequestHandler, HTTPServer

class Store(BaseHTTPRequestHandler):
    def do_GET(self):
        print(self.path, flush=True)
        body = b"<ListBucketResult><Name>bucket</Name><IsTruncated>false</IsTruncated></ListBucketResult>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

server = HTTPServer(("127.0.0.1", 0), Store)
print(server.server_port, flush=True)
server.serve_forever()
"""


def test_storage_options_reach_the_object_store(tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "of-the-environment")
    with subprocess.Popen([sys.executable, "-c", STORE], stdout=subprocess.PIPE, text=True) as store:
        assert store.stdout is not None
        endpoint = f"http://127.0.0.1:{store.stdout.readline().strip()}"
        options = f"{{aws_endpoint: '{endpoint}', aws_region: eu-west-1, aws_allow_http: 'true'}}"
        project = load(write(tmp_path, GOOD + f"lake: s3://bucket/tables\nstorage_options: {options}"))
        try:
            assert open_lake(project).open("manifest") is None
        finally:
            store.kill()
        assert "/bucket?" in (request := store.stdout.read()) and "manifest" in request


@pytest.fixture
def own_path(monkeypatch):
    """Reading a project with own kinds puts its folder on the path of imports: this takes it off again."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("twice_of_test", None)


def test_two_projects_do_not_have_modules_of_one_name(tmp_path, own_path):
    own = "from training.filters.size import SizeFilter\n\n\nclass Own(SizeFilter):\n    pass\n"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    paths = [write(tmp_path / name, GOOD + "filters: {image: 'twice_of_test:Own'}\n") for name in ("one", "two")]
    for path in paths:
        (path.parent / "twice_of_test.py").write_text(own)
    assert load(paths[0]).filters_of("image")
    words = f"{paths[1]}: twice_of_test:Own would be taken from {paths[0].parent}/twice_of_test.py"
    with pytest.raises(ProjectError, match=re.escape(words)):
        load(paths[1])


def test_own_code_that_cannot_be_imported_is_named_with_its_error(tmp_path, own_path):
    path = write(tmp_path, GOOD + "filters: {image: 'twice_of_test:Own'}\n")
    (path.parent / "twice_of_test.py").write_text("1 / 0\n")
    with pytest.raises(ProjectError, match=r"twice_of_test:Own', and it cannot be imported \(ZeroDivisionError"):
        load(path)


def test_a_folder_that_is_no_package_is_told(tmp_path, own_path):
    path = write(tmp_path, GOOD)
    (path.parent / "folder_of_test").mkdir()
    with pytest.raises(ProjectError, match=r"folder_of_test has no __init__.py"):
        load(path, ["model.fusion=folder_of_test.fusions:Own"])


def test_the_gates_metric_is_one_of_the_outputs(tmp_path):
    path = write(tmp_path, GOOD)
    assert load(path).promotion.metric is None
    assert load(path, ["promotion.metric=accuracy", "model.output=class"]).promotion.metric == "accuracy"
    assert load(path, ["promotion.metric=auroc", "model.output=class"]).promotion.metric == "auroc"
    words = r"promotion.metric is 'auroc', expected a metric of output text \(accuracy, token_f1, rouge_l, cer, wer, "
    with pytest.raises(ProjectError, match=words):
        load(path, ["promotion.metric=auroc"])


def test_sensitive_columns_are_no_labels_and_stand_once(tmp_path):
    path = write(tmp_path, GOOD)
    assert load(path, ["evaluation.sensitive=sex"]).evaluation.sensitive == ("sex",)
    with pytest.raises(ProjectError, match=r"evaluation.sensitive is 'answer', expected no label \(answer\)"):
        load(path, ["evaluation.sensitive=[sex, answer]"])
    with pytest.raises(ProjectError, match=r"evaluation: sensitive is 'sex', expected each column once"):
        load(path, ["evaluation.sensitive=[sex, sex]"])


def test_what_a_model_is_to_forget_is_no_label_and_is_said_of_what_it_reads(tmp_path):
    path = write(tmp_path, GOOD)

    def critic(options: str) -> list[str]:
        return [f"training.objectives=[answer, {{kind: critic, {options}}}]"]

    assert load(path, critic("column: speaker")).named_columns.keys() == {"speaker"}
    with pytest.raises(ProjectError, match=r"critic: column is 'answer', expected no label \(answer\): the model wou"):
        load(path, critic("column: answer"))
    with pytest.raises(ProjectError, match=r"critic: column is '', expected a column of the samples, such as speaker"):
        load(path, critic("strength: 2"))
    with pytest.raises(ProjectError, match=r"critic: on is 'speech', expected one of fused, "):
        load(path, critic("column: speaker, on: speech"))


def test_several_outputs_name_the_columns_that_are_answered(tmp_path):
    path = write(tmp_path, GOOD)
    outputs = "model.outputs={drink: class, price: number}"
    project = load(path, [outputs, "align.label=null", "promotion.metric=price.mae"])
    assert project.align.labels == ("drink", "price") and list(project.make_output().members) == ["drink", "price"]
    with pytest.raises(
        ProjectError, match=r"align.label is 'answer', expected nothing beside model.outputs, which names"
    ):
        load(path, [outputs, "align.label=answer"])
    with pytest.raises(ProjectError, match=r"outputs.note is 'text', expected another output beside it"):
        load(path, ["model.outputs={note: text}", "align.label=null"])
    with pytest.raises(ProjectError, match=r"output is 'class', expected nothing beside outputs"):
        load(path, [outputs, "model.output=class"])
    with pytest.raises(ProjectError, match=r"outputs is {}, expected column: kind, at least one"):
        load(path, ["model.output=several"])
    with pytest.raises(
        ProjectError, match=r"align.label is \('a', 'b'\), expected one column; name an output for each"
    ):
        load(path, ["align.label=[a, b]"])


def test_only_answers_with_a_probability_can_be_withheld(tmp_path, own_path):
    path = write(tmp_path, GOOD)
    assert load(path, ["model.abstain_below=0.6"]).model.abstain_below == 0.6
    own = "from training.outputs.base import Output\n\n\nclass Own(Output):\n    metrics = ()\n"
    (path.parent / "no_chances_of_test.py").write_text(own)
    words = "model.abstain_below is 0.6, expected 0: the answers of output no_chances_of_test:Own have no probability"
    with pytest.raises(ProjectError, match=words):
        load(path, ["model.abstain_below=0.6", "model.output=no_chances_of_test:Own"])
    with pytest.raises(ProjectError, match=r"abstain_below is 1.0, expected 0 up to"):
        load(path, ["model.abstain_below=1"])


def test_how_a_model_reads_and_writes_is_checked(tmp_path):
    path = write(tmp_path, GOOD)
    assert load(path, ["model.generation={num_beams: 4}"]).model.generation.num_beams == 4
    with pytest.raises(ProjectError, match=r"model.generation.beams: is not a key .*num_beams"):
        load(path, ["model.generation={beams: 4}"])
    with pytest.raises(ProjectError, match=r"model.generation is \{'num_beams': 4.*expected nothing: output class g"):
        load(path, ["model.generation={num_beams: 4}", "model.output=class"])
    assert load(path, ["model.llm=some-llm", "model.prompt={user: 'Look: {soft}'}"]).model.prompt.user == "Look: {soft}"
    with pytest.raises(
        ProjectError, match=r"model: prompt is 'It: \{image\}', expected \{soft\}, \{text\} and columns"
    ):
        load(path, ["model.prompt='It: {image}'"])
    assert load(path, ["model.prompt='It: {age}{text}'"]).model.columns == ("age",)
    for label in ("answer", "photos.answer"):
        with pytest.raises(
            ProjectError, match=r"model.prompt is '\{answer\}', expected no label .* what it is to answer"
        ):
            load(path, ["model.prompt='{text}{answer}'", f"align.label={label}"])


def test_contents_that_models_make_are_checked(tmp_path):
    text = GOOD.replace("{label: answer, split", "{split")
    path = write(tmp_path, text)
    project = load(path, ["model.output={kind: image, format: webp}", "features.image.size=32"])
    assert project.inputs == ("text",) and project.modalities == ("text", "image")
    assert load(path, ["model.outputs={drawn: image}"]).model.output.kind == "contents"
    for change, words in (
        (["model.output=speech"], r"model.output is 'speech', expected a source of speech"),
        (
            ["model.output=image", "align.label=answer"],
            r"align.label is .*answer.*expected nothing: output image",
        ),
        (["model.output=image", "features.image=mean"], r"features.image"),
        (["model.output=image", "features.image={kind: vector, width: 3}"], r"features.image is vector, of which no"),
        (["model.output=image", "align.several={image: 3}"], r"align.several.image is 3, expected one: a sample has"),
        (["model.output=image", "model.generation={num_beams: 2}"], r"num_beams is 2, expected 1: output image is wr"),
        (["model.output=image", "model.abstain_below=0.5"], r"abstain_below is 0.5, expected 0: the answers of output"),
        (["model.output=image", "training.mixing=1"], r"training.mixing is 1.0, expected 0"),
        (["model.outputs={drawn: image, kind: class}"], r"outputs.drawn is 'image', expected one of text, class"),
        (["model.output={kind: image, codec: {kind: vq}}"], r"codec is 'vq', expected one of autoencoder"),
    ):
        with pytest.raises(ProjectError, match=words):
            load(path, change)


def test_outputs_and_objectives_are_checked(tmp_path):
    path = write(tmp_path, GOOD)
    weighted = load(path, ["training.objectives=[{kind: answer, weight: 2}]"]).training.objectives
    assert [objective.plain() for objective in weighted] == [{"kind": "answer", "weight": 2.0}]
    with pytest.raises(ProjectError, match=r"model: output is 'txet', expected one of text, class.*did you mean text"):
        load(path, ["model.output=txet"])
    assert [o.kind for o in load(path, ["training.objectives=answer"]).training.objectives] == ["answer"]
    with pytest.raises(ProjectError, match=r"no_such_module_of_test"):
        load(path, ["model.fusion=no_such_module_of_test:Fusion"])
    with pytest.raises(ProjectError, match=r"model.output is 'json:JSONEncoder', expected a subclass"):
        load(path, ["model.output=json:JSONEncoder"])
    with pytest.raises(ProjectError, match=r"training: label_smoothing is 1.0, expected 0 up to"):
        load(path, ["training.label_smoothing=1"])
    with pytest.raises(ProjectError, match=r"training: objective is 'contrast', expected one of answer"):
        load(path, ["training.objectives=[answer, contrast]"])


def test_words_of_yaml_1_1_are_words(tmp_path):
    """on, yes and no are no truth values, 007 is no 7, and 12:30 no 750: as keys, as values, in quotes or not."""
    align = "on: key, label: yes, group: [no, Off], held_out: ['on'], test_values: {'on': [no, 007, 12:30], }"
    path = write(tmp_path, GOOD.replace("label: answer", align) + "watch: yes  # ünd on\n")
    project = load(path)
    assert (project.align.on.kind, project.align.label, project.align.group) == ("key", "yes", ("no", "Off"))
    assert project.align.test_values == {"on": ("no", "007", "12:30")}
    assert project.watch is True and load(path, ["watch=off"]).watch is False
    changed = load(path, ["align.label=no", "training.epochs=010", "filters.text={kind: language, any_of: [en, no]}"])
    assert (changed.align.label, changed.training.epochs) == ("no", 10)
    assert changed.filters["text"][0].plain() == {"kind": "language", "any_of": ["en", "no"]}
    with pytest.raises(ProjectError, match=r"(?s)duplicate key epochs.*line 8"):
        load(write(tmp_path, GOOD.replace("label: answer", align).replace("epochs: 2", "epochs: 2, epochs: 3")))


@pytest.mark.parametrize(
    ("setting", "read"),
    [
        ("align.group=who", lambda p: p.align.group),
        ("align.held_out=who", lambda p: p.align.held_out),
        ("align.require=image", lambda p: p.align.require),
        ("align.allow_shared=image", lambda p: p.align.allow_shared),
        ("training.report_to=wandb", lambda p: p.training.report_to),
        ("promotion.must_beat=champion", lambda p: p.promotion.must_beat),
        ("training.objectives=answer", lambda p: tuple(o.kind for o in p.training.objectives)),
    ],
)
def test_one_word_needs_no_list(tmp_path, setting, read):
    path = write(tmp_path, GOOD)
    assert read(load(path, [setting])) == (setting.partition("=")[2],)
    both = load(path, ["align.held_out=who", "align.test_values={who: kim}"]).align
    assert both.test_values == {"who": ("kim",)}


def test_no_list_of_words_in_the_settings_refuses_a_single_one():
    """A field that takes a tuple of strings is marked, so that a new one takes a single one, too."""
    seen: set[type] = set()
    plain: list[str] = []

    def look(kind: type) -> None:
        if kind in seen or not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
            return
        seen.add(kind)
        for name, hint in typing.get_type_hints(kind, include_extras=True).items():
            if str(hint).startswith("tuple[str, ...]"):
                plain.append(f"{kind.__name__}.{name}")
            for part in (hint, *typing.get_args(hint)):
                look(part)

    look(Project)
    for family in (FILTERS, FEATURIZERS):
        for scope in MODALITIES:
            for kind in family.names(scope):
                look(type(family.options(Choice(kind), scope)))
    for kind in SOURCES.names():
        look(SOURCES.load(kind).Options)
    assert {"AlignSettings", "TrainingSettings", "LanguageOptions"} <= {kind.__name__ for kind in seen}
    assert plain == []


def test_token_ids_are_not_mixed(tmp_path):
    path = write(tmp_path, GOOD)
    words = r"training.mixing is 0.3, expected 0 beside features.text of the form ids: vectors, pixels and our own"
    with pytest.raises(ProjectError, match=words):
        load(path, ["training.mixing=0.3", "model.output=class"])
