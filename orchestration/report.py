"""The HTML report of a project: one file that says what the model is worth, on what, and why; pictures inside."""

import base64
import importlib.metadata
import importlib.resources
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, select_autoescape

from assets.cards import DATA_CARD, MODEL_CARD
from assets.evaluation import STANDINGS
from assets.labels import label_rows
from assets.lake import Lake
from assets.settings import AlignSettings, Project
from assets.time_report import TimeReport
from assets.trust import TRUST_PICTURES, fairness_words
from orchestration.inspection import status
from training.bootstrap import p_value, p_words
from training.files import write_text
from training.records import Fairness, Standing
from training.schema import SPLITS
from training.settings import MediaLimits, ModelSettings, PromotionSettings, TrainingSettings
from training.validation import to_dict

PICTURES = {
    "subsets": "By the inputs that the model is given. All bars are over the same test rows: where a row has none of "
    "the inputs, the most frequent answer of training counts. Lines at the ends are 95 % intervals.",
    "confusion": "Labels (rows) and answers (columns) of the test set, in numbers of test rows; blue is right.",
    "learning": "Loss on training and validation rows, and the metric on validation rows, over the optimizer's steps.",
    "fairness": "What the model is worth to each group of the sensitive columns, and how much more than to all others, "
    "with 95 % intervals. Grey: too few rows to be compared.",
    "calibration": "How often answers are right (95 % intervals) by how sure they are said to be, in 15 bins of equal "
    "width, of which the error (ECE) is the mean gap to the dotted line. Slices of 20 rows or more, the worst first.",
    "noise": "What the model is worth as one modality of the test rows that have it gets noisier, with 95 % intervals; "
    "the area under a curve is the figure without noise where noise changes nothing.",
    "examples": "Some test samples as the model sees them, with its answer: blue where it is the label.",
}


def write_report(project: Project, path: Path) -> Path:
    """Writes the report, and beside it the cards of model and data; returns its path. It tells of the champion, or of
    the newest version."""
    from assets.pipeline import open_lake
    from training.runs import find_artifact

    state, lake = status(project), open_lake(project)
    chosen = next((m for m in state.models if "champion" in m["aliases"]), next(iter(state.models), None))
    environment = Environment(autoescape=select_autoescape(default=True), trim_blocks=False)
    environment.filters["p_value"] = p_value
    environment.filters["capitalize_first"] = lambda words: words[:1].upper() + words[1:]
    page = environment.from_string((importlib.resources.files("orchestration") / "report.html").read_text("utf-8"))
    untold = {"lead": ["There is no model yet."], "settings": _settings(project, None)}
    told = _told(project, state.models, chosen) if chosen else untold
    words = page.render(
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        release=importlib.metadata.version("triptych"),
        state=state,
        chosen=chosen,
        **told,
        **_labels(lake, project),
        **timing(lake),
        **_refused(lake, project),
    )
    write_text(path, words)
    for name in (MODEL_CARD, DATA_CARD):
        if chosen and (card := find_artifact(project.mlflow_uri, chosen["run_id"], name)) is not None:
            write_text(path.with_name(name), card.decode())
    return path


