"""What a training came to, as MLflow keeps it: the answers to the test rows, what they are worth, and pictures."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from training import reporting, tracking
from training.data import SampleDataset
from training.evaluate import mean_score, measure, predictions_table, slices
from training.features import FeatureSettings
from training.fusion_check import shuffled_figures
from training.metrics import confusion
from training.outputs.base import Output
from training.outputs.linear import LinearOutput
from training.records import Answered, EvaluationRow
from training.schema import MAJORITY, MODALITIES, subset_name, subsets
from training.shapley import answer_contributions
from training.spec import RunSpec
from training.train import Trained, TrainingTask, scored_answers
from training.variants.base import AnsweringBundle

_EXAMPLES = 12  # test samples in the picture


def evaluate(
    run: RunSpec, task: TrainingTask, trained: Trained, rows: SampleDataset, test: pa.Table, folder: Path
) -> tuple[dict[str, float | None], list[EvaluationRow]]:
    """Answers the test rows and logs what they are worth, with the pictures; returns the figures with all inputs given,
    and those of each subset of them.

    Args:
        rows, test: the test rows, and as they stand in `dataset`.
    """
    output, metric = trained.model.output, trained.model.output.metrics[0]
    labels = {row["sample_id"]: output.read(row["label"]) for row in test.to_pylist() if row["label"] is not None}
    learned = [output.read(label) for label in task.train.labels if label is not None]
    usual, answered = output.constant(learned), answers(trained.model, task, rows, subsets(run.keep))
    predictions = predictions_table(answered, output, answer_contributions(answered, learned, run.keep))
    whole = predictions.filter(pc.equal(predictions["subset"], subset_name(run.keep)))
    labels |= {row["sample_id"]: row["label"] for row in whole.to_pylist()}  # as they are judged
    measured = measure(predictions, run.keep, output, slices(test, output), labels, usual)
    of_all = [row for row in measured if row.slice is None]
    metrics = headline(measured)
    majority = mean_score(metric, list(labels.values()), [usual] * len(labels))
    if not run.is_baseline:
        (full,) = (row for row in of_all if row.is_full)
        metrics |= {f"contribution_{modality}": value for modality, value in full.contributions.items()}
        everyone = list(labels.values())
        there = [m for m in output.headlines if m.rows(everyone)]
        metrics |= {f"majority_{m.name}": m.value(everyone, [usual] * len(everyone)) for m in there}
        metrics |= {f"majority_{metric.name}": majority} | _shuffled(task, trained, rows, run.keep, whole)
    if trained.model.linear is not None:
        assert isinstance(output, LinearOutput)
        shares = trained.model.linear.shares(output)
        metrics |= {f"{name}.linear_share".lstrip("."): share for name, share in shares.items()}
    folder.mkdir()
    pq.write_table(predictions, folder / "predictions.parquet")
    one = pa.Table.from_pylist([{"subset": MAJORITY, "prediction": usual}], predictions.schema)
    pq.write_table(one, folder / f"{MAJORITY}.parquet")
    evaluation = {"rows": [row.to_json() for row in measured], "history": trained.history}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    _pictures(folder, trained.history, measured, predictions, output)
    if not run.is_baseline:  # nobody looks at a baseline's, and a picture takes a second
        _examples(folder, measured, predictions, rows, output)
    (folder / "subsets.png").write_bytes(reporting.subsets_picture(measured, majority))
    tracking.log_results(folder, metrics, of_all)
    return metrics, of_all


def _shuffled(
    task: TrainingTask, trained: Trained, rows: SampleDataset, inputs: Sequence[str], answered: pa.Table
) -> dict[str, float | None]:
    """What becomes of the answers with the soft tokens of another row: no better than chance, if the fusion makes them.

    Nothing where there is no other row, or where all that is fused is read as the prompt, too.
    """
    model, metric = trained.model, trained.model.output.metrics[0]
    labels, told = (answered[name].to_pylist() for name in ("label", "prediction"))
    if len(labels) < 2 or set(model.config.modalities) == {model.prompt}:
        return {}
    asked = rows.take(pc.index_in(answered["sample_id"], rows.index["sample_id"]).to_pylist())
    others = answers(model, task, asked, model.output.asked(inputs), shuffle_seed=0)[-len(labels) :]
    return shuffled_figures(metric, labels, told, [other.answer.prediction for other in others])


def headline(rows: list[EvaluationRow]) -> dict[str, float | None]:
    """The figures with all inputs given; None where no test row has any of them."""
    return next(row for row in rows if row.is_full).figures()


class Reads(Protocol):
    """How rows become what a model reads."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    @property
    def features(self) -> FeatureSettings: ...


