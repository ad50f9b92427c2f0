"""Dagster's face of the data side: the assets of one project, built from its project file."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dagster as dg
import numpy as np
import pyarrow as pa

from assets import compressing, featurizing, pipeline
from assets.dataset import split_counts
from assets.item_warnings import item_warnings
from assets.labels import label_rows, label_table
from assets.lake import Lake
from assets.partitions import PartitionSettings
from assets.preview import contact_sheet, counts_table, markdown_table, picture, table_metadata
from assets.resource import check_stores, load_settings, resource_key
from assets.settings import Project
from assets.source_settings import SourceSettings
from assets.time_report import TimeReport
from training.credentials import mask
from training.schema import MODALITIES, SCHEMA_VERSION

GPU_POOL = "gpu"  # of the steps that run networks: those of all runs take turns at the card
_OUTCOMES = ("passed", "unmatched", "quarantined", "duplicate")


def data_assets(project: Project) -> list[dg.AssetsDefinition]:
    """manifest -> clean and features of each modality -> samples -> dataset, under the project's key prefix."""
    # Upstream of them stand the sources (`source_assets`).
    modalities = (_modality_assets(project, modality) for modality in project.modalities)
    return [_manifest(project), *modalities, _samples(project), _dataset(project)]


def _common(project: Project, group: str) -> dict[str, Any]:
    """What every asset of the data side says of itself."""
    return {
        "key_prefix": [project.name],
        "group_name": f"{project.name}_{group}",
        "owners": list(project.owners),
        "code_version": str(SCHEMA_VERSION),
        "required_resource_keys": {resource_key(project.name)},
    }


def _retries(project: Project) -> dg.RetryPolicy | None:
    """Of the steps that read the sources."""
    if not project.retries.steps:
        return None
    return dg.RetryPolicy(project.retries.steps, project.retries.delay, dg.Backoff.EXPONENTIAL)


def source_assets(project: Project) -> list[dg.AssetSpec]:
    """What lies outside, and the manifest lists: one asset for each source, which Dagster shows and does not make."""
    return [
        dg.AssetSpec(
            source_key(project, source),
            description=f"{source.modality.capitalize()} as it lies outside: source {source.name} of the project file.",
            group_name=f"{project.name}_sources",
            kinds={source.modality, *(_kinds(source))},
            owners=list(project.owners),
            metadata={name: ", ".join(map(mask, places)) for name, places in _places(source).items()},
        )
        for source in project.sources
    ]


def source_key(project: Project, source: SourceSettings) -> dg.AssetKey:
    return dg.AssetKey([project.name, "sources", source.name])


def _places(source: SourceSettings) -> dict[str, tuple[str, ...]]:
    """Where it lies, as the project file says it."""
    places = {"files": source.files or (), "table": (source.table,) if source.table else ()}
    places = {name: listed for name, listed in places.items() if listed}
    return places or ({"place": (source.place,)} if source.place else {})


def _kinds(source: SourceSettings) -> list[str]:
    """What the files of a source are, by name: a folder, an archive or a table, and where they lie; else its kind."""
    if not (source.files or source.table) and source.place:
        return [source.kind.rpartition(":")[2].lower()]
    place = next((place for places in _places(source).values() for place in places), "")
    url = urlsplit(place) if "://" in place else None
    suffix = Path(url.path if url else place).suffix.lower().lstrip(".")
    return [*([url.scheme] if url else []), suffix if suffix.isalnum() else "folder"]


