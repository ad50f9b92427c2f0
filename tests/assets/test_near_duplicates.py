"""Near duplicates: found among many, tied to one side of a split, told where they stand on two, left out by setting."""

import shutil
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets import featurizing, pipeline
from assets.asset_checks import check_balance, check_leakage
from assets.near_duplicates import _MOST, alike, candidates, near_groups, write_pairs
from assets.snapshots import as_of
from orchestration.erasure import erase
from orchestration.forecast import UNCHANGED
from orchestration.housekeeping import collect
from orchestration.inspection import check
from orchestration.project import ProjectError, load
from tests.training.test_signature_family import jpeg, photo, text
from training.catalog import SIGNATURES
from training.family import Choice
from training.schema import MANIFEST, NEAR_DUPLICATES, QUARANTINE

PROJECT = """
name: shop
sources:
  - {name: photos, modality: image, files: photos}
  - {name: rows, modality: text, table: rows.csv, column: words, key: id}
align: {label: answer, split: {train: 0.6, validation: 0.2}}
features: {image: {size: 64}}
"""
KEYS = st.integers(1, 3).flatmap(
    lambda variants: st.lists(
        st.lists(st.lists(st.integers(0, 5), min_size=2, max_size=2), min_size=variants, max_size=variants),
        min_size=1,
        max_size=12,
    )
)


@settings(max_examples=60)
@given(KEYS)
def test_candidates_are_the_pairs_that_share_a_key(keys):
    keys = np.array(keys, np.uint64)
    first, second, variant = candidates(keys)
    expected = {
        (min(a, b), max(a, b))
        for a in range(len(keys))
        for b in range(len(keys))
        if a != b and (keys[a, 0] == keys[b]).any()
    }
    found = sorted(zip(np.minimum(first, second).tolist(), np.maximum(first, second).tolist(), strict=True))
    assert found == sorted(expected)
    assert all((keys[a, 0] == keys[b, v]).any() for a, b, v in zip(first, second, variant, strict=True))


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=150))
def test_what_shares_a_key_with_many_costs_no_more_than_a_few_each_and_still_hangs_together(keys):
    first, second, _ = candidates(np.array(keys, np.uint64)[:, None, None])
    assert len(first) <= len(keys) * _MOST
    pairs = [(f"{a:03d}", f"{b:03d}") for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    groups = near_groups(pairs_table(pairs))
    for key in set(keys):
        of = {f"{n:03d}" for n, one in enumerate(keys) if one == key}
        assert len(of) == 1 or of in components(groups)


def pairs_table(pairs: Iterable[tuple[str, str]]) -> pa.Table:
    rows = [{"modality": "image", "first": a, "second": b, "similarity": 1.0} for a, b in pairs]
    return pa.Table.from_pylist(rows, NEAR_DUPLICATES)


def components(groups: pa.Table) -> list[set[str]]:
    found: dict[str, set[str]] = {}
    for row in groups.to_pylist():
        found.setdefault(row["near"], set()).add(row["id"])
    assert all(near == min(ids) for near, ids in found.items())
    return list(found.values())


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)).filter(lambda pair: pair[0] < pair[1]), max_size=20))
def test_groups_are_the_connected_components_of_the_pairs(pairs):
    named = [(f"{a:02d}", f"{b:02d}") for a, b in pairs]
    groups = [{one} for one in {one for pair in named for one in pair}]
    for a, b in named:  # one after the other, the slow way
        joined = next(g for g in groups if a in g) | next(g for g in groups if b in g)
        groups = [joined, *(g for g in groups if not g & joined)]
    assert sorted(map(sorted, components(near_groups(pairs_table(named))))) == sorted(map(sorted, groups))