def _told(project: Project, models: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What MLflow knows of the version."""
    from training import runs

    uri, run_id = project.mlflow_uri, chosen["run_id"]
    facts = runs.run_facts(uri, run_id)
    nothing = {"metric": chosen["metric"], "standings": [], "note": None}
    evaluated = runs.find_json(uri, run_id, STANDINGS) or nothing
    standings = [Standing.from_json(standing) for standing in evaluated["standings"]]
    lead = [verdict_sentence(chosen, standings, evaluated["metric"])]
    if (newest := models[0])["version"] != chosen["version"]:
        why = next(iter(newest["reasons"]), "the gate has not judged it")
        lead.append(f"Version {newest['version']}, the newest, did not take its place: {why}.")
    metric = next((m for m in project.make_output().metrics if m.name == evaluated["metric"]), None)
    names = [name for name in PICTURES if name not in TRUST_PICTURES or evaluated.get(name)]
    png = {name: base64.b64encode(runs.read_artifact(uri, run_id, f"{name}.png")).decode() for name in names}
    return {
        "lead": lead,
        "facts": facts,
        "standings": standings,
        "metric": evaluated["metric"].replace("_", " ").capitalize(),
        "direction": "more is better" if metric is None or metric.higher_is_better else "less is better",
        "note": evaluated["note"],
        "coverage": evaluated.get("coverage", []),
        "outputs": evaluated.get("outputs", []),
        "calibration": evaluated.get("calibration", []),
        "fairness": [(one, fairness_words(one)) for one in map(Fairness.from_json, evaluated.get("fairness", []))],
        "pictures": [{"title": name, "caption": PICTURES[name], "png": data} for name, data in png.items()],
        "settings": _settings(project, facts.parameters),
    }


def verdict_sentence(model: Mapping[str, Any], standings: Sequence[Standing], metric: str) -> str:
    """What a version is worth beside its strongest rival, and whether it is champion.

    Args:
        standings: the majority answer's, then the baselines'; empty where it was not evaluated beside them.
        metric: that they are of.
    """
    title = "is champion" if "champion" in model["aliases"] else "is not champion"
    if not standings:
        return f"Version {model['version']} {title}; it was not evaluated beside its baselines."
    strongest = min((s for s in standings if s.answered or s.own_rows), key=lambda standing: standing.all.difference)
    rival = "the majority answer" if strongest.name == "majority" else f"its own {strongest.name} baseline"
    figures, p = strongest.all, ""
    if figures.difference < 0:
        came = f"lost to {rival}"
    elif figures.difference == 0:
        came = f"is no better than {rival}"
    elif figures.better:
        came, p = f"beats {rival}, the best of its rivals", f" ({p_words(figures.p)})"
    else:
        came, p = f"is ahead of {rival}, but not by enough to be sure", f" ({p_words(figures.p)})"
    sentence = (
        f"The fused model (version {model['version']}) {came}: test {metric.replace('_', ' ')} {figures.a:.3f} against "
        f"{figures.b:.3f} on the same {figures.rows:,} rows{p}"
    )
    own = strongest.answered
    if own is not None and own.rows < figures.rows:
        sentence += f", {own.a:.3f} against {own.b:.3f} on the {own.rows:,} that {strongest.name} can answer"
    return f"{sentence}. It {title}."


def _settings(project: Project, parameters: Mapping[str, str] | None) -> dict[str, Any]:
    """Key path -> value of what is not default; of model and training as a version was made, if that is known."""
    from training.tracking import flat

    made = {"model": to_dict(ModelSettings()), "training": to_dict(TrainingSettings())}
    usual = {key: str(value) for key, value in flat(made)}
    if parameters is None:
        now = {"model": to_dict(project.model), "training": to_dict(project.training)}
        parameters = {key: str(value) for key, value in flat(now)}
    sources = {f"sources.{source.name}": source.modality for source in project.sources}
    changed = {key: value for key, value in parameters.items() if "." in key and usual.get(key) != value}
    parts = {"align": AlignSettings(), "limits": MediaLimits(), "promotion": PromotionSettings()}
    defaults = dict(flat({name: to_dict(settings) for name, settings in parts.items()}))
    present = dict(flat({name: to_dict(getattr(project, name)) for name in parts}))
    rest = {key: value for key, value in present.items() if value != defaults.get(key)}
    words = {key: ", ".join(map(str, value)) if isinstance(value, list) else value for key, value in rest.items()}
    filters = {f"filters.{m}": ", ".join(map(str, choices)) for m, choices in project.filters.items()}
    return {**sources, **words, **dict(flat({"features": project.features.plain()})), **filters, **changed}


def _labels(lake: Lake, project: Project) -> dict[str, Any]:
    """How often each label stands in each split, the most frequent first."""
    if lake.version("dataset") is None:
        return {"labels": []}
    dataset = lake.read("dataset")
    rows = label_rows(dataset, project.make_output()).to_pylist()
    splits = [split for split in (*SPLITS, "unlabelled") if any(row["split"] == split for row in rows)]
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        counts.setdefault("(none)" if row["label"] is None else row["label"], Counter())[row["split"]] += 1
    labels = sorted(counts.items(), key=lambda pair: (-pair[1].total(), pair[0]))
    return {
        "labels": labels,
        "splits": splits,
        "totals": Counter(dataset["split"].to_pylist()),
        "unseen": sum(count["test"] for _, count in labels if not count["train"]),
        "dataset": lake.note("dataset").get("fingerprint"),
    }


def timing(lake: Lake) -> dict[str, Any]:
    """How items were matched in time, if they were."""
    found = TimeReport.read(lake)
    if found is None:
        return {"timing": None}
    png = found.picture()
    return {"timing": found, "differences": png and base64.b64encode(png).decode()}


def _refused(lake: Lake, project: Project) -> dict[str, Any]:
    """What did not pass, and why."""
    from assets.pipeline import quarantined
    from orchestration.dropped import dropped

    refused = quarantined(lake, project)
    return {"losses": dropped(lake, project, refused), "refused": refused.num_rows}
