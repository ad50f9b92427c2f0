"""Contents of training rows that are drawn anew in each epoch: from which rows, by what, and what training sees."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from hypothesis import given
from hypothesis import strategies as st

from training.cache import FeatureCache
from training.data import EpochSampler, SampleDataset
from training.pairing import Pairing
from training.schema import DATASET, features_table

POOLS = st.lists(st.tuples(*[st.sampled_from([None, "a", "b", "c"])] * 2), min_size=1, max_size=30)


def index_of(*pools: tuple[str | None, str | None]) -> pa.Table:
    """A row for each pair of pools, of image and speech, with contents of its own."""
    rows = [
        {"sample_id": f"s{n}", "image_id": f"i{n}", "image_pool": image, "speech_id": f"a{n}", "speech_pool": speech}
        for n, (image, speech) in enumerate(pools)
    ]
    return pa.Table.from_pylist(rows, DATASET)


@given(pools=POOLS, seed=st.integers(0, 2**31), epoch=st.integers(0, 1000))
def test_a_row_draws_from_its_pool_and_else_keeps_its_own(pools, seed, epoch):
    index = index_of(*pools)
    drawn = Pairing(index, seed).index(epoch)
    assert drawn.schema == index.schema
    for modality in ("image", "speech"):
        own, names = index[f"{modality}_id"].to_pylist(), index[f"{modality}_pool"].to_pylist()
        pool_of = dict(zip(own, names, strict=True))
        for before, after, name in zip(own, drawn[f"{modality}_id"].to_pylist(), names, strict=True):
            assert pool_of[after] == name
            assert after == before or (name is not None and names.count(name) > 1)
    kept = [name for name in index.column_names if name not in ("image_id", "speech_id")]
    assert drawn.select(kept).equals(index.select(kept))
    assert Pairing(index, seed).index(epoch).equals(drawn)


def test_every_content_of_a_pool_is_drawn_as_often_and_each_modality_by_itself():
    pairing = Pairing(index_of(*[("a", "x")] * 4, ("b", "x"), ("b", None)), seed=3)
    seen = defaultdict(list)
    for epoch in range(600):
        (row, *_) = pairing.index(epoch).to_pylist()
        seen["image"].append(row["image_id"])
        seen["speech"].append(row["speech_id"])
    counts = {m: [drawn.count(content) for content in sorted(set(drawn))] for m, drawn in seen.items()}
    assert [len(counts["image"]), len(counts["speech"])] == [4, 5]
    assert min(counts["image"]) > 110 and min(counts["speech"]) > 85
    assert len(set(zip(seen["image"], seen["speech"], strict=True))) == 20


def test_rows_are_drawn_by_seed_epoch_and_sample_wherever_they_stand():
    pools = [("a", "x")] * 20
    epochs = [Pairing(index_of(*pools), seed).index(epoch)["image_id"].to_pylist() for seed, epoch in ((0, 1), (0, 2))]
    assert epochs[0] != epochs[1] != Pairing(index_of(*pools), 1).index(2)["image_id"].to_pylist()
    pairing = Pairing(index_of(*pools), 0)
    alone = [int(pairing.lenders([1], [n])["image"][0]) for n in range(20)]
    assert [f"i{n}" for n in alone] == epochs[0], "whichever rows stand in its batch"


def test_training_reads_what_the_epoch_drew(tmp_path: Path):
    index = index_of(*[("a", None)] * 6)
    dtypes, ids = {"pixels": "uint8"}, index["image_id"].to_pylist()
    rows = [{"id": i, "fingerprint": "f", "pixels": np.full((1, 1, 1), n)} for n, i in enumerate(ids)]
    cache = FeatureCache(tmp_path, "image", "f", dtypes)
    cache.add(ds.dataset(features_table("image", dtypes, rows)), ids)
    samples = SampleDataset(index, {"image": cache})
    sampler = EpochSampler(6, seed=5)
    sampler.set_epoch(2)
    keys = list(sampler)
    read = [rows.__getitems__(keys) for rows in (samples, samples.paired(5))]
    fixed, drawn = ([int(row["image"]["pixels"].item()) for row in rows] for rows in read)
    assert fixed == [n for _, n in keys]
    assert [ids[n] for n in drawn] == Pairing(index, 5).index(2)["image_id"].take([n for _, n in keys]).to_pylist()
    assert drawn != fixed and samples.paired(5).identity() == samples.identity()
    apart = index.set_column(index.column_names.index("image_pool"), "image_pool", pa.array(list("abcdef")))
    assert SampleDataset(apart, {"image": cache}).identity() != samples.identity()