def answers(
    model: AnsweringBundle,
    task: Reads,
    rows: SampleDataset,
    asked: Sequence[Sequence[str]],
    shuffle_seed: int | None = None,
) -> list[Answered]:
    """What the model says, judged, when it is shown each subset of the inputs; one after the other, of the rows that
    have at least one of them. For `shuffle_seed` see `scored_answers`."""
    output, told = model.output, []
    present = {m: rows.index[f"{m}_id"].is_valid() for m in MODALITIES}
    for number, subset in enumerate(asked):
        any_of_them = functools.reduce(pc.or_, (present[modality] for modality in subset))
        chosen = rows.take(pc.indices_nonzero(any_of_them).to_pylist())
        if len(chosen) < (1 if shuffle_seed is None else 2):  # nobody to be asked, or no other row
            continue
        # Another row for each subset: where all change places together, what belongs together stays so.
        seed, shown = None if shuffle_seed is None else shuffle_seed + number, frozenset(subset)
        said = scored_answers(model, task.tokenizer, chosen, task.features, shown, shuffle_seed=seed)
        labels = [None if label is None else output.read(label) for label in chosen.labels]
        for sample, label, answer in zip(chosen.index["sample_id"].to_pylist(), labels, said, strict=True):
            told.append(Answered(sample, subset_name(subset), label, answer))
    return output.judged(told, rows.look(task.features))


def _pictures(
    folder: Path, history: list[dict[str, float]], rows: list[EvaluationRow], predictions: pa.Table, output: Output
) -> None:
    told = _told(rows, predictions, output).values()
    labels, answers = [x for words, _ in told for x in words], [x for _, words in told for x in words]
    (folder / "confusion.png").write_bytes(reporting.confusion_picture(*confusion(labels, answers)))
    (folder / "learning.png").write_bytes(reporting.learning_picture(history, output.metrics[0].name))


def _examples(
    folder: Path, rows: list[EvaluationRow], predictions: pa.Table, test: SampleDataset, output: Output
) -> None:
    words = {
        sample: (", ".join(label), None if None in answer else ", ".join(answer))
        for sample, (label, answer) in _told(rows, predictions, output).items()
    }
    chosen = [test[number] for number in range(0, len(test), max(1, len(test) // _EXAMPLES))][:_EXAMPLES]
    shown = [row | {"label": words[row["sample_id"]][0]} for row in chosen if row["sample_id"] in words]
    picture = reporting.examples_picture(shown, [words[row["sample_id"]][1] for row in shown], test.modalities)
    (folder / "examples.png").write_bytes(picture)


def _told(rows: list[EvaluationRow], predictions: pa.Table, output: Output) -> dict[str, tuple[list[str], list[Any]]]:
    """Sample -> label and answer, in words, with all inputs given."""
    answered = predictions.filter(pc.equal(predictions["subset"], rows[0].inputs)).to_pylist()
    return {row["sample_id"]: _in_words(output.words(row["label"], row["prediction"])) for row in answered}


def _in_words(pairs: Mapping[str, tuple[str, str | None]]) -> tuple[list[str], list[Any]]:
    """Label and answer, None where there is none; of several each with its name."""
    if "" in pairs:
        label, answer = pairs[""]
        return [label], [answer]
    labels = [f"{name}: {label}" for name, (label, _) in pairs.items()]
    return labels, [f"{name}: {answer}" for name, (_, answer) in pairs.items()]
