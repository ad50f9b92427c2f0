"""Asset checks: nothing downstream runs on tables that lost items, leak, or lack what they should have."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from assets import pipeline
from assets.dataset import missing_rates, split_counts
from assets.evaluation import check_fusion
from assets.labels import disputed_inputs
from assets.lake import GROWING, Lake
from assets.leakage import leak_words, leakage, repeated
from assets.preview import markdown_table
from assets.resource import load_settings, resource_key
from assets.settings import Project
from training.schema import SPLITS, TABLES, features_schema


def asset_checks(project: Project) -> list[dg.AssetChecksDefinition]:
    """Schema of every table, item balance, leakage between splits, null rates, and whether the fusion is used."""
    tables = ["manifest", *(t for m in project.modalities for t in (f"clean_{m}", f"{m}_features"))]
    return [
        *(_check(project, table, f"{table}_schema", check_schema(table)) for table in (*tables, "samples", "dataset")),
        _check(project, "samples", "no_item_lost", check_balance),
        _check(project, "samples", "no_leakage", check_leakage),
        _check(project, "samples", "one_label_each", check_labels_agree, blocking=False),
        _check(project, "dataset", "null_rates", check_null_rates),
        _check(project, "evaluation", "fusion_is_used", check_fusion),
    ]


def _check(
    project: Project,
    asset: str,
    name: str,
    judge: Callable[[Lake, Project], dg.AssetCheckResult],
    blocking: bool = True,
) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=[project.name, asset],
        name=name,
        blocking=blocking,
        description=judge.__doc__,
        required_resource_keys={resource_key(project.name)},
    )
    def check(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        settings = load_settings(context, project.name)
        return judge(pipeline.open_lake(settings), settings)

    return check


def check_schema(name: str) -> Callable[[Lake, Project], dg.AssetCheckResult]:
    def judge(lake: Lake, project: Project) -> dg.AssetCheckResult:
        """The table on disk has exactly the declared columns and types."""
        table = lake.open(name)
        if table is None:  # nothing was ever written: every item was refused, or there is none
            return dg.AssetCheckResult(passed=True, metadata={"note": "no rows yet"})
        columns = {f.name: str(f.type) for f in pa.schema(table.schema().to_arrow())}
        declared = {f.name: str(f.type) for f in _declared(name, project)}
        same = {k: _plain(v) for k, v in columns.items()} == {k: _plain(v) for k, v in declared.items()}
        if name in GROWING:  # other kinds of features have left columns of their own
            same = all(_plain(columns.get(k, "")) == _plain(v) for k, v in declared.items())
        return dg.AssetCheckResult(
            passed=same,
            description=None if same else f"the columns of {name} are not what the schema declares",
            metadata={"columns": len(columns), "found": columns, "declared": declared},
        )

    return judge


def _declared(name: str, project: Project) -> pa.Schema:
    for modality in project.modalities:
        if name == f"{modality}_features":
            return features_schema(modality, project.features.stored(modality))
    return TABLES[name]


def _plain(kind: str) -> str:
    """A type's name without the differences that Delta Lake does not keep (large or view strings, list item names)."""
    for old, new in (("large_", ""), ("_view", ""), ("element: ", "item: "), (" not null", "")):
        kind = kind.replace(old, new)
    return kind


def check_balance(lake: Lake, project: Project) -> dg.AssetCheckResult:
    """Every listed item is in a sample, unmatched or quarantined: exactly one of them."""
    balance = pipeline.balance(lake, project)
    return dg.AssetCheckResult(passed=balance.holds, metadata=balance.metadata())


def check_leakage(lake: Lake, project: Project) -> dg.AssetCheckResult:
    """No group, and no picture, recording, near duplicate or whole input stands on two sides of a split."""
    samples = lake.read("samples")
    manifest = lake.sql("SELECT item_id, sha256, cut FROM manifest") if project.cuts else None
    near = pipeline.tying(lake.read("near_duplicates"), project)
    leaks, shared = leakage(samples, project.align, manifest, near), repeated(samples, project.align)
    metadata: dict[str, Any] = {"leaks": leaks.num_rows, **{f"shared_{m}": n for m, n in shared.items()}}
    if leaks.num_rows == 0:
        return dg.AssetCheckResult(passed=True, metadata=metadata)
    metadata["values"] = markdown_table(leaks.slice(0, 20))
    return dg.AssetCheckResult(passed=False, description=leak_words(leaks, project.align), metadata=metadata)


def check_labels_agree(lake: Lake, project: Project) -> dg.AssetCheckResult:
    """Samples of the same inputs have the same label; where not, no model can be right about all of them."""
    disputed = disputed_inputs(lake.read("samples"), project)
    return dg.AssetCheckResult(
        passed=not disputed,
        severity=dg.AssetCheckSeverity.WARN,
        description=disputed[0].message if disputed else None,
    )


def check_null_rates(lake: Lake, project: Project) -> dg.AssetCheckResult:
    """Training and test have rows, all with a label, and no modality that has a source lacks in nearly all of them."""
    dataset = lake.read("dataset")
    used = dataset.filter(pc.is_in(dataset["split"], pa.array(SPLITS)))  # what has no label yet trains nothing
    missing = missing_rates(used)
    in_training = missing_rates(used.filter(pc.equal(used["split"], "train")))
    absent = [m for m in project.modalities if max(missing[m], in_training[m]) > project.align.max_missing]
    splits = {s: n for s, n in split_counts(used).items() if s in SPLITS}
    unlabelled = used["label"].null_count
    wrong = [
        *(
            f"{m} is missing in more than {project.align.max_missing:.0%} of the samples, or of those to train on"
            + _refused_of(lake, project, m)
            for m in absent
        ),
        *(f"{split} has no rows" for split in ("train", "test") if splits[split] == 0),
        *([f"{unlabelled:,} rows have no label"] if unlabelled else []),
    ]
    return dg.AssetCheckResult(
        passed=not wrong,
        description="; ".join(wrong) or None,
        metadata={
            **{f"missing_{m}": rate for m, rate in missing.items()},
            **splits,
            "unlabelled": unlabelled,
            "mostly_missing": absent,
        },
    )


def _refused_of(lake: Lake, project: Project, modality: str) -> str:
    """How many items of a modality were refused, why, and an example, in brackets; nothing where none was."""
    rows = pipeline.quarantined(lake, project)
    rows = rows.filter(pc.and_(pc.equal(rows["modality"], modality), pc.equal(rows["outcome"], "quarantined")))
    rows = rows.filter(pc.not_equal(rows["reason"], "absent"))  # an empty cell is no fault
    if not rows.num_rows:
        return ""
    reasons = Counter(rows["reason"].to_pylist()).most_common()
    return f" ({', '.join(f'{n:,} {reason}' for reason, n in reasons)}, such as {rows['message'][0]})"
