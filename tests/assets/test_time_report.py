"""What people see of a join in time: counts, reasons, differences, clocks, a picture."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from assets.joins.time_outcomes import span_words
from assets.lake import Lake
from assets.time_report import TimeReport
from orchestration.report import timing
from tests.assets.test_time_join import Item, aligned


def test_counts_reasons_clocks_and_differences_are_shown(tmp_path: Path) -> None:
    moments = np.cumsum(np.random.default_rng(0).uniform(300, 4000, 40)).astype(int)
    items = [Item("camera", int(at)) for at in moments]
    items += [Item("microphone", int(at) - 250 + n % 3) for n, at in enumerate(moments)]
    items += [Item("microphone", -900_000), Item("microphone", None)]
    found = aligned(items, base="camera", tolerance="50ms", clocks={"microphone": {"estimate": True}})
    lake = Lake(str(tmp_path))
    assert TimeReport.read(lake) is None and timing(lake) == {"timing": None}
    note = {"fingerprint": "f"} | {name: f"[{value}]" for name, value in found.report}
    lake.replace("quarantine", found.quarantine)
    lake.replace("samples", found.samples, note=note)
    report = TimeReport.read(lake)
    assert report is not None
    camera, microphone = report.rows()
    assert camera == {**dict.fromkeys(microphone, ""), "source": "camera", "items": 40, "unmatched": "0"}
    assert microphone["match"] == "nearest within 50 ms" and microphone["samples with it"] == "40 of 40"
    assert microphone["unmatched"] == "1 no_partner, 1 no_time" and microphone["items"] == 42
    (clock,) = report.clocks
    assert clock.startswith("to the times of source microphone +0.2490 s") and "as 40 of its 41 events" in clock
    (stream,) = json.loads(note["time"])[0]["streams"]
    assert sum(count for _, _, count in stream["histogram"]) == stream["pairs"] == 40
    (tmp_path / "differences.png").write_bytes(report.picture() or b"")
    pixels = np.asarray(Image.open(tmp_path / "differences.png").convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 5, "bars, axes, words"
    assert timing(lake)["differences"]


def test_spans_are_told_in_units_that_people_read() -> None:
    spans = {
        0: "0 µs",
        7: "7 µs",
        1999: "1999 µs",
        2000: "2 ms",
        350_000: "350 ms",
        1_000_000: "1 s",
        -2_500_000: "2.5 s",
    }
    spans |= {90_000_000: "90 s", 3_600_000_000: "1 h", 6 * 3_600_000_000: "6 h", 400 * 86_400_000_000: "400 d"}
    assert {span: span_words(span) for span in spans} == spans
