"""What `triptych search` refuses, before any model is asked."""

from pathlib import Path

import pytest

from assets.settings import Project
from orchestration.project import ProjectError, load
from orchestration.search import search

EMBEDDING = ["model.output=embedding", "align.label=null"]


@pytest.fixture
def embedding(tiny: Path) -> Project:
    return load(tiny, EMBEDDING)


def test_what_cannot_be_searched_is_said(tiny: Path, embedding: Project) -> None:
    asked = {"text": "Is it bright?"}
    with pytest.raises(ValueError, match="the output of tiny is text: search needs a model with `output: embedding`"):
        search(load(tiny), asked)
    with pytest.raises(ValueError, match="all of text, image, speech are given, so nothing is left to be found"):
        search(embedding, {"text": "?", "image": b"?", "speech": b"?"})
    with pytest.raises(ValueError, match="smell cannot be found: tiny has text, image, speech"):
        search(embedding, asked, find=["smell"])


def test_one_modality_alone_has_nothing_that_belongs_to_it(tiny: Path) -> None:
    sources = "sources=[{name: photos, modality: image, files: photos}]"
    with pytest.raises(ProjectError, match="sources of at least 2 modalities for output embedding"):
        load(tiny, [*EMBEDDING, sources, "align.group=[]"])
