"""What the web UI shows of a table: row count, schema, the first rows, a picture."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa

from assets.lake import Lake
from training.messages import one_line
from training.records import EvaluationRow
from training.schema import column_words

_CELL = 200  # characters of a value that a preview shows
_HASH = 12  # hexadecimal digits of a hash that a preview shows
_PICTURE = 1000  # pixels: the width that the dialog of the web UI has room for


def table_metadata(lake: Lake, name: str) -> dict[str, Any]:
    """Row count, column schema, place and version of a table, under the keys that Dagster's UI knows."""
    table = lake.open(name)
    schema = lake.schema(name)
    words = column_words(name, schema)
    columns = [dg.TableColumn(field.name, str(field.type), words[field.name]) for field in schema]
    rows = lake.sql(f"SELECT count(*) AS n FROM {name}")["n"][0].as_py()
    return {
        "dagster/row_count": rows,
        "dagster/column_schema": dg.TableSchema(columns=columns),
        "dagster/uri": lake.table_uri(name),
        "table_version": -1 if table is None else table.version(),
    }


def markdown_table(rows: pa.Table) -> dg.MarkdownMetadataValue:
    """A small table as Markdown, long values cut, tensors and media left out; a word where there are no rows."""
    if rows.num_rows == 0:
        return dg.MetadataValue.md("none")
    names = [f.name for f in rows.schema if not pa.types.is_binary(f.type) and not f.name.endswith("_shape")]
    lines = ["| " + " | ".join(map(_cell, names)) + " |", "|" + "---|" * len(names)]
    for row in rows.select(names).to_pylist():
        lines.append("| " + " | ".join(_cell(row[name]) for name in names) + " |")
    return dg.MetadataValue.md("\n".join(lines))


def _cell(value: Any) -> str:
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    if re.fullmatch(r"[0-9a-f]{40,}", text):
        return text[:_HASH] + "…"
    text = one_line(text, longest=len(text))
    return escaped(text if len(text) <= _CELL else text[: _CELL - 1] + "…")


def escaped(text: str) -> str:
    """A text that others wrote as Markdown that shows it: no markup, no HTML, no link, no picture that is fetched."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"[\\`*\[\]|~]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)
    # What looks like an address becomes a link without any markup, unless something stands in it.
    return re.sub(r"\b(https?|ftp|mailto|xmpp|www)(?=[:.])|(?<=\w)@(?=\w)", "\\g<0>\u2060", text, flags=re.IGNORECASE)


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else _cell(value)


def counts_table(counts: Mapping[str, Any], head: tuple[str, str]) -> dg.MarkdownMetadataValue:
    """A mapping as a two-column Markdown table."""
    rows = (f"| {_cell(name)} | {_count(value)} |" for name, value in counts.items())
    lines = [f"| {head[0]} | {head[1]} |", "|---|---:|", *rows]
    return dg.MetadataValue.md("\n".join(lines))


def bullets(lines: Sequence[str]) -> dg.MarkdownMetadataValue:
    """Sentences, which may quote what others wrote."""
    return dg.MetadataValue.md("\n".join(f"- {escaped(line)}" for line in lines))


def picture(png: bytes) -> dg.MarkdownMetadataValue:
    """A PNG as Markdown that carries it, not wider than what shows it."""
    from PIL import Image

    image = Image.open(io.BytesIO(png))
    if image.width > _PICTURE:
        buffer = io.BytesIO()
        image.convert("RGB").resize((_PICTURE, image.height * _PICTURE // image.width)).save(buffer, "PNG")
        png = buffer.getvalue()
    return dg.MetadataValue.md(f"![picture](data:image/png;base64,{base64.b64encode(png).decode()})")


def contact_sheet(tiles: Sequence[np.ndarray], columns: int = 8, cell: int = 96) -> bytes | None:
    """Pictures uint8 (H, W, 3) or (H, W) side by side, as one PNG."""
    from PIL import Image

    if not tiles:
        return None
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * (cell + 4), rows * (cell + 4)), "white")
    for i, tile in enumerate(tiles):
        picture = Image.fromarray(np.ascontiguousarray(tile)).convert("RGB").resize((cell, cell))
        sheet.paste(picture, ((i % columns) * (cell + 4) + 2, (i // columns) * (cell + 4) + 2))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def evaluation_table(rows: Sequence[tuple[Mapping[str, Any], EvaluationRow]]) -> dg.MarkdownMetadataValue:
    """Markdown of what each row is of (column -> value), how many rows were asked, and the output's first metric with
    its interval; macro F1, too, where there is one, and what each input adds (`EvaluationRow.contributions`)."""
    shown, added = [], dict.fromkeys(modality for _, row in rows for modality in row.contributions)
    for which, row in rows:
        name, main = next(iter(row.metrics.items()))
        interval = "" if main.low is None else f"{main.low:.3f}–{main.high:.3f}"
        columns = {"rows": row.n, name.replace("_", " "): _three(main.value), "95% interval": interval}
        if row.filled.value is not None:
            columns["on all rows"] = _three(row.filled.value)
        f1 = {"macro F1": _three(row.metrics["macro_f1"].value)} if "macro_f1" in row.metrics else {}
        adds = {f"{modality} adds": _three(row.contributions.get(modality)) for modality in added}
        shown.append({**which, **columns, **f1, **adds})
    return markdown_table(pa.Table.from_pylist(shown))


def _three(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