def test_of_many_texts_the_pairs_are_those_that_all_pairs_give():
    signature = SIGNATURES.make(Choice("minhash", {"least": 0.7}), scope="text")
    texts = [text(n % 60) + " and" * (n // 60) + f" {text(n)[:20]}" * (n % 3) for n in range(180)]
    values = [signature.sign(type("Text", (), {"text": words})) for words in texts]
    first, second = np.triu_indices(len(values), 1)
    similarity = signature.similarity(values, np.stack([first, second, np.zeros(len(first), int)]))
    near = similarity >= 0.7
    expected = list(zip(first[near].tolist(), second[near].tolist(), strict=True))
    found = alike(signature, values)
    assert list(zip(found[0].tolist(), found[1].tolist(), strict=True)) == expected and len(expected) > 60
    assert np.allclose(found[2], similarity[near])


@pytest.fixture
def shop(tmp_path, home, mlflow_database):
    """36 photos of which six are others, kept and cut otherwise: p30 of p00, p31 of p01, ..."""
    home.mkdir()
    shutil.copy(mlflow_database, home)
    folder = tmp_path / "shop"
    (folder / "photos").mkdir(parents=True)
    rows = ["id,words,answer,part"]
    for n in range(36):
        picture = photo(n % 30, side=128)
        content = jpeg(picture) if n < 30 else jpeg(picture.crop((n - 30, 0, 128, 122)).resize((90, 90)), 70)
        (folder / "photos" / f"p{n:02d}.jpg").write_bytes(content)
        part = "test" if n in (30, 31, 5) else "validation" if n == 6 else "train"
        rows.append(f"p{n:02d},what is on number {n}?,{'odd' if n % 2 else 'even'},{part}")
    (folder / "rows.csv").write_text("\n".join(rows) + "\n")
    (folder / "project.yaml").write_text(PROJECT)
    return folder / "project.yaml"


def run(project):
    lake = pipeline.open_lake(project)
    pipeline.write_manifest(lake, project)
    counts = {m: featurizing.process_modality(lake, project, m) for m in project.modalities}
    return lake, counts, pipeline.write_samples(lake, project)


def split_of(lake) -> dict[str, str]:
    rows = lake.sql("SELECT key, split FROM samples JOIN manifest ON item_id = image_item").to_pylist()
    return {row["key"]: row["split"] for row in rows}


def test_near_duplicates_are_told_and_fall_into_one_split(shop):
    lake, _, (_, findings) = run(project := load(shop))
    pairs = lake.read("near_duplicates")
    assert pairs.num_rows == 6 and min(pairs["similarity"].to_pylist()) > 0.87
    (said,) = [finding.message for finding in findings if finding.code == "near_duplicates"]
    assert said.startswith("6 groups of near duplicates of image (items: photos 12), such as ") and "p3" in said
    splits = split_of(lake)
    assert all(splits[f"p{n:02d}"] == splits[f"p{n + 30}"] for n in range(6)) and len(set(splits.values())) == 3
    off = load(shop, ["duplicates={image: off}"])
    lake, counts, (_, findings) = run(off)
    assert not any(count["processed"] for count in counts.values())
    assert "near_duplicates" not in {finding.code for finding in findings}
    apart = split_of(lake)
    assert any(apart[f"p{n:02d}"] != apart[f"p{n + 30}"] for n in range(6)), "the test would pass without tying"
    assert check_leakage(lake, project).passed, "nothing is sought any more"
    run(load(shop, ["duplicates={image: off, text: off}"]))
    assert lake.read("near_duplicates").num_rows == 0
    run(project)
    assert lake.read("near_duplicates").num_rows == 6, "they are found again"
    version = lake.version("near_duplicates")
    run(project)
    assert lake.version("near_duplicates") == version, "what was decided stays"
    assert lake.sql("SELECT count(*) AS n, count(DISTINCT id) AS d FROM signatures").to_pylist() == [{"n": 36, "d": 36}]


@pytest.mark.slow
def test_a_late_near_duplicate_moves_no_sample_and_old_snapshots_have_their_pairs(shop):
    table, late = shop.parent / "rows.csv", [shop.parent / "photos" / f"p{n}.jpg" for n in range(30, 36)]
    rows = table.read_text()
    for file in late:
        file.rename(shop.parent / file.name)
    table.write_text("\n".join(rows.splitlines()[:31]) + "\n")
    lake, _, _ = run(project := load(shop))
    first = pipeline.write_dataset(lake, project).fingerprint
    before = split_of(lake)
    for file in late:
        (shop.parent / file.name).rename(file)
    table.write_text(rows)
    lake, _, made = run(project)
    assert run(project)[2].fingerprint == made.fingerprint and check(project).run.samples == UNCHANGED
    after = split_of(lake)
    assert before.items() <= after.items()
    assert all(after[f"p{n:02d}"] == after[f"p{n + 30}"] for n in range(6))
    assert (lake.read("near_duplicates").num_rows, as_of(lake, first).read("near_duplicates").num_rows) == (6, 0)
    shutil.rmtree(lake.uri)
    assert not before.items() <= split_of(run(project)[0]).items(), "the test would pass without holding them"


def test_pairs_that_were_sought_while_signatures_lacked_are_sought_again(shop):
    lake, _, _ = run(project := load(shop))
    pairs, signed = lake.read("near_duplicates"), lake.read("signatures")
    steps = {m: featurizing.make_step(project, m) for m in project.modalities}
    ids = {m: lake.sql(f"SELECT DISTINCT id FROM clean_{m}")["id"] for m in project.modalities}
    lake.replace("signatures", signed.filter(pc.not_equal(signed["id"], pairs["first"][0])))
    assert write_pairs(lake, steps, ids).num_rows == 5
    lake.replace("signatures", signed)
    assert write_pairs(lake, steps, ids).equals(pairs)


@pytest.mark.slow
def test_where_a_column_puts_them_on_two_sides_the_run_is_blocked(shop):
    project = load(shop, ["align.split={column: part}"])
    lake, _, _ = run(project)
    found = check_leakage(lake, project)
    assert not found.passed and found.metadata["leaks"].value == 3
    assert "3 sets of near duplicates of image stand on more than one side of a split (6 samples:" in found.description
    assert "mend column 'part'" in found.description and "align.allow_shared: [image]" in found.description
    assert "duplicates.image: {keep: one}" in found.description and "duplicates.image: off" in found.description
    lake, _, _ = run(allowed := load(shop, ["align.split={column: part}", "align.allow_shared=[image]"]))
    assert check_leakage(lake, allowed).passed
    one = load(shop, ["align.split={column: part}", "duplicates={image: {keep: one}}"])
    lake, counts, _ = run(one)
    assert not any(count["processed"] for count in counts.values())
    assert check_leakage(lake, one).passed and check_balance(lake, one).passed
    rows = lake.sql("SELECT * FROM quarantine WHERE stage = 'filter' ORDER BY key").to_pylist()
    assert [row["key"] for row in rows] == [f"p{n}" for n in range(30, 36)]
    found = check(one, decoded=1)
    assert found.problem is None and found.run.samples == UNCHANGED
    assert {(row["outcome"], row["reason"]) for row in rows} == {("duplicate", "near_duplicate")}
    assert "p30.jpg is a near duplicate of " in rows[0]["message"] and "p00.jpg, which is kept" in rows[0]["message"]
    assert pipeline.balance(lake, one).counts["image"]["duplicate"] == 6
    assert pipeline.balance(lake, one).counts["image"]["passed"] == 30
    names = ", ".join(f'"{name}"' for name in QUARANTINE.names if name in MANIFEST.names)
    refused = lake.sql(f"SELECT {names} FROM manifest WHERE modality = 'image' AND key = 'p00'").to_pylist()[0]
    refused |= {"stage": "featurize", "outcome": "quarantined", "reason": "odd", "message": "p00.jpg is odd"}
    refused |= {"fingerprint": featurizing.make_step(one, "image").refusing}
    lake.append("quarantine", [pa.Table.from_pylist([refused], QUARANTINE)])
    lake, _, _ = run(one)
    assert split_of(lake).keys() == {f"p{n:02d}" for n in range(1, 31)}, "the copy that can be used is kept"
    assert check(one, decoded=1).run.samples == UNCHANGED


@pytest.mark.slow
def test_signatures_go_with_their_contents(shop):
    lake, _, _ = run(project := load(shop))
    erased = erase(project, "p00", dry_run=False, purge=False)
    assert erased.removed["signatures"] == 1 and erased.removed["near_duplicates"] == 1
    assert lake.read("near_duplicates").num_rows == 5, "those of other pictures stay"
    assert lake.sql("SELECT count(*) AS n FROM signatures")["n"][0].as_py() == 35
    (shop.parent / "photos" / "p00.jpg").unlink()
    (shop.parent / "photos" / "p30.jpg").unlink()
    pipeline.write_manifest(lake, project)
    assert collect(project, dry_run=False).removed["signatures"] == 1


@pytest.mark.parametrize(
    ("duplicates", "words"),
    [
        ("{video: acoustic}", "duplicates is 'video', expected modalities of the sources"),
        ("{image: acoustic}", "duplicates.image: signature is 'acoustic', expected one of perceptual_hash"),
        ("{image: {least: 2}}", "least is 2"),
        ("{text: {least: 0.9}}", "expected one of minhash"),
    ],
)
def test_what_cannot_be_is_refused_when_the_file_is_read(shop, duplicates, words):
    with pytest.raises(ProjectError, match=words):
        load(shop, [f"duplicates={duplicates}"])