def _manifest(project: Project) -> dg.AssetsDefinition:
    @dg.asset(
        **_common(project, "sources"),
        kinds={"deltalake", "parquet"},
        deps=[source_key(project, source) for source in project.sources],
        description="What exists: one row per input item of every source, with its hash, size, time and place.",
        retry_policy=_retries(project),
        check_specs=[
            dg.AssetCheckSpec(
                "every_item_listed",
                asset=[project.name, "manifest"],
                blocking=True,
                description="Items found = listed + refused + duplicates.",
            )
        ],
    )
    def manifest(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        settings = load_settings(context, project.name)
        check_stores(context, settings)
        lake = pipeline.open_lake(settings)
        listing = pipeline.write_manifest(lake, settings)
        return dg.MaterializeResult(
            metadata={
                "summary": listing.words,
                **table_metadata(lake, "manifest"),
                "seen": listing.seen,
                "reused": listing.reused,
                "sources": {name: asdict(change) for name, change in listing.sources.items()},
                "changes": markdown_table(_changes_table(listing)),
                "preview": markdown_table(lake.sql("SELECT * FROM manifest ORDER BY item_id LIMIT 5")),
                "refused": markdown_table(
                    lake.sql("SELECT outcome, reason, message FROM quarantine WHERE stage = 'manifest' LIMIT 20")
                ),
            },
            check_results=[
                dg.AssetCheckResult(
                    check_name="every_item_listed",
                    passed=listing.seen == listing.listed + listing.refused,
                    metadata={"seen": listing.seen, "listed": listing.listed, "refused": listing.refused},
                )
            ],
        )

    return manifest


def _changes_table(listing: pipeline.Listing) -> pa.Table:
    """A line for each source, with where some of the items lie that are not as they were."""
    rows = []
    for name, change in listing.sources.items():
        counts = {what: getattr(change, what) for what in ("items", "new", "changed", "vanished")}
        places = {"such as": "; ".join([*change.changed_items, *change.vanished_items])}
        rows.append({"source": name} | counts | places)
    return pa.Table.from_pylist(rows)


def _samples(project: Project) -> dg.AssetsDefinition:
    key = [project.name]

    @dg.asset(
        **_common(project, "samples"),
        kinds={"deltalake", "duckdb"},
        deps=[[*key, "manifest"], *([*key, f"clean_{m}"] for m in project.modalities)],
        description="One row per sample: text, image and speech that belong together, its label and its split.",
        pool=GPU_POOL if project.pair_filters else None,
    )
    def samples(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        settings = load_settings(context, project.name)
        lake = pipeline.open_lake(settings)
        fingerprint, findings = pipeline.write_samples(lake, settings)
        for finding in findings:
            context.log.warning(finding.message)
        splits = _counts(lake, "split")
        outcomes = pipeline.balance(lake, settings).counts.values()
        timing = TimeReport.read(lake)
        return dg.MaterializeResult(
            metadata={
                "summary": ", ".join(f"{n:,} {split}" for split, n in splits.items()),
                **table_metadata(lake, "samples"),
                "fingerprint": fingerprint,
                "findings": [finding.message for finding in findings],
                **{name: sum(count[name] for count in outcomes) for name in _OUTCOMES},
                "splits": counts_table(splits, ("split", "samples")),
                "inputs": counts_table(_input_counts(lake), ("inputs present", "samples")),
                **({} if timing is None else _timing_metadata(timing)),
                "preview": markdown_table(lake.sql("SELECT * FROM samples ORDER BY sample_id LIMIT 5")),
                "filtered_items": markdown_table(
                    lake.sql("SELECT reason, message FROM quarantine WHERE stage = 'filter' ORDER BY item_id LIMIT 20")
                ),
                "unmatched_items": markdown_table(
                    lake.sql("SELECT reason, message FROM quarantine WHERE stage = 'align' ORDER BY item_id LIMIT 20")
                ),
            },
            data_version=dg.DataVersion(fingerprint),
        )

    return samples


def _timing_metadata(timing: TimeReport) -> dict[str, Any]:
    png = timing.picture()
    clocks = {"clocks": timing.clocks} if timing.clocks else {}
    pictured = {"time_differences": picture(png)} if png is not None else {}
    return {"streams": markdown_table(pa.Table.from_pylist(timing.rows())), **clocks, **pictured}


def _dataset(project: Project) -> dg.AssetsDefinition:
    key = [project.name]

    @dg.asset(
        **_common(project, "samples"),
        kinds={"deltalake"},
        deps=[[*key, "samples"], *([*key, f"{m}_features"] for m in project.modalities)],
        description="The snapshot a model is trained on: an index of samples and the features they join to.",
    )
    def dataset(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        settings = load_settings(context, project.name)
        lake = pipeline.open_lake(settings)
        snapshot = pipeline.write_dataset(lake, settings)
        rows = lake.read("dataset")
        counts = split_counts(rows)
        return dg.MaterializeResult(
            metadata={
                "summary": f"{rows.num_rows:,} rows, fingerprint {snapshot.fingerprint}",
                **table_metadata(lake, "dataset"),
                "fingerprint": snapshot.fingerprint,
                "rows": counts,
                "splits": counts_table(counts, ("split", "samples")),
                "labels": markdown_table(label_table(label_rows(rows, settings.make_output()))),
                "preview": markdown_table(lake.sql("SELECT * FROM dataset ORDER BY sample_id LIMIT 5")),
            },
            data_version=dg.DataVersion(snapshot.fingerprint),
        )

    return dataset


def _modality_assets(project: Project, modality: str) -> dg.AssetsDefinition:
    """Clean table and features of one modality: one step, so that an item is decoded once for both."""
    name = project.name
    clean, features = (dg.AssetKey([name, of]) for of in (f"clean_{modality}", f"{modality}_features"))
    cleaner, featurizer = project.features.modality(modality), project.features.featurizer(modality)

    def spec(key: dg.AssetKey, group: str, version: int, description: str) -> dg.AssetSpec:
        return dg.AssetSpec(
            key,
            deps=[[project.name, "manifest"]],
            group_name=f"{name}_{group}",
            kinds={"deltalake", modality},
            owners=list(project.owners),
            code_version=str(version),
            description=description,
        )

    @dg.multi_asset(
        name=f"{name}__{modality}",
        specs=[
            spec(clean, "clean", cleaner.version, f"Every {modality} item that could be read: {cleaner.described}."),
            spec(
                features,
                "features",
                featurizer.version,
                f"Tensors of every clean {modality} item: {featurizer.described}; keyed by content.",
            ),
        ],
        can_subset=False,
        partitions_def=project.partitions.definition() if project.partitions else None,
        # Of several partitions one pass: what they share is decoded once.
        backfill_policy=dg.BackfillPolicy.single_run() if project.partitions else None,
        required_resource_keys={resource_key(name)},
        pool=GPU_POOL if featurizer.runs_model else None,
        retry_policy=_retries(project),
    )
    def both(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
        settings = load_settings(context, name)
        lake = pipeline.open_lake(settings)
        partitions = settings.partitions
        keys = [] if partitions is None else context.partition_keys
        within = None if partitions is None else partitions.within(keys)
        counts = featurizing.process_modality(lake, settings, modality, within)
        found = {clean: _clean_metadata(lake, settings, modality, counts)}
        found[features] = _features_metadata(lake, settings, modality)
        for key, metadata in found.items():
            if partitions is None:
                yield dg.MaterializeResult(asset_key=key, metadata=metadata)
                continue
            for partition, items in _items_of(lake, partitions, modality, keys).items():
                context.add_asset_metadata({"items": items}, key, partition)
            context.add_asset_metadata(metadata, key, keys[-1])  # once, and not in each of the run's partitions
            yield dg.MaterializeResult(asset_key=key)

    return both


def _items_of(lake: Lake, partitions: PartitionSettings, modality: str, keys: Sequence[str]) -> dict[str, int]:
    """Partition -> how many items of a modality the manifest has in it."""
    known = partitions.keys()
    numbers = f"SELECT {partitions.number(len(known))} AS n FROM manifest WHERE modality = $m"
    query = f"SELECT n, count(*) AS items FROM ({numbers}) GROUP BY n"
    counts = {known[row["n"]]: row["items"] for row in lake.sql(query, {"m": modality}).to_pylist()}
    return {key: counts.get(key, 0) for key in keys}


def _clean_metadata(lake: Lake, project: Project, modality: str, counts: dict[str, Any]) -> dict[str, Any]:
    key = featurizing.make_processor(project).clean_fingerprint(modality)
    refused = featurizing.refusals(lake, project, modality).select(["reason", "message"])
    warned, warnings = item_warnings(lake, project.features.modality(modality), key, most=20)
    shown = {what: counts[what] for what in ("processed", "reused", "quarantined")}
    shown |= {"warnings": warned} if warned else {}
    return {
        "summary": ", ".join(f"{n:,} {what}" for what, n in shown.items()),
        **table_metadata(lake, f"clean_{modality}"),
        **counts,
        **_sums(lake, project, modality, key),
        "preview": markdown_table(first_rows(lake, f"clean_{modality}", key, 5)),
        "quarantined_items": markdown_table(refused.slice(0, 20)),
        "warnings": markdown_table(warnings),
    }


def _sums(lake: Lake, project: Project, modality: str, key: str) -> dict[str, int]:
    """What the modality counts in its clean rows (`Modality.counted`)."""
    if not (counted := project.features.modality(modality).counted):
        return {}
    sums = ", ".join(f"coalesce(sum({sql}), 0)::BIGINT AS {name}" for name, sql in counted.items())
    rows = f"SELECT DISTINCT ON (id) * FROM clean_{modality} WHERE fingerprint = $key"
    return lake.sql(f"SELECT {sums} FROM ({rows})", {"key": key}).to_pylist()[0]


def _features_metadata(lake: Lake, project: Project, modality: str) -> dict[str, Any]:
    processor = featurizing.make_processor(project)
    rows = first_rows(lake, f"{modality}_features", processor.fingerprint(modality), 16)
    described = table_metadata(lake, f"{modality}_features")
    cut = featurizing.cut_rows(lake, project, modality)
    summary = f"{described['dagster/row_count']:,} rows" + (f", {cut}" if cut else "")
    lost = compressing.loss(lake, project, modality)
    if lost:
        said = f"{lost['bytes']:,.0f} bytes a content, {lost['ratio']:.1f} times less"
        summary += f", compressed: {said}, relative error {lost['error']:.3f}, cosine {lost['cosine']:.4f}"
    metadata = {**described, "summary": summary, "preview": markdown_table(rows.slice(0, 5))}
    metadata |= {f"compression_{name}": value for name, value in lost.items()}
    picture_of = project.features.modality(modality).picture
    if picture_of in project.features.featurizer(modality).tensors:
        rows = first_rows(lake, f"{modality}_features", processor.fingerprint(modality, picture_of), 16)
    if png := contact_sheet(tiles(project, modality, rows)):
        metadata["picture"] = picture(png)
    return metadata


def tiles(project: Project, modality: str, rows: pa.Table) -> list[np.ndarray]:
    """Pictures of feature rows, if these features have any."""
    kind = project.features.modality(modality)
    name = kind.picture
    if name is None or name not in project.features.featurizer(modality).tensors:
        return []
    columns, read = compressing.reader(project, modality, name)
    return [kind.draw(read(row)) for row in rows.to_pylist() if row[columns[0]] is not None]


def first_rows(lake: Lake, name: str, fingerprint: str, most: int) -> pa.Table:
    """Some rows that a step made, to show; the first in the table's files, so that little of a large one is read."""
    # Each thread would read a row group of its own.
    query = f"SELECT * FROM {name} WHERE fingerprint = $fingerprint LIMIT {most}"
    return replace(lake, threads=1).sql(query, {"fingerprint": fingerprint}).sort_by("id")


def _counts(lake: Lake, column: str) -> dict[str, int]:
    rows = lake.sql(f"SELECT {column} AS value, count(*) AS n FROM samples GROUP BY 1 ORDER BY 1").to_pylist()
    return {str(row["value"]): row["n"] for row in rows}


def _input_counts(lake: Lake) -> dict[str, int]:
    present = "concat_ws('+', " + ", ".join(f"CASE WHEN {m}_id IS NOT NULL THEN '{m}' END" for m in MODALITIES)
    rows = lake.sql(f"SELECT {present}) AS inputs, count(*) AS n FROM samples GROUP BY 1 ORDER BY 2 DESC").to_pylist()
    return {row["inputs"] or "(none)": row["n"] for row in rows}
