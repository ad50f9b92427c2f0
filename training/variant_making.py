"""Variants of a registered version: made of its bundle, asked the test rows, timed, and each logged in an MLflow run of
its own, known by its fingerprint. What `assets.variants` then makes of that decides whether it becomes a version."""

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from training.device import chosen_device
from training.family import Choice
from training.model_registry import local_model, log_variant, version_tags
from training.records import Answer, EvaluationRow, VariantReport
from training.runs import find_run, read_json
from training.schema import subset_name
from training.spec import JobSpec, VariantSpec
from training.workers import Log

if TYPE_CHECKING:
    from training.data import SampleDataset
    from training.variants.base import AnsweringBundle

REPORT = "variant.json"
_SINGLE = 60  # rows that are answered one by one, and as many batches
_BATCH = 64
_SECONDS = 10.0  # after which enough were timed
_WARM = 3


def find_variant(uri: str, project: str, fingerprint: str) -> VariantReport | None:
    """What a variant that is there already came to; None where it has to be made."""
    run_id = find_run(uri, project, fingerprint)
    return None if run_id is None else VariantReport(**read_json(uri, run_id, REPORT))


def make_variants(spec: JobSpec, log: Log) -> Iterator[VariantReport]:
    """Makes the variants that `spec` asks for, all of one version, one after the other; each report when its variant is
    safe in MLflow.

    Raises:
        ValueError: there is none of this model, packages are not there, or the version cannot be read by this code.
    """
    from training.job import open_splits
    from training.processor import Processor
    from training.score import bundle_of
    from training.variants.base import write_variant

    source = local_model(spec.tracking_uri, spec.project, spec.variants[0].of, Path(spec.cache))
    bundle = bundle_of(source)
    splits, _ = open_splits(spec, columns=_columns(bundle))
    if not len(splits["test"]):
        raise ValueError("there are no test rows to judge variants on, expected at least one: look at align.split")
    for variant in spec.variants:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as temporary:
            made = bundle
            if variant.variant is not None:
                made = Path(temporary) / "bundle"
                write_variant(Choice.from_plain(variant.variant), bundle, made)
                gc.collect()  # the model that it was made of
            log(f"{variant.name} of version {variant.of}: answering {len(splits['test']):,} test rows")
            features = Processor.from_pretrained(bundle).features
            yield _measured(spec, variant, source, made, features, splits["test"], started)
        gc.collect()


def _columns(bundle: Path) -> tuple[str, ...]:
    """Those that the model's prompt names."""
    from training.model_config import FusionConfig

    return tuple(FusionConfig.from_pretrained(bundle).columns)


def _measured(
    spec: JobSpec,
    variant: VariantSpec,
    source: Path,
    bundle: Path,
    features: Any,
    rows: "SampleDataset",
    started: float,
) -> VariantReport:
    """Loads, asks, times and logs. Args: `source` is the folder of the logged version."""
    import mlflow
    import pyarrow.parquet as pq
    from transformers import AutoTokenizer

    from training.evaluate import predictions_table
    from training.results import answers
    from training.tracking import open_part_run
    from training.variants.base import load_bundle

    device = chosen_device()
    model = load_bundle(bundle, device)
    tokenizer = AutoTokenizer.from_pretrained(bundle, config=model.config, trust_remote_code=False)
    reads: Any = SimpleNamespace(tokenizer=tokenizer, features=features)
    answered = answers(model, reads, rows, model.output.asked(variant.inputs))
    table, metrics = predictions_table(answered, model.output), _figures(model, answered, variant.inputs)
    speed = timed(model, tokenizer, features, rows)
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    name, tags = f"{variant.role} of version {variant.of}", _tags(spec, variant)
    with open_part_run(spec, variant.role, variant.fingerprint, name, tags) as active:
        report = VariantReport(
            name=variant.name,
            of=variant.of,
            fingerprint=variant.fingerprint,
            mlflow_run_id=active.info.run_id,
            size=size,
            **speed._asdict(),
            metrics=metrics,
            device=_words(device),
            seconds=round(time.monotonic() - started, 2),
        )
        mlflow.log_metrics({f"test_{name}": value for name, value in metrics.items() if value is not None})
        mlflow.log_metrics({"size": size, **speed._asdict()})
        with tempfile.TemporaryDirectory() as folder:
            pq.write_table(table, Path(folder) / "predictions.parquet")
            mlflow.log_artifacts(folder)
        if variant.variant is not None:
            log_variant(source, bundle, _packages(variant), active.info.run_id)
        mlflow.log_dict(report.to_json(), REPORT)
    return report


def _tags(spec: JobSpec, variant: VariantSpec) -> dict[str, str]:
    """What it is a variant of, and what of the version tells people and `gc` about a version."""
    known = version_tags(spec.tracking_uri, spec.project, variant.of)
    kept = {name: known[name] for name in ("dataset_version", "metric") if name in known}
    return kept | {"variant": variant.name, "variant_of": variant.of}


def _figures(model: "AnsweringBundle", answered: Sequence[Any], inputs: Sequence[str]) -> dict[str, float | None]:
    """With all inputs given (`EvaluationRow.figures`)."""
    full = subset_name(inputs)
    rows = [row for row in answered if row.subset == full and row.label is not None]
    figures = model.output.figures([row.label for row in rows], [row.answer for row in rows])
    return EvaluationRow(inputs=full, subset=full, slice=None, n=len(rows), metrics=figures).figures()


class Speed(NamedTuple):
    milliseconds: float  # of a row alone, from its features to its answer, the median ...
    milliseconds_p95: float  # ... and the 95th percentile
    rows_per_second: float  # in batches of 64


def timed(model: "AnsweringBundle", tokenizer: Any, features: Any, rows: Any) -> Speed:
    """How fast a model answers rows whose features are there: what decoding and featurizing take is the same for all
    its variants."""
    from training.collator import make_collator

    collate = make_collator(model, tokenizer, features)

    def ask(numbers: Sequence[int]) -> list[Answer]:
        return model.scored_answers(collate([rows[n % len(rows)] for n in numbers]), tokenizer)

    singles = _seconds(lambda turn: ask([turn]))
    batches = _seconds(lambda turn: ask(range(turn * _BATCH, (turn + 1) * _BATCH)))
    p95 = statistics.quantiles(singles, n=20, method="inclusive")[-1]
    return Speed(1000 * statistics.median(singles), 1000 * p95, _BATCH / statistics.median(batches))


def _seconds(ask: Callable[[int], Any]) -> list[float]:
    """Of each turn, after a few that warm up; as many as the time allows, and two at least."""
    for turn in range(_WARM):
        ask(turn)
    taken: list[float] = []
    until = time.perf_counter() + _SECONDS
    while len(taken) < 2 or (len(taken) < _SINGLE and time.perf_counter() < until):
        started = time.perf_counter()
        ask(len(taken))
        taken.append(time.perf_counter() - started)
    return taken


def _packages(variant: VariantSpec) -> tuple[str, ...]:
    from training.catalog import VARIANTS

    return tuple(VARIANTS.load(Choice.from_plain(variant.variant).kind).packages)


def _words(device: Any) -> str:
    import torch

    return f"CPU, threads: {torch.get_num_threads()}" if device.type == "cpu" else str(device)
