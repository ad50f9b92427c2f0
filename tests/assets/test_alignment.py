"""Alignment: which items become samples, what becomes of the others, and on which side of a split each stands."""

import csv
import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.alignment import Alignment, align, validate_samples
from assets.balance import item_balance
from assets.dataset import samples_fingerprint
from assets.leakage import leak_words, leakage, repeated
from assets.near_duplicates import GROUPS
from assets.pairing import PairingSettings
from assets.settings import AlignSettings, SplitSettings
from assets.source_settings import SourceSettings
from assets.splits import allowed_splits, assign_splits, split_of
from training.catalog import OUTPUTS
from training.schema import MANIFEST, MODALITIES, QUARANTINE, SAMPLES, SPLITS

IMAGES = SourceSettings.of(name="pictures", modality="image", files="pictures.tar", table="pictures.csv", key="file")
SOUNDS = SourceSettings.of(name="sounds", modality="speech", files="sounds.tar", table="sounds.csv", key="file")
TEXTS = SourceSettings.of(name="questions", modality="text", table="questions.csv", key="id", column="question")
SOURCES = (IMAGES, SOUNDS, TEXTS)


def sha(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def items(source: SourceSettings, rows: Mapping[Any, Mapping[str, str]] | Sequence[Any]) -> list[dict[str, Any]]:
    """Manifest rows: one per key, or per (key, content)."""
    attributes = rows if isinstance(rows, Mapping) else {}
    made = []
    for number, row in enumerate(rows):
        key, content = row if isinstance(row, tuple) else (row, f"{source.name} {row}")
        made.append(
            {
                "item_id": f"{source.name}:{number}",
                "source": source.name,
                "modality": source.modality,
                "key": key,
                "uri": f"/data/{source.table}" if source.files is None else f"/data/{source.files[0]}",
                "member": None if source.files is None or key is None else f"{key}.bin",
                "row": number + 2,
                "sha256": sha(content),
                "attributes": json.dumps(attributes.get(row, {})),
            }
        )
    return made


def manifest_of(*rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([row for some in rows for row in some], MANIFEST)


def aligned(
    manifest: pa.Table,
    align_settings: AlignSettings,
    root: Path = Path("/data"),
    sources: Sequence[SourceSettings] = SOURCES,
    bad: Sequence[str] = (),
    quarantine: pa.Table | None = None,
    **ties: pa.Table,
) -> Alignment:
    """Aligned with all content clean but `bad`, checked for what holds of each: schemas, order and balance."""
    refused = {m: {sha(content) for content in bad} for m in MODALITIES}
    usable = manifest.filter(pc.invert(pc.is_in(manifest["sha256"], pa.array([*refused["text"]], pa.string()))))
    clean = {m: pa.table({"id": usable.filter(pc.equal(usable["modality"], m))["sha256"]}) for m in MODALITIES}
    found = align(manifest, clean, align_settings, sources, root, refused, quarantine, **ties)
    assert found.samples.schema.equals(SAMPLES) and found.quarantine.schema.equals(QUARANTINE)
    assert found.samples["sample_id"].to_pylist() == sorted(set(found.samples["sample_id"].to_pylist()))
    rows = [{"stage": "clean", "modality": m, "sha256": s} for m in MODALITIES for s in refused[m]]
    refusals = pa.Table.from_pylist(rows, QUARANTINE)
    balance = item_balance(manifest, pa.concat_tables([found.quarantine, refusals]), found.samples)
    assert balance.holds, balance
    return found


def counted(samples: pa.Table) -> Counter[str]:
    return Counter(samples["split"].to_pylist())


def reasons(found: Alignment) -> dict[str, str]:
    return {row["item_id"]: row["reason"] for row in found.quarantine.to_pylist() if row["item_id"]}


def write_csv(path: Path, *rows: Sequence[str]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


# Labels that no column holds


def test_a_sample_is_its_own_label_where_the_output_says_so() -> None:
    output, align_settings = OUTPUTS.make(OUTPUTS.choose("embedding"), {}), AlignSettings()
    manifest = manifest_of(items(IMAGES, ["a", "b", "c"]), items(TEXTS, ["a", "b", "d"]))
    ids = {m: manifest.filter(pc.equal(manifest["modality"], m)).select(["sha256"]) for m in MODALITIES}
    clean = {m: rows.rename_columns(["id"]) for m, rows in ids.items()}

    def samples(*images: str) -> Alignment:
        some = {**clean, "image": clean["image"].filter(pc.is_in(clean["image"]["id"], pa.array(images)))}
        return align(manifest, some, align_settings, SOURCES, Path("/data"), output=output)

    given = {n: sha(f"pictures {n}") for n in "abc"}
    rows = {row["sample_id"]: row for row in samples(*given.values()).samples.to_pylist()}
    assert json.loads(rows["a"]["label"]) == {"image": given["a"], "text": sha("questions a")}
    assert rows["a"]["split"] in SPLITS
    assert [(rows[n]["label"], rows[n]["split"]) for n in "cd"] == [(None, "unlabelled")] * 2
    alone = samples(given["c"]).samples
    with pytest.raises(ValueError, match=r"no sample has 2 modalities or more.*does align.on join what belongs"):
        validate_samples(counted(alone), align_settings, output=output)


# Links


def test_links(tmp_path: Path) -> None:
    manifest = manifest_of(
        items(IMAGES, {"a.png": {}, "b.png": {}, "bad.png": {}, "spare.png": {}, None: {}}),
        items(SOUNDS, {"a.wav": {"speaker": "kim"}, "b.wav": {"speaker": "lee"}}),
        items(TEXTS, ["q1", "q2", "q3", "q4"]),
    )
    write_csv(
        tmp_path / "questions.csv",
        ["id", "question", "picture", "sounds", "answer", "kind"],
        ["q1", "x", "a.png", "a.wav", "1", "sum"],
        ["q2", "x", "b.png", "", "2", "see"],
        ["q3", "x", "bad.png", "gone.wav", "", "sum"],
        ["q4", "x", "refused.png", "b.wav", "4", "hear"],
        ["q5", "", "a.png", "a.wav", "5", "see"],
    )
    early = [("pictures", "image", "refused.png", "too_large"), ("questions", "text", "q5", "absent")]
    quarantine = pa.Table.from_pylist(
        [
            {"stage": "manifest", "outcome": "quarantined", "source": s, "modality": m, "key": k, "reason": r}
            for s, m, k, r in early
        ],
        QUARANTINE,
    )
    align_settings = AlignSettings(
        table="questions.csv", columns={"pictures": ("picture",)}, id="id", label="answer", group=("speaker",)
    )
    found = aligned(manifest, align_settings, tmp_path, bad=["pictures bad.png"], quarantine=quarantine)
    rows = {row["sample_id"]: row for row in found.samples.to_pylist()}
    status = {k: (r["text_status"], r["image_status"], r["speech_status"]) for k, r in rows.items()}
    assert status == {
        "q1": ("present", "present", "present"),
        "q2": ("present", "present", "absent"),
        "q3": ("present", "quarantined", "not_found"),
        "q4": ("present", "quarantined", "present"),
        "q5": ("absent", "present", "present"),
    }
    assert rows["q1"]["image_id"] == sha("pictures a.png") and rows["q1"]["speech_item"] == "sounds:0"
    assert rows["q3"]["image_id"] is None and rows["q3"]["image_item"] is None
    assert json.loads(rows["q1"]["attributes"]) == {"kind": "sum"}
    assert [rows[k]["label"] for k in sorted(rows)] == ["1", "2", None, "4", "5"]
    assert rows["q3"]["split"] == "unlabelled" and json.loads(rows["q4"]["groups"]) == {"speaker": "lee"}
    assert rows["q2"]["groups"] == "{}"
    assert reasons(found) == {"pictures:3": "not_linked", "pictures:4": "no_key"}


def test_links_may_name_files_in_full_where_keys_have_no_suffix(tmp_path: Path) -> None:
    plain = SourceSettings.of(name="pictures", modality="image", files="pictures")
    rows = [row | {"uri": f"/data/pictures/{row['key']}.png", "member": None} for row in items(plain, ["a", "d/b"])]
    write_csv(tmp_path / "links.csv", ["pictures", "label"], ["a.png", "1"], ["d/b", "2"])
    found = aligned(manifest_of(rows), AlignSettings(table="links.csv", label="label"), tmp_path, [plain])
    assert sorted(found.samples["image_item"].to_pylist()) == ["pictures:0", "pictures:1"]


def test_links_that_give_no_sample_are_recorded(tmp_path: Path) -> None:
    manifest = manifest_of(items(IMAGES, ["a.png", "b.png", "c.png"]), items(SOUNDS, ["a.wav", "b.wav"]))
    rows = [["a.png", "a.wav"], ["gone.png", ""], ["b.png", "gone.wav"], ["c.png", "b.wav"], ["c.png", ""]]
    write_csv(tmp_path / "links.csv", ["image", "speech"], *rows)
    with (tmp_path / "links.csv").open("a") as file:
        file.write("one,too,many\n")
    align_settings = AlignSettings(table="links.csv", require=("speech",))
    found = aligned(manifest, align_settings, tmp_path, [IMAGES, SOUNDS])
    assert found.samples.num_rows == 2
    assert reasons(found) == {"pictures:1": "requires_speech"}  # c.png is used by another row
    links = {row["row"]: row["reason"] for row in found.quarantine.to_pylist() if row["item_id"] is None}
    assert links == {3: "no_input", 4: "requires_speech", 6: "requires_speech", 7: "malformed"}


def test_items_that_share_a_key_are_linked_once(tmp_path: Path) -> None:
    manifest = manifest_of(items(TEXTS, [("q1", "one"), ("q1", "two")]))
    write_csv(tmp_path / "questions.csv", ["id", "question"], ["q1", "x"])
    found = aligned(manifest, AlignSettings(table="questions.csv", id="id"), tmp_path, [TEXTS])
    assert found.samples["text_item"].to_pylist() == ["questions:0"]
    assert reasons(found) == {"questions:1": "ambiguous"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"label": "lable"}, "no table has a column 'lable'; there are id, image, label, pictures.file"),
        ({"columns": {"pictures": ("img",)}}, "no column 'img'"),
        (
            {"columns": {"pictures": ("id",)}},
            r"nothing in column 'id' .*: the column has 's1', 's2', the source has 'a.png'",
        ),
        ({"columns": {"photos": ("id",)}}, "'photos', which is no source; there are pictures"),
        ({"id": "label"}, r"name each sample once, but has '1' in lines 2, 3"),
        ({"id": None}, r"lines 2, 3\): remove them"),
        ({"table": "gone.csv"}, "no such table"),
    ],
)
def test_wrong_links_are_an_error(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    write_csv(tmp_path / "links.csv", ["id", "image", "label"], ["s1", "a.png", "1"], ["s2", "a.png", "1"])
    fields: dict[str, Any] = {"table": "links.csv", "id": "id", "label": "label"} | change
    with pytest.raises(ValueError, match=says):
        aligned(manifest_of(items(IMAGES, ["a.png"])), AlignSettings(**fields), tmp_path, [IMAGES])


def test_source_without_a_column_of_links_is_an_error(tmp_path: Path) -> None:
    write_csv(tmp_path / "links.csv", ["image"], ["a.png"])
    with pytest.raises(ValueError, match=r"no column 'sounds' or 'speech'.*align.columns; it has image"):
        aligned(manifest_of(items(IMAGES, ["a.png"])), AlignSettings(table="links.csv"), tmp_path, [IMAGES, SOUNDS])


# Keys


def test_several_labels_are_one_object_without_those_that_a_row_lacks() -> None:
    cells = {"1": {"drink": "tea", "price": "3", "more": "x"}, "2": {"drink": "", "price": "4.50"}, "3": {"drink": ""}}
    rows = aligned(manifest_of(items(IMAGES, cells)), AlignSettings(label=("drink", "price"))).samples.to_pylist()
    assert [row["label"] for row in rows] == ['{"drink": "tea", "price": "3"}', '{"price": "4.50"}', None]
    assert [row["split"] == "unlabelled" for row in rows] == [False, False, True]
    assert [row["attributes"] for row in rows] == ['{"more": "x"}', "{}", "{}"], "what is answered is no attribute"


def test_keys() -> None:
    manifest = manifest_of(
        items(IMAGES, {"1": {"label": "one"}, "2": {"label": ""}, "bad": {}, "4": {}}),
        items(SOUNDS, ["1", "3", "bad"]),
        items(TEXTS, ["1", None]),
    )
    found = aligned(manifest, AlignSettings(label="label"), bad=["pictures bad"])
    rows = {row["sample_id"]: row for row in found.samples.to_pylist()}
    present = {k: "".join(m[0] for m in MODALITIES if row[f"{m}_id"]) for k, row in rows.items()}
    assert present == {"1": "tis", "2": "i", "3": "s", "4": "i", "bad": "s"}
    assert rows["bad"]["image_status"] == "quarantined" and rows["3"]["image_status"] == "absent"
    assert rows["1"]["label"] == "one" and rows["2"]["label"] is None
    assert reasons(found) == {"questions:1": "no_key"}


def test_items_of_one_key_are_combined_up_to_a_limit() -> None:
    manifest = manifest_of(
        items(IMAGES, [("k", str(n)) for n in range(3)]), items(SOUNDS, [("k", str(n)) for n in range(5)])
    )
    everything = aligned(manifest, AlignSettings()).samples
    assert everything.num_rows == 15 and len(set(everything["split"].to_pylist())) == 1  # one key, one split
    few = aligned(manifest, AlignSettings(max_per_key=4, require=("image", "speech")))
    assert few.samples.num_rows == 4
    assert reasons(few) == {"pictures:1": "too_many", "pictures:2": "too_many", "sounds:4": "too_many"}


def test_sources_of_one_modality_are_united() -> None:
    more = SourceSettings.of(name="more", modality="image", files="more.tar", table="more.csv", key="name")
    manifest = manifest_of(
        items(IMAGES, {"1": {"who": "a"}}), items(more, {"2": {"who": "b"}}), items(SOUNDS, ["1", "2"])
    )
    found = aligned(manifest, AlignSettings(group=("who",)), sources=[IMAGES, more, SOUNDS]).samples
    assert found["groups"].to_pylist() == ['{"who": "a"}', '{"who": "b"}']


def test_column_in_two_tables_needs_the_source() -> None:
    manifest = manifest_of(items(IMAGES, {"1": {"who": "a"}}), items(SOUNDS, {"1": {"who": "b"}}))
    with pytest.raises(ValueError, match=r"write one of pictures\.who, sounds\.who"):
        aligned(manifest, AlignSettings(label="who"))
    assert aligned(manifest, AlignSettings(label="sounds.who")).samples["label"].to_pylist() == ["b"]
    assert aligned(manifest, AlignSettings(label="pictures.file")).samples["label"].to_pylist() == ["1"]  # its key


def test_column_of_a_table_that_two_sources_share_is_one() -> None:
    shared = [
        SourceSettings.of(name="pictures", modality="image", files="pictures", table="t.csv", key="id", file="picture"),
        SourceSettings.of(name="notes", modality="text", table="t.csv", key="id", column="note"),
    ]
    manifest = manifest_of(
        items(shared[0], {"1": {"finding": "x", "note": "n"}, "2": {"finding": "y", "note": ""}}),
        items(shared[1], {"1": {"finding": "x"}}),
    )
    found = aligned(manifest, AlignSettings(label="finding"), sources=shared).samples
    assert found["label"].to_pylist() == ["x", "y"] and found["attributes"].to_pylist() == ["{}", "{}"]


def test_keys_that_match_nothing_are_an_error() -> None:
    manifest = manifest_of(items(IMAGES, ["a.png", "b.png"]), items(SOUNDS, ["a.wav"]), items(TEXTS, ["a.wav"]))
    with pytest.raises(
        ValueError, match=r"no key of modality image .* image has 'a\.png', 'b\.png'; speech has 'a\.wav'"
    ):
        aligned(manifest, AlignSettings())


def test_items_that_were_not_cleaned_are_an_error() -> None:
    manifest = manifest_of(items(IMAGES, ["a"]))
    with pytest.raises(ValueError, match=r"1 items were neither cleaned nor refused.*a.bin"):
        align(manifest, {}, AlignSettings(), SOURCES, Path("/data"), refused={})


keys = st.sampled_from(["a", "b", "c", 'd"/~', None])
contents = st.sampled_from(["x", "y", "z", "bad"])
pairs = st.lists(st.tuples(keys, contents), max_size=8)


@settings(max_examples=10, deadline=None)
@given(pairs, pairs, pairs, st.integers(1, 6), st.sets(st.sampled_from(MODALITIES)), st.randoms())
def test_every_item_ends_in_exactly_one_way(
    images: list[Any], sounds: list[Any], texts: list[Any], most: int, require: set[Any], random: Any
) -> None:
    rows = [*items(IMAGES, images), *items(SOUNDS, sounds), *items(TEXTS, [("a", "text"), *texts])]
    rows += items(IMAGES, [("a", "an image"), ("a", "image")])[1:] + items(SOUNDS, [("a", "z"), ("a", "sound")])[1:]
    for number, row in enumerate(rows):
        row["item_id"] = f"{number:03}"
    align_settings = AlignSettings(max_per_key=most, require=tuple(sorted(require)))
    found = aligned(manifest_of(rows), align_settings, bad=["bad"])  # checks the balance
    assert all(row[f"{m}_id"] is not None for row in found.samples.to_pylist() for m in require)
    # Neither the order of the rows nor how they are chunked matters.
    random.shuffle(rows)
    manifest = pa.concat_tables([manifest_of(rows[:3]), manifest_of(rows[3:])])
    clean = {m: pa.table({"id": manifest["sha256"]}) for m in MODALITIES}
    again = align(manifest, clean, align_settings, SOURCES, Path("/data"), {m: {sha("bad")} for m in MODALITIES})
    assert again.samples.equals(found.samples) and again.quarantine.equals(found.quarantine)


cells = st.sampled_from(["a", "b", "c", 'd"/~', "gone", ""])


@settings(max_examples=15, deadline=None)
@given(pairs, pairs, st.lists(st.tuples(cells, cells), max_size=8), st.booleans())
def test_every_linked_item_ends_in_exactly_one_way(
    images: list[Any], sounds: list[Any], links: list[tuple[str, str]], strict: bool
) -> None:
    manifest = manifest_of(items(IMAGES, [("sure", "x"), *images]), items(SOUNDS, [("sure", "y"), *sounds]))
    links = [("sure", "sure"), *links]
    with tempfile.TemporaryDirectory() as folder:
        rows = [(str(n), image, sound) for n, (image, sound) in enumerate(links)]
        write_csv(Path(folder) / "links.csv", ["id", "image", "speech"], *rows)
        rule = AlignSettings(table="links.csv", id="id", require=("speech",) if strict else ())
        found = aligned(manifest, rule, Path(folder), [IMAGES, SOUNDS], bad=["bad"])  # checks the balance
    clean = {name: {k for k, c in pairs if c != "bad"} for name, pairs in (("image", images), ("speech", sounds))}
    usable = [
        str(n)
        for n, (image, sound) in enumerate(links)
        if n == 0 or sound in clean["speech"] or (image in clean["image"] and not strict)
    ]
    assert found.samples["sample_id"].to_pylist() == sorted(usable)
    dropped = [row for row in found.quarantine.to_pylist() if row["item_id"] is None]
    assert len(dropped) == len(links) - len(usable)


# Balance


def test_balance_sees_a_lost_row_and_one_counted_twice() -> None:
    manifest = manifest_of(items(IMAGES, ["1", "2", None]), items(SOUNDS, ["1", "2"]))
    found = aligned(manifest, AlignSettings())
    assert item_balance(manifest, found.quarantine, found.samples).counts["image"] == {
        "seen": 3, "passed": 2, "unmatched": 1, "quarantined": 0, "duplicate": 0, "lost": 0, "twice": 0,
    }  # fmt: skip
    lost = item_balance(manifest, found.quarantine.slice(0, 0), found.samples)
    assert not lost.holds and lost.counts["image"]["lost"] == 1 and lost.examples == ["pictures:2"]
    both = pa.Table.from_pylist([{"stage": "align", "item_id": "sounds:0", "modality": "speech"}], QUARANTINE)
    twice = item_balance(manifest, pa.concat_tables([found.quarantine, both]), found.samples)
    assert not twice.holds and twice.counts["speech"]["twice"] == 1 and twice.metadata()["examples"] == ["sounds:0"]


# Columns

cells = st.text(st.sampled_from('aé"\\\x01\n, :{}猫'), max_size=4)
columns = st.dictionaries(st.sampled_from(["who", "a/b~c", 'q"', "ü", "answer", "file"]), cells, max_size=4)


def merged(*parts: Mapping[str, str]) -> str:
    """Row by row, what `align` does for all rows at once."""
    return json.dumps({k: v for part in parts for k, v in part.items()}, ensure_ascii=False, sort_keys=True)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(columns, st.none() | columns), min_size=1, max_size=6))
