"""What was dropped is counted by reason and source, and shown as it is."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from assets import featurizing, pipeline
from orchestration.dropped import dropped
from orchestration.project import load
from orchestration.report import write_report
from training.modalities.speech import SpeechModality
from training.recordings import Speech


def picture(png):
    return Image.open(io.BytesIO(base64.b64decode(png)))


def test_losses_are_counted_and_shown(tiny):
    filters = "filters={image: {kind: brightness, most: 0.5}, speech: {kind: duration, most: 0.1}, "
    filters += "text: {kind: length, most: 17}}"
    photo = tiny.parent / "photos" / "q01.png"
    pixels = np.full((200, 800, 3), 255, np.uint8)
    pixels[:, :400] = (255, 0, 0)
    Image.fromarray(pixels).save(photo)
    project = load(tiny, [filters])
    lake = pipeline.open_lake(project)
    pipeline.write_manifest(lake, project)
    for modality in project.modalities:
        featurizing.process_modality(lake, project, modality)
    pipeline.write_samples(lake, project)
    refused = pipeline.quarantined(lake, project)
    losses = dropped(lake, project, refused)
    assert sum(loss.n for loss in losses) == refused.num_rows
    by = {(loss.stage, loss.reason, loss.source): loss for loss in losses}
    bright, long = by["filter", "brightness", "photos"], by["filter", "duration", "recordings"]
    assert (bright.n, bright.outcome, long.n) == (17, "quarantined", 47)
    assert all(one.png and "brightness is 0." in one.message for one in bright.examples) and len(bright.examples) == 4
    assert all(picture(one.png).size == (320, 96) for one in long.examples)
    said = by["filter", "length", "questions"].examples
    assert said and all(one.png is None and one.words.startswith("Is it bright? (") for one in said)
    broken = (
        by["clean", "corrupt", "photos"] if ("clean", "corrupt", "photos") in by else by["clean", "truncated", "photos"]
    )
    assert [one.png for one in broken.examples] == [None], "what cannot be read is told, not shown"
    assert [one.png or one.words for one in by["manifest", "not_found", "recordings"].examples] == [None]
    page = write_report(project, tiny.parent / "report.html").read_text("utf-8")
    assert "What was dropped and why" in page and page.count("data:image/png") >= 8
    photo.unlink()  # what is gone since is told without a picture
    assert len(dropped(lake, project, refused)) == len(losses)


@pytest.mark.parametrize("frames", [1, 100, 5000])
def test_the_sketch_of_a_recording_reaches_as_far_as_it_does(frames):
    waveform = np.zeros(frames, np.float32)
    waveform[: frames // 2 + 1] = 0.5
    waveform[: frames // 2 + 1 : 2] = -0.5
    dark_HW = SpeechModality().sketch(Speech(waveform, 8000, "WAV", 1, frames)) < 128
    assert dark_HW.any(axis=0).all() and not dark_HW[:20].any() and not dark_HW[-20:].any()
    if frames == 5000:
        heights_W = dark_HW.sum(axis=0)
        assert (heights_W[:155] > 40).all() and (heights_W[165:] <= 2).all()
