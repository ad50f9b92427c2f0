"""Triptych in Python, for notebooks and scripts: the same as the command line, on the same state.

    import triptych

    shop = triptych.open("shop")              # a project file, its folder, or the name of a project that was run
    shop.check()                              # what a run would find
    shop.run()                                # from files to a judged model
    shop.sql("SELECT * FROM quarantine")      # an Arrow table: .to_pandas(), or polars.from_arrow(...)
    shop.model().predict(text="What is it?", image="photo.jpg")
    shop.search(image="photo.jpg")            # the nearest samples, where the output is an embedding

`shop.definitions` are Dagster's, for a code location of your own.
"""

import io
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import dagster as dg
    import pyarrow as pa

    from assets.settings import Project as Settings
    from orchestration.inspection import Check, Status
    from orchestration.run import Summary
    from orchestration.search import Found
    from orchestration.traced import Traced

__all__ = ["Model", "Project", "open"]


def open(project: str | Path, overrides: Sequence[str] = ()) -> "Project":
    """A project, by its file, its folder or the name under which it was run.

    Args:
        overrides: as `--set` takes them: ``["training.epochs=3"]``.

    Raises:
        ValueError: there is none, or its file has a mistake; the message names the key.
    """
    from orchestration.examples.layout import find_project
    from orchestration.project import load

    path, found = find_project(str(project), overrides)
    return Project(load(path, found), tuple(found))


@dataclass(frozen=True)
class Project:
    settings: "Settings"
    overrides: tuple[str, ...] = ()

    @property
    def definitions(self) -> "dg.Definitions":
        """Its assets, checks, job and schedule, to be merged with others."""
        from orchestration.definitions import project_definitions

        return project_definitions(self.settings)

    def check(self, partition: str | None = None) -> "Check":
        """What a run, or one of a partition (`run`), would find; nothing is written."""
        from orchestration import inspection

        return inspection.check(self.settings, partition=partition)

    def status(self) -> "Status":
        """Its tables, and the versions of its model."""
        from orchestration import inspection

        return inspection.status(self.settings)

    def run(self, select: str | None = None, partition: str | None = None) -> "Summary":
        """Materializes its job, or the assets of it that are named (``"samples"``, ``"dataset+"``).

        Args:
            partition: only this one of clean and feature tables, by its key, or FIRST...LAST.

        Raises:
            RuntimeError: a step failed, or a blocking check did; the message says which and why.
            ValueError: the selection names no asset, or there is no such partition.
        """
        from orchestration.run import open_instance, run_job, summary

        with open_instance(self.settings.home) as instance:
            result = run_job(self.settings, instance, select, self.overrides, partition=partition)
            return summary(self.settings, result)

    def sql(self, query: str, snapshot: str | None = None) -> "pa.Table":
        """DuckDB over its tables: manifest, clean_*, quarantine, samples, *_features, dataset.

        Args:
            snapshot: fingerprint of a dataset; the tables are those that it was made of.

        Raises:
            ValueError: there is no such snapshot.
        """
        from assets.pipeline import open_lake
        from assets.snapshots import as_of

        lake = open_lake(self.settings)
        return (lake if snapshot is None else as_of(lake, snapshot)).sql(query)

    def table(self, name: str) -> "pa.Table":
        """All rows of one table. Raises ValueError: there is none of that name."""
        from assets.pipeline import open_lake
        from training.schema import TABLES

        if name not in TABLES:
            raise ValueError(f"there is no table {name!r}; there are {', '.join(TABLES)}")
        return open_lake(self.settings).read(name)

    def search(self, k: int = 10, find: Sequence[str] = (), version: str = "champion", **inputs: Any) -> "Found":
        """The samples of its lake nearest to what is given, of a project with ``output: embedding``.

        Args:
            k: how many.
            find: the modalities that are searched; none: those that are not given.
            inputs: as `Model.predict` takes those of one row.

        Raises:
            ValueError: its model gives no embeddings, or what is given cannot be read.
        """
        from orchestration.search import search

        return search(self.settings, _files(inputs, (), self.settings.align.places), k, find, version)

    def trace(self, name: str, version: str | None = None, k: int = 5) -> "Traced":
        """From an answer, a test sample or an item to model, dataset, rows and raw files (`orchestration.traced`).

        Args:
            name: the id of an answer or a sample; of an item its id, key, hash or path.
            version: of the model whose test row a sample was; default: the champion, or the newest.
            k: how many of the nearest training rows.

        Raises:
            ValueError: nothing is called that, or there is no such version.
        """
        from orchestration.trace import trace

        return trace(self.settings, name, version, k)

    def model(self, version: str = "champion") -> "Model":
        """A registered version of its model, by number or alias. Raises ValueError: there is none."""
        from training.model_registry import find_version

        return Model(self.settings, find_version(self.settings.mlflow_uri, self.settings.name, version))