def test_what_rows_say_becomes_labels_groups_and_attributes_as_one_by_one(rows: list[tuple[Any, ...]]) -> None:
    texts, images = {}, {}
    for number, (text, image) in enumerate(rows):
        texts[str(number)] = {"note": "x", **text}
        if image is not None:
            images[str(number)] = image
    images["0"] = {**images.get("0", {}), "answer": "1", "who": "2", "ü": "3"}  # so that there are such columns
    rule = AlignSettings(label=("pictures.answer", "ü") if rows[0][0].get("ü") is None else "pictures.answer")
    rule = replace(rule, group=("pictures.who",))
    both = manifest_of(items(IMAGES, images), items(TEXTS, texts))
    try:
        found = aligned(both, rule, sources=[IMAGES, TEXTS]).samples.to_pylist()
    except ValueError as error:
        assert "is in several tables" in str(error)
        return
    for row in found:
        text, image = texts.get(row["sample_id"], {}), images.get(row["sample_id"], {})
        hidden = {"question", "answer", *(["ü"] if isinstance(rule.label, tuple) else [])}
        kept = [{k: v for k, v in part.items() if k not in hidden} for part in (image, text)]
        assert row["attributes"] == merged(*kept)
        assert row["groups"] == merged({"pictures.who": image["who"]} if image.get("who") else {})
        said = {"pictures.answer": image.get("answer"), "ü": image.get("ü")}
        if isinstance(rule.label, tuple):
            given_labels = {k: v for k, v in said.items() if v}
            assert row["label"] == (merged(given_labels) if given_labels else None)
        else:
            assert row["label"] == (said["pictures.answer"] or None)


