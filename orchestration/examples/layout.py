"""Finds the project that a command means, and lays out a built-in example where that is what it means."""

import importlib
import importlib.resources
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from orchestration.project import ProjectError, home, load
from orchestration.proposal import Proposal, propose
from orchestration.registration import registered
from training.files import write_text

EXAMPLES = ("digits", "spoken_digits", "drive", "mirror")
_MADE = ("digits", "drive", "mirror")  # those whose data a module of this folder makes
_PROJECT_FILES = (".yaml", ".yml", ".json")
_DATA = "\n# Where the media lie.\n"


def find_project(name: str, overrides: Sequence[str]) -> tuple[Path, tuple[str, ...]]:
    """The project file behind a path, a folder, a registered project's name or an example's name.

    Paths in ``data=`` are relative to the current folder, as a person at a command line expects.

    Raises:
        ProjectError: it is none of these.
    """
    overrides = tuple(
        f"data={Path(value[5:]).resolve()}" if value.startswith("data=") else value for value in overrides
    )
    path = Path(name)
    if path.is_file() and path.suffix.lower() not in _PROJECT_FILES:
        raise ProjectError(f"{path} is no project file, which is YAML: name one, its folder, or a project that was run")
    if path.exists():
        return path, overrides
    if name in EXAMPLES:
        data = next((value[5:] for value in overrides if value.startswith("data=")), None)
        return lay_out(name, home() / "examples" / name, data, overrides), overrides
    known = registered(home())
    if name in known:
        return known[name], overrides
    names = ", ".join(dict.fromkeys([*known, *EXAMPLES]))
    raise ProjectError(f"{name}: no such file or folder, and no project of that name; known are {names}")


def lay_out(name: str, folder: Path, data: str | None = None, overrides: Sequence[str] = ()) -> Path:
    """Writes an example's project file into `folder`, and the data it makes itself; what is there already stays.

    Args:
        data: the folder of media that the example reads, for one that brings none of its own; written into the
            project file, too, unless somebody has edited that.
        overrides: of this run; who is held out decides which questions can be asked.

    Raises:
        ValueError: the example needs `data`, or cannot use what is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "project.yaml"
    text = (importlib.resources.files("orchestration") / "examples" / f"{name}.yaml").read_text()
    untouched = re.escape(text) + rf"({_DATA}data: .*\n)?"
    if not target.exists() or (data is not None and re.fullmatch(untouched, target.read_text())):
        if data is not None:
            text += f"{_DATA}data: {yaml.safe_dump(data).splitlines()[0]}\n"
        write_text(target, text)
    if name in _MADE:
        importlib.import_module(f"orchestration.examples.{name}").generate(folder / "data")
    else:
        from orchestration.examples.questions import generate_questions

        project = load(target, overrides if data is None else [*overrides, f"data={data}"])
        media = Path(project.data or "")
        tables = (media / "handwriting.csv", media / "recordings.csv")
        generate_questions(*tables, folder / "questions.csv", project.align)
    return target


def write_template(folder: Path, data: Path | None = None) -> tuple[Path, bool]:
    """A commented project file, named like its folder; says whether it proposes sources for media and tables that lie
    there, or in the folder `data`.

    Raises:
        ProjectError: there is a project file already.
    """
    target = folder / "project.yaml"
    if target.exists():
        raise ProjectError(f"{target} exists already: edit it, or choose another folder")
    text = (importlib.resources.files("orchestration") / "examples" / "template.yaml").read_text()
    name = re.sub(r"[^a-z0-9]+", "_", folder.resolve().name.lower()).strip("_")
    if not name[:1].isalpha():
        name = f"project_{name}".rstrip("_")
    text = text.replace("name: my_project ", f"name: {name[:64]} ")
    where = (data or folder).resolve()
    elsewhere = where != folder.resolve()
    if (proposal := propose(where, "${data}/" if elsewhere else "") if where.is_dir() else None) is not None:
        text = _filled(text, proposal)
        if elsewhere:
            text += f"{_DATA}data: {yaml.safe_dump(str(where)).splitlines()[0]}\n"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(target, text)
    return target, proposal is not None


def _filled(template: str, proposal: Proposal) -> str:
    """The template with the sources and the alignment of a proposal."""
    head, tail = template.split("# Where things are.")[0], template[template.index("# Which items are good enough") :]
    lines = ["# Guessed from what lies there: correct what is wrong. Silos stay as they are.", "sources:"]
    lines += [f"  - {source}" for source in proposal.sources]
    lines += [f"  # not used: {' '.join(note.split())}" for note in proposal.notes]
    lines += ["", "# How items become samples: those with the same key.", "align:"]
    lines += [f"  {line}" for line in proposal.align]
    tail = tail.replace("output: text #", f"output: {proposal.output} #")
    return head + "\n".join(lines) + "\n\n" + tail
