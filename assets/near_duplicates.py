"""Which contents of a modality are the same but for how they were kept or changed: decided from their signatures.

Candidates share a key (`training.signatures`), so the work grows with the contents, not with their pairs; what is told
is what the comparison of two signatures says.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.lake import Lake
from assets.processing import SIGNATURE_STEP, Step
from training.schema import NEAR_DUPLICATES, conform, fingerprint
from training.signatures.base import Signature

GROUPS = pa.schema([("id", pa.string()), ("near", pa.string())])  # a content, and the least id of its group
_VERSION = 2  # count up when other pairs are found in the same signatures
_MOST = 16  # of the contents that share a key, those that each is compared with: what all share tells nothing
_MARKED = 20  # bits of keys that a table of those there are tells apart
_SIGNED = """
SELECT id, any_value(value) AS value FROM signatures WHERE fingerprint = $key AND value IS NOT NULL
GROUP BY id ORDER BY id
"""


def write_pairs(lake: Lake, steps: Mapping[str, Step], contents: Mapping[str, pa.ChunkedArray]) -> pa.Table:
    """`find_pairs`, and puts the table `near_duplicates` in place."""
    pairs, keys = find_pairs(lake, steps, contents)
    note = {"made": str(_VERSION)} | keys  # never empty: a commit without a note leaves the one before in force
    if lake.note("near_duplicates") != note:
        lake.replace("near_duplicates", pairs, note=note)
    return pairs


def find_pairs(
    lake: Lake, steps: Mapping[str, Step], contents: Mapping[str, pa.ChunkedArray]
) -> tuple[pa.Table, dict[str, str]]:
    """Rows of `near_duplicates`, and of each modality that is signed what they depend on; what the table says of the
    same signatures is not decided again.

    Args:
        contents: modality -> ids of the contents among which pairs are sought.
    """
    before, note = lake.read("near_duplicates"), lake.note("near_duplicates")
    rows, keys = [NEAR_DUPLICATES.empty_table()], {}
    for modality, step in steps.items():
        if step.signature is None:
            continue
        key, least = step.fingerprints[SIGNATURE_STEP], step.signature[1].options.least
        signed = lake.sql("SELECT DISTINCT id FROM signatures WHERE fingerprint = $key ORDER BY id", {"key": key})["id"]
        ids = signed.filter(pc.is_in(signed, contents[modality].combine_chunks()))
        digest = hashlib.sha256("".join(ids.to_pylist()).encode()).hexdigest()
        keys[modality] = fingerprint("near", _VERSION, key, least, digest)
        if note.get(modality) == keys[modality]:
            rows.append(before.filter(pc.equal(before["modality"], modality)))
        else:
            rows.append(_pairs(lake, step, ids))
    return pa.concat_tables(rows), keys


def _pairs(lake: Lake, step: Step, ids: pa.ChunkedArray) -> pa.Table:
    assert step.signature is not None
    signed = lake.sql(_SIGNED, {"key": step.fingerprints[SIGNATURE_STEP]})
    signed = signed.filter(pc.is_in(signed["id"], ids.combine_chunks()))
    first, second, similarity = alike(step.signature[1], signed["value"].to_pylist())
    columns = {"first": signed["id"].take(pa.array(first)), "second": signed["id"].take(pa.array(second))}
    columns |= {"modality": pa.repeat(step.modality, len(first)), "similarity": pa.array(similarity)}
    return conform(pa.table(columns), NEAR_DUPLICATES)


def alike(signature: Signature, values: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of the signatures that are near duplicates, the smaller first, and how alike they are; in order."""
    if len(values) < 2:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    pairs = candidates(signature.keys(values))
    similarity, (first, second, _) = signature.similarity(values, pairs), pairs
    near = similarity >= signature.options.least
    low, high, similarity = np.minimum(first, second)[near], np.maximum(first, second)[near], similarity[near]
    order = np.lexsort((high, low))
    return low[order], high[order], similarity[order]


def candidates(keys_NVB: np.ndarray) -> np.ndarray:
    """int64 (3, pairs): two contents, once each, and the variant of the second one in which they share most keys.

    Of more than `_MOST` contents with one key each is compared with as many others, so that these still hang together.
    """
    count, variants, bands = keys_NVB.shape
    number = np.repeat(np.arange(count), variants), np.tile(np.arange(variants), count)
    found = []
    for band in range(bands):
        own, asked = keys_NVB[:, 0, band], keys_NVB[:, :, band].ravel()
        order = np.argsort(own, kind="stable")
        place = np.empty(count, np.int64)
        place[order] = np.arange(count)
        is_there = np.zeros(2**_MARKED, bool)  # most keys are nobody's own
        is_there[own & (2**_MARKED - 1)] = True
        likely = np.flatnonzero(is_there[asked & (2**_MARKED - 1)])
        start, end = (np.searchsorted(own[order], asked[likely], side) for side in ("left", "right"))
        size, each = end - start, np.minimum(end - start, _MOST)
        entry = np.repeat(np.arange(len(likely)), each)
        moved, variant = (of[likely][entry] for of in number)
        turn = np.arange(len(moved)) - np.repeat(np.cumsum(each) - each, each)
        turn += np.where(variant == 0, place[moved] - start[entry] + 1, moved)  # each with others
        fixed = order[start[entry] + turn % size[entry]]
        pair = np.minimum(fixed, moved) * count + np.maximum(fixed, moved)
        found.append(((pair * 2 + (fixed < moved)) * variants + variant)[fixed != moved])
    ways, votes = np.unique(np.concatenate(found), return_counts=True)
    pair, variant = ways // (2 * variants), ways % variants
    best = np.lexsort((variant, -votes, pair))
    best = best[np.unique(pair[best], return_index=True)[1]]
    in_order, (low, high) = ways[best] // variants % 2 == 1, np.divmod(pair[best], count)
    return np.stack([np.where(in_order, low, high), np.where(in_order, high, low), variant[best]])


def near_groups(pairs: pa.Table) -> pa.Table:
    """The contents of the pairs and what hangs together, directly or by others (schema GROUPS), sorted by id."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names = np.unique(np.concatenate([pairs[one].to_numpy().astype(str) for one in ("first", "second")]))
    ends = [np.searchsorted(names, pairs[one].to_numpy().astype(str)) for one in ("first", "second")]
    edges = coo_array((np.ones(pairs.num_rows, bool), ends), shape=(len(names), len(names)))
    labels = connected_components(edges, directed=False)[1] if len(names) else np.empty(0, np.int64)
    _, least = np.unique(labels, return_index=True)  # names are in order
    return pa.table([pa.array(names, pa.string()), pa.array(names[least[labels]], pa.string())], GROUPS)