@dataclass(frozen=True)
class Model:
    settings: "Settings"
    version: str

    def predict(self, rows: Any = None, /, best: int = 5, **inputs: Any) -> Any:
        """The answer to one row, or the answers to many, as dicts: prediction, probability, best, model_version, ...

        A picture that is drawn is a PIL image, speech its samples and their rate.
        Many rows are answered by one start of the model: ask them together.

        Args:
            rows: a data frame, or mappings, with columns text, image and speech, and those that `model.prompt` names;
                what is absent is None or NaN.
            best: how many of the most probable answers come with each.
            inputs: of one row: text="...", and image and speech as a file's name, its bytes, or: a picture as a PIL
                image or an array (H, W, 3) of uint8; a recording as an array of samples and its rate in Hz; vectors
                as a list or an array of floats; of several in a row (`align.several`) a list of these
                (of vectors, too: a sequence is then an array of two dimensions, or a list in that list),
                or of views a mapping: image={"front": ..., "left": ...}; and a string or number of each column that
                the prompt names.

        Raises:
            ValueError: not one of the rows can be answered; an input is nothing of these.
        """
        from orchestration.predict import answer
        from training.media_files import python_object

        if (rows is None) == (not inputs):
            raise ValueError("give rows, or the inputs of one: text=..., image=..., speech=...")
        many = [inputs] if rows is None else rows.to_dict("records") if hasattr(rows, "to_dict") else list(rows)
        columns, places = self.settings.asked_columns, self.settings.align.places
        answers = answer(self.settings, [_files(row, columns, places) for row in many], self.version, best)
        if self.settings.make_output().answers_with:
            answers = [row | {"prediction": python_object(row["prediction"])} for row in answers]
        return answers[0] if rows is None else answers


def _files(row: Mapping[str, Any], columns: Sequence[str], several: Collection[str]) -> dict[str, Any]:
    """With media as names or bytes of files, and columns as strings.

    Args:
        several: the modalities of which a row may have several.
    """
    from training.catalog import MODALITIES

    known = (*MODALITIES.names(), *columns)
    if unknown := row.keys() - set(known):
        raise ValueError(f"{', '.join(sorted(unknown))}: no input; there are {', '.join(known)}")
    return {
        name: _cell(value) if name in columns else _file(name, value, name in several) for name, value in row.items()
    }


def _cell(value: Any) -> str | None:
    """As a table has it: a whole number is whole, though a data frame with gaps holds it as a float."""
    if value is None or value != value:  # NaN
        return None
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _is_content(value: Any, in_several: bool) -> bool:
    """Whether it is one of several: a text, picture or recording, or, where there may be several, a vector or sequence
    of vectors; not a number, nor else a vector of a sequence."""
    if in_several and (isinstance(value, list) or hasattr(value, "__array__")):
        return getattr(value, "ndim", 1) > 0
    return (
        isinstance(value, str | bytes | Path | tuple)
        or hasattr(value, "save")
        or str(getattr(value, "dtype", "")) == "uint8"
    )


def _file(name: str, value: Any, several: bool = False) -> Any:
    if value is None or (isinstance(value, float) and value != value):  # NaN of a data frame
        return None
    if isinstance(value, bytes | Path):
        return value
    if isinstance(value, Mapping):
        return {view: file for view, one in value.items() if (file := _file(name, one)) is not None}
    if isinstance(value, str):
        from orchestration.predict import file_of

        return file_of(name, value)
    contents = [one for one in value if one is not None] if isinstance(value, list) else []
    if contents and all(_is_content(one, several) for one in contents):
        return [_file(name, one) for one in contents]
    if isinstance(value, list) or getattr(value, "dtype", None) in ("float16", "float32", "float64"):
        import numpy as np

        return json.dumps(np.asarray(value).tolist())
    buffer = io.BytesIO()
    if hasattr(value, "save"):  # PIL
        value.save(buffer, "PNG")
    elif isinstance(value, tuple) and len(value) == 2:
        import soundfile

        soundfile.write(buffer, *value, format="WAV", subtype="FLOAT")
    elif hasattr(value, "__array__"):
        import PIL.Image

        PIL.Image.fromarray(value).save(buffer, "PNG")
    else:
        raise ValueError(f"{name} is a {type(value).__name__}: expected a file's name, bytes, a picture or a recording")
    return buffer.getvalue()