# Splits

values = st.dictionaries(st.sampled_from(["speaker", "room", "fold"]), st.sampled_from(["", "a", "b", "c", "d", "e"]))
rules = st.builds(
    AlignSettings,
    group=st.sampled_from([(), ("speaker",), ("speaker", "room")]),
    held_out=st.sampled_from([(), ("fold",), ("fold", "speaker")]),
    split=st.builds(
        SplitSettings, train=st.sampled_from([0.5, 0.8]), validation=st.sampled_from([0.0, 0.2]), seed=st.integers(0, 3)
    ),
)


def splits_of(rows: Sequence[Mapping[str, Any]], rule: AlignSettings) -> list[str]:
    keys = pa.array([row.get("split_keys") for row in rows], pa.list_(pa.string()))
    names = ("speaker", "room", "fold", "sample_id", "label", "held")
    columns = {name: pa.array([row.get(name) for row in rows], pa.string()) for name in names}
    return assign_splits(columns | {"split_keys": keys}, rule).to_pylist()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            values,
            st.text(max_size=3),
            st.none() | st.lists(st.sampled_from("abc")),
            st.none() | st.sampled_from([*SPLITS, "excluded"]),
        ),
        max_size=20,
    ),
    rules,
)
def test_splits_keep_groups_apart(given_rows: list[tuple[Any, ...]], rule: AlignSettings) -> None:
    rows = [row for row, _, _, _ in given_rows]
    each = [row | {"sample_id": str(n), "label": "x"} for n, row in enumerate(rows)]
    splits = splits_of(each, rule)
    assert splits == [split_of(row, rule) for row in each]
    assert splits[:5] == splits_of(each[:5], rule)  # they stay put when data is added
    bound = [
        row | {"sample_id": f"{n}{name}", "split_keys": keys, "label": None if name == "0" else name, "held": held}
        for n, (row, name, keys, held) in enumerate(given_rows)
    ]
    one_by_one = ["unlabelled" if row["label"] is None else split_of(row, rule) for row in bound]
    assert splits_of(bound, rule) == one_by_one
    groups = [{c: v for c, v in row.items() if v} for row in rows]
    samples = pa.Table.from_pylist(
        [
            {"sample_id": str(n), "split": split, "groups": json.dumps(group)}
            for n, (split, group) in enumerate(zip(splits, groups, strict=True))
        ],
        SAMPLES,
    )
    assert leakage(samples, rule).num_rows == 0
    for row, split in zip(each, splits, strict=True):
        assert split in allowed_splits(row, rule) or (split == "excluded" and not allowed_splits(row, rule))


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=8, max_size=8), st.sets(st.integers(0, 7)))
def test_what_is_tied_falls_where_the_samples_of_before_were(groups: list[int], old: set[int]) -> None:
    rule = AlignSettings(label="answer", split=SplitSettings(train=0.4, validation=0.3))
    rows = items(IMAGES, {str(n): {"answer": "x"} for n in range(8)})
    alone = {row["sample_id"]: row["split"] for row in aligned(manifest_of(rows), rule).samples.to_pylist()}
    several = {group for group in groups if groups.count(group) > 1}
    near = [(row["sha256"], str(group)) for row, group in zip(rows, groups, strict=True) if group in several]
    columns = {"sample_id": [str(n) for n in sorted(old)], "split": [alone[str(n)] for n in sorted(old)]}
    before = pa.table({name: pa.array(column, pa.string()) for name, column in columns.items()})
    tied = pa.Table.from_pylist([{"id": content, "near": name} for content, name in near], GROUPS)
    found = aligned(manifest_of(rows), rule, near=tied, before=before).samples.to_pylist()
    splits = [row["split"] for row in found]
    for n, group in enumerate(groups):
        held = [alone[str(other)] for other in sorted(old) if groups[other] == group]
        if group not in several:
            assert splits[n] == alone[str(n)]
        elif held:
            assert splits[n] == min(held, key=SPLITS.index)
        assert splits[n] == splits[groups.index(group)]


