"""What a join in time found (`assets.joins.time_outcomes`), as tables and pictures for people."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from assets.joins.time_clocks import clock_words
from assets.joins.time_outcomes import span_words
from assets.lake import Lake


@dataclass(frozen=True)
class TimeReport:
    """Of the present samples."""

    base: str | None  # null: windows
    anchors: int  # items of the base, or windows
    streams: Sequence[Mapping[str, Any]]
    clocks: list[str]  # those that were estimated, in words
    unmatched: Mapping[str, Mapping[str, int]]  # source -> reason -> items

    @classmethod
    def read(cls, lake: Lake) -> "TimeReport | None":
        """Null where samples are joined otherwise."""
        note = lake.note("samples")
        if "time" not in note:
            return None
        (said,) = json.loads(note["time"])
        unmatched: dict[str, dict[str, int]] = {}
        counted = "SELECT source, reason, count(*) AS n FROM quarantine WHERE stage = 'align' AND source IS NOT NULL"
        for row in lake.sql(f"{counted} GROUP BY ALL ORDER BY n DESC, reason").to_pylist():
            unmatched.setdefault(row["source"], {})[row["reason"]] = row["n"]
        clocks = [clock_words(clock) for clock in json.loads(note.get("clock", "[]"))]
        return cls(said["base"], said["anchors"], said["streams"], clocks, unmatched)

    def rows(self) -> list[dict[str, Any]]:
        """A line for each stream, the base first."""
        lines = []
        if self.base is not None:
            empty = dict.fromkeys(("match", "samples with it", "median", "least", "most"), "")
            lines.append({"source": self.base, "items": self.anchors, "unmatched": self._why(self.base), **empty})
        for stream in self.streams:
            least, _, _, middle, _, _, most = stream["quantiles"] or [None] * 7
            allowed = stream["tolerance"]
            lines.append(
                {
                    "source": stream["source"],
                    "items": stream["items"],
                    "unmatched": self._why(stream["source"]),
                    "match": stream["match"] + ("" if allowed is None else f" within {span_words(allowed * 1e6)}"),
                    "samples with it": f"{stream['anchors']:,} of {self.anchors:,}",
                    "median": _signed(middle),
                    "least": _signed(least),
                    "most": _signed(most),
                }
            )
        return lines

    def _why(self, source: str) -> str:
        return ", ".join(f"{n:,} {reason}" for reason, n in self.unmatched.get(source, {}).items()) or "0"

    def picture(self) -> bytes | None:
        """How much later than their partner the items of each stream begin, as PNG; null where nothing matches."""
        from training.reporting import differences_picture

        parts = {s["source"]: s["histogram"] for s in self.streams if s["histogram"]}
        return differences_picture(parts, self.base or "window") if parts else None


def _signed(seconds: float | None) -> str:
    return "" if seconds is None else f"{'-' if seconds < 0 else '+'}{span_words(seconds * 1e6)}"
