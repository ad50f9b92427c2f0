"""Which columns are labels, texts, groups, keys and splits: by what people call them, and by what stands in them."""

from collections.abc import Sequence

from orchestration.folder_contents import Media, Table
from orchestration.stored_rows import Saved

# Names of columns, as people give them; parts of a name count, too (`speaker_id`).
LABELS = ("label", "answer", "class", "category", "target", "finding", "diagnosis", "intent", "emotion", "sentiment")
TEXTS = ("text", "question", "sentence", "caption", "transcript", "transcription", "note", "notes", "utterance",
         "review", "comment", "description")  # fmt: skip
GROUPS = ("speaker", "patient", "patientid", "subject", "person", "user", "client", "author", "scene")
KEYS = ("id", "key", "uuid")
SPLITS = {"train", "validation", "val", "valid", "dev", "test"}


def saved_label(saved: Saved) -> str | None:
    """The column of classes, or the one that is called like a label."""
    classes = [column for column, kind in saved.types.items() if kind == "ClassLabel"]
    return Table.called(LABELS, classes or list(saved.types)) or next(iter(classes), None)


def path_pattern(media: Media) -> str | None:
    """What the folders of the files say, where all lie equally deep: the split, and the label; None: neither."""
    folders = [name.split("/")[:-1] for name in media.names]
    if len({len(parts) for parts in folders}) != 1:
        return None
    pattern: list[str] = []
    for names in map(set, zip(*folders, strict=True)):
        if {"train", "test"} <= {name.lower() for name in names} <= SPLITS:
            pattern.append("{split}")
        elif len(names) == 1:
            pattern += names
        else:
            pattern = ["*" if part == "{label}" else part for part in pattern] + ["{label}"]
    return "/".join([*pattern, "{name}"]) if {"{split}", "{label}"} & set(pattern) else None


def label_of(columns: Sequence[tuple[Table, str]]) -> tuple[Table, str] | None:
    """What is called like a label, else what has a few words that recur, in the most rows; two values at least."""
    columns = [(table, column) for table, column in columns if len(set(table.values(column))) > 1]
    for table, column in columns:
        if table.called(LABELS, [column]):
            return table, column
    shares = {}
    for table, column in columns:
        values = table.values(column)
        few = len(set(values)) <= max(2, min(50, len(values) // 5))
        if few and 2 * len(values) >= len(table.rows) and not any(value[0].isdigit() for value in values):
            shares[column] = table, len(values) / len(table.rows)
    best = max(shares, key=lambda column: shares[column][1], default=None)
    return None if best is None else (shares[best][0], best)