def test_shares_are_met() -> None:
    rule = AlignSettings(split=SplitSettings(train=0.7, validation=0.2))
    splits = splits_of([{"sample_id": str(n), "label": "x"} for n in range(20_000)], rule)
    for split, share in rule.split.shares.items():
        assert abs(splits.count(split) / 20_000 - share) < 0.01


def test_test_values_are_the_test_set_and_share_nothing() -> None:
    rule = AlignSettings(group=("clip",), held_out=("speaker",), test_values={"speaker": ("eve",)})
    each = [{"sample_id": f"{n}", "speaker": "eve" if n % 3 else "ann", "clip": f"c{n % 40}"} for n in range(400)]
    for row in each:
        split = split_of(row, rule)
        clip = split_of({"clip": row["clip"]}, AlignSettings(group=("clip",)))
        allowed = {"test"} if row["speaker"] == "eve" else {"train", "validation"}
        assert split == (clip if clip in allowed else "excluded")
    both = AlignSettings(group=("speaker",), held_out=("speaker",), test_values={"speaker": ("eve",)})
    assert split_of({"speaker": "eve"}, both) == "test"
    assert all(split_of({"speaker": name}, both) in ("train", "validation") for name in map(str, range(50)))


def test_split_by_column() -> None:
    rule = AlignSettings(split=SplitSettings(column="fold"))
    assert [split_of({"fold": word}, rule) for word in ("train", " Val ", "test", "")] == [*SPLITS, "excluded"]
    assert split_of({}, rule) == "excluded"
    words = ["train", " Val ", None, "test", "x"]
    rows = [{"fold": word, "label": word if word != "x" else None} for word in words]
    assert splits_of(rows, rule) == ["train", "validation", "unlabelled", "test", "unlabelled"]
    with pytest.raises(ValueError, match="'fold' says 'holdout', expected"):
        splits_of([{"fold": "train", "label": "x"}, {"fold": "holdout", "label": "x"}], rule)
    with pytest.raises(ValueError, match="sample_id is needed"):
        splits_of([{"label": "x"}], AlignSettings())
    with pytest.raises(ValueError, match="'fold' says 'holdout', expected"):
        split_of({"fold": "holdout"}, rule)
    with pytest.raises(ValueError, match="sample_id is needed"):
        split_of({}, AlignSettings())


def samples_of(*rows: Mapping[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([{"sample_id": f"s{n}", "groups": "{}"} | row for n, row in enumerate(rows)], SAMPLES)


def test_leakage_is_seen() -> None:
    rows = [("train", "a", "p"), ("test", "a", "q"), ("validation", "b", "p"), ("train", "b", "r"), ("test", "c", "q")]
    samples = samples_of(
        *({"split": split, "groups": json.dumps({"who": who}), "image_id": image} for split, who, image in rows)
    )
    content = ("content", "image", "p", ["train", "validation"], 2, ["s0", "s2"])
    found = leakage(samples, AlignSettings(group=("who",)))
    assert [tuple(row.values()) for row in found.to_pylist()] == [
        ("group", "who", "a", ["test", "train"], 2, ["s1", "s0"]),
        ("group", "who", "b", ["train", "validation"], 2, ["s3", "s2"]),
        content,
    ]
    held_out = leakage(samples, AlignSettings(held_out=("who",)))
    assert [(r["kind"], r["value"]) for r in held_out.to_pylist()] == [("held_out", "a"), ("content", "p")]
    assert [tuple(row.values()) for row in leakage(samples, AlignSettings()).to_pylist()] == [content]


def test_texts_repeat_beside_media_and_not_alone() -> None:
    texts = [{"split": split, "text_id": "what?"} for split in SPLITS]
    media = [{"split": split, "text_id": "what?", "image_id": split} for split in SPLITS]
    alone = leakage(samples_of(*texts), AlignSettings())
    assert [(r["column"], r["samples"]) for r in alone.to_pylist()] == [("text", 3)]
    both = samples_of(*media, *texts)
    assert leakage(both, AlignSettings()).num_rows == 0
    assert repeated(both, AlignSettings()) == {"text": 1}
    unlabelled = samples_of(*({"split": split, "image_id": "i"} for split in ("train", "unlabelled", "excluded")))
    assert leakage(unlabelled, AlignSettings()).num_rows == 0


def test_shared_contents_are_allowed_by_name_and_equal_inputs_are_not() -> None:
    allowed = AlignSettings(allow_shared=("image", "speech"))
    pairs = [("train", "i", "a", "x"), ("test", "i", "b", "x"), ("test", "j", "a", "x"), ("validation", "i", "a", "y")]
    free = [dict(zip(("split", "image_id", "speech_id", "text_id"), row, strict=True)) for row in pairs]
    assert leakage(samples_of(*free), AlignSettings()).num_rows == 2
    assert leakage(samples_of(*free), allowed).num_rows == 0
    assert repeated(samples_of(*free), allowed) == {"text": 1, "image": 1, "speech": 1}
    (again,) = leakage(samples_of(*free, free[0] | {"split": "test"}), allowed).to_pylist()
    assert (again["kind"], again["column"], again["examples"]) == ("inputs", "text+image+speech", ["s4", "s0"])
    everything = AlignSettings(allow_shared=MODALITIES)
    assert leakage(samples_of(*free, free[0] | {"split": "test"}), everything).num_rows == 0


def test_equal_contents_can_be_kept_on_one_side() -> None:
    rows = [(str(n), f"picture {n % 20}") for n in range(60)]
    manifest = manifest_of(items(IMAGES, rows), items(TEXTS, {str(n): {"label": "x"} for n in range(60)}))
    torn = aligned(manifest, AlignSettings(label="label")).samples
    assert leakage(torn, AlignSettings()).num_rows > 0
    rule = AlignSettings(label="label", group=("image_id",))
    kept = aligned(manifest, rule).samples
    assert leakage(kept, rule).num_rows == 0 and set(kept["split"].to_pylist()) == set(SPLITS)


def test_pools_are_of_training_rows_that_are_equal_in_what_matters() -> None:
    ids = [f"{n:02d}" for n in range(60)]
    digits = {key: {"digit": str(n % 3)} if n % 10 else {} for n, key in enumerate(ids)}
    answers = {key: {"label": "odd" if n % 2 else "even", "digit": "x"} for n, key in enumerate(ids)}
    manifest = manifest_of(items(IMAGES, digits), items(SOUNDS, ids[:50]), items(TEXTS, answers))

    def found(draw: str = "per_epoch", **by: tuple[str, ...]) -> Alignment:
        return aligned(manifest, AlignSettings(label="label", pairing=PairingSettings(draw=draw, by=by)))

    both = found(pictures=("digit",), sounds=("label",))
    for row in both.samples.to_pylist():
        n, trained = int(row["sample_id"]), row["split"] == "train"
        image, speech = (json.loads(row[f"{m}_pool"]) if row[f"{m}_pool"] else None for m in ("image", "speech"))
        assert image == (["pictures", str(n % 3)] if trained and n % 10 else None), "its own digit, not the text's"
        assert speech == (["sounds", row["label"]] if trained and n < 50 else None)
        assert row["text_pool"] is None
    several = found(pictures=("digit", "label")).samples["image_pool"].drop_null()
    assert len(set(several.to_pylist())) == 6
    fixed = [found("once", pictures=("digit",)).samples, aligned(manifest, AlignSettings(label="label")).samples]
    assert len({samples_fingerprint(samples) for samples in [*fixed, both.samples]}) == 2 and not both.findings
    (finding,) = found(pictures=("file",), sounds=("label",)).findings
    assert finding.code == "pairing" and finding.message.startswith("align.pairing.by.pictures: no two contents of")
    with pytest.raises(ValueError, match=r"^align.pairing.by.sounds: no table has a column 'digti'; there are .*digit"):
        found(sounds=("digti",))


def test_leaks_are_told_with_what_to_do() -> None:
    samples = samples_of(*({"split": split, "image_id": "i"} for split in SPLITS))
    rule = AlignSettings(group=("who",))
    words = leak_words(leakage(samples, rule), rule)
    assert words == (
        "1 content of image stands on more than one side of a split (3 samples: 's2' in test, 's0' in train, 's1' in "
        "validation): set align.group: [who, image_id] to keep equal ones on one side, or align.allow_shared: [image] "
        "where that is meant"
    )
    by_column = AlignSettings(split=SplitSettings(column="part"))
    assert "mend column 'part'" in leak_words(leakage(samples, by_column), by_column)


def test_wrong_settings_are_an_error() -> None:
    with pytest.raises(ValueError, match="test_values is 'who', expected columns of held_out"):
        AlignSettings(test_values={"who": ("a",)})
    with pytest.raises(ValueError, match="id is 'x', expected nothing unless there is a link `table`"):
        AlignSettings(id="x")
    with pytest.raises(ValueError, match="encoding is 'utf-9'"):
        AlignSettings(encoding="utf-9")


# Snapshot


def test_fingerprint_is_that_of_the_content() -> None:
    manifest = manifest_of(items(IMAGES, {"1": {"label": "x"}, "2": {"label": "y"}}), items(SOUNDS, ["1", "2"]))
    samples = aligned(manifest, AlignSettings(label="label")).samples
    name = samples_fingerprint(samples)
    backwards = pa.concat_tables([samples.slice(1), samples.slice(0, 1)])
    assert samples_fingerprint(backwards) == name

    def changed(column: str, value: str) -> pa.Table:
        return pa.Table.from_pylist([row | {column: value} for row in samples.to_pylist()], SAMPLES)

    assert samples_fingerprint(changed("image_item", "elsewhere")) == name
    for column in ("label", "split", "image_id", "groups", "attributes", "speech_status"):
        assert samples_fingerprint(changed(column, "z")) != name
    assert samples_fingerprint(samples.slice(1)) != name


@pytest.mark.parametrize(
    ("splits", "rule", "says"),
    [
        ([], AlignSettings(), "no samples"),
        (["unlabelled"], AlignSettings(), "align.label is not set"),
        (["unlabelled"], AlignSettings(label="answer"), "'answer' is empty in every row"),
        (["train", "train"], AlignSettings(), r"no sample in test \(there are 2 train\): change align.split"),
        (["test", "excluded"], AlignSettings(group=("who",)), "no sample in train .*too few values of who"),
        (["train"], AlignSettings(split=SplitSettings(column="fold")), "column 'fold' has to say test"),
    ],
)
def test_samples_that_cannot_be_used_are_an_error(splits: list[str], rule: AlignSettings, says: str) -> None:
    samples = pa.Table.from_pylist([{"sample_id": str(n), "split": split} for n, split in enumerate(splits)], SAMPLES)
    with pytest.raises(ValueError, match=says):
        validate_samples(counted(samples), rule)
    fine = [{"sample_id": str(n), "split": split} for n, split in enumerate(["train", "test"])]
    validate_samples(counted(pa.Table.from_pylist(fine, SAMPLES)), rule)


def test_columns_that_two_sources_have_from_paths_are_two(tmp_path: Path) -> None:
    sources = [
        SourceSettings.of(name=name, modality=modality, files=name, path="{patient}_{visit}", key="visit")
        for name, modality in (("scans", "image"), ("notes", "speech"))
    ]
    rows = [items(s, {"v1": {"patient": f"{s.name}1"}, "v2": {"patient": f"{s.name}2"}}) for s in sources]
    with pytest.raises(ValueError, match=r"several tables: write one of scans\.patient, notes\.patient"):
        aligned(manifest_of(*rows), AlignSettings(label="patient"), tmp_path, sources)
    found = aligned(manifest_of(*rows), AlignSettings(label="notes.patient"), tmp_path, sources)
    assert found.samples["label"].to_pylist() == ["notes1", "notes2"]
