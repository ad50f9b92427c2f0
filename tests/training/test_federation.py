"""Rounds between a coordinator and its silos: what is averaged, hidden, refused, and left out. The coordinator is a
real server on loopback; whole trainings are in `tests/test_federation_end_to_end.py`."""

import dataclasses
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from training.catalog import AGGREGATIONS, COMBINATIONS
from training.family import Choice
from training.federation import masks, wire
from training.federation.board import Board, Update
from training.federation.client import Coordinator
from training.federation.coordinator import Rounds
from training.federation.parts import check_update, combined, mean_of_sums, weighed
from training.federation.proximal import Proximal
from training.federation.server import serving
from training.federation.settings import TOKEN, FederationSettings, PrivacySettings
from training.federation.wire import Joining, Learned, RefusedError, token_of

SECRET = "of the coordinator"
NAMES = ("a", "b", "c", "d")
PARTS = {"model": "1", "training": "2", "features": "3", "federation": "4"}
SETTINGS = FederationSettings(
    silos=NAMES,
    modalities=("text", "image"),
    rounds=2,
    wait_seconds=5,
    silent_seconds=1.5,
    combination=Choice("median"),
)
WEIGHTS = {
    "encoders.image.weight": np.zeros((2, 3), np.float32),
    "head.weight": np.ones((4,), np.float32),
    "head.running_var": np.ones((2,), np.float32),
}
LEARNED = frozenset({"encoders.image.weight", "head.weight"})
numbers = st.floats(-1e3, 1e3, width=32)


def changes(value: float) -> dict[str, np.ndarray]:
    return {name: np.full_like(weight, value) for name, weight in WEIGHTS.items()}


def update(silo: str, value: float, **rows: int) -> Update:
    of = {"": 10} | rows
    own = {n: x for n, x in changes(value).items() if "image" not in n or "image" in rows}
    return Update(silo, own, Learned(number=1, rows=of))


@pytest.mark.parametrize("kind", COMBINATIONS.names())
@settings(max_examples=30)
@given(data=st.data(), silos=st.integers(1, 6))
def test_a_combination_takes_silos_in_any_order_and_agrees_with_who_agree(kind, data, silos):
    of = COMBINATIONS.make(COMBINATIONS.choose(kind))
    changes_SP = np.array([data.draw(st.lists(numbers, min_size=3, max_size=3)) for _ in range(silos)])
    weights_S = np.array([data.draw(st.integers(1, 1000)) for _ in range(silos)], float)
    said, order = of.combine(changes_SP, weights_S), data.draw(st.permutations(range(silos)))
    np.testing.assert_allclose(of.combine(changes_SP[order], weights_S[order]), said, rtol=1e-6, atol=1e-6)
    same = np.tile(changes_SP[0], (silos, 1))
    np.testing.assert_allclose(of.combine(same, weights_S), changes_SP[0], rtol=1e-6, atol=1e-6)
    assert np.abs(said).max() <= np.abs(changes_SP).max() * (1 + 1e-9)


@pytest.mark.parametrize("kind", ["median", "krum"])
@pytest.mark.parametrize("lie", [lambda x: 1000 * x, lambda x: -x, lambda x: -50 * x])
def test_one_liar_among_five_moves_little(kind, lie):
    random = np.random.default_rng(0)
    honest = 1 + 0.3 * random.normal(size=(4, 400))
    of = COMBINATIONS.make(COMBINATIONS.choose(kind))
    said = of.combine(np.vstack([honest, lie(honest[:1])]), np.array([10, 10, 10, 10, 1e6]))
    assert np.abs(said - honest.mean(0)).mean() < 0.3
    mean = COMBINATIONS.make(Choice("mean")).combine(np.vstack([honest, lie(honest[:1])]), np.ones(5))
    assert np.abs(mean - honest.mean(0)).mean() > 0.3


def test_only_silos_that_have_a_modality_count_for_its_part():
    updates = [update("a", 1.0, image=30), update("b", 4.0, image=10), update("c", 9.0)]
    found = combined(WEIGHTS, updates, COMBINATIONS.make(Choice("mean")), LEARNED)
    np.testing.assert_allclose(found["encoders.image.weight"], 1.75)
    np.testing.assert_allclose(found["head.weight"], (1 + 4 + 9) / 3, rtol=1e-6)
    nobody = combined(WEIGHTS, [update("c", 9.0)], COMBINATIONS.make(Choice("mean")), LEARNED)
    assert not nobody["encoders.image.weight"].any()


def test_fedadam_takes_the_steps_of_its_paper_and_goes_on_from_its_state():
    choice = AGGREGATIONS.choose({"kind": "fedadam", "learning_rate": 0.1, "beta1": 0.5, "beta2": 0.75, "tau": 1.0})
    whole, cut = AGGREGATIONS.make(choice), AGGREGATIONS.make(choice)
    first = whole.step(WEIGHTS, changes(2.0), LEARNED)
    # m = 1, v = 1: 1 + 0.1 * 1 / (1 + 1)
    np.testing.assert_allclose(first["head.weight"], 1.05)
    np.testing.assert_allclose(first["head.running_var"], 3.0)
    second = whole.step(first, changes(2.0), LEARNED)
    np.testing.assert_allclose(second["head.weight"], 1.05 + 0.1 * 1.5 / (1.75**0.5 + 1), rtol=1e-6)
    cut.step(WEIGHTS, changes(2.0), LEARNED)
    again = AGGREGATIONS.make(choice)
    again.restore(cut.state())
    np.testing.assert_array_equal(again.step(first, changes(2.0), LEARNED)["head.weight"], second["head.weight"])


def test_fedprox_pulls_back_to_where_the_round_began():
    assert AGGREGATIONS.make(AGGREGATIONS.choose({"kind": "fedprox", "mu": 0.5})).proximal == 0.5
    assert AGGREGATIONS.make(Choice("fedavg")).proximal == 0
    layer = torch.nn.Linear(2, 1, bias=False)
    began, term = layer.weight.detach().clone(), Proximal(layer, 0.5)
    with torch.no_grad():
        layer.weight += 3
    layer(torch.ones(1, 2)).sum().backward()
    term.pull()
    torch.testing.assert_close(layer.weight.grad, 1 + 0.5 * (layer.weight.detach() - began))


@settings(max_examples=20)
@given(data=st.data(), silos=st.integers(2, 5))
def test_masks_cancel_in_the_sum_and_hide_what_is_added(data, silos):
    keys = {f"s{n}": masks.new_key() for n in range(silos)}
    public = {name: masks.public(key) for name, key in keys.items()}
    values = [np.array(data.draw(st.lists(numbers, min_size=4, max_size=4))) for _ in keys]
    hidden = [
        masks.masked(x, key, public, name, ("session", 1, 1))
        for x, (name, key) in zip(values, keys.items(), strict=True)
    ]
    np.testing.assert_allclose(masks.summed(hidden), sum(values), atol=1e-6)
    again = masks.masked(values[0], keys["s0"], public, "s0", ("session", 1, 2))
    plain = np.rint(values[0] * 2**24).astype(np.int64).view(np.uint64)
    assert (hidden[0] != plain).any() and (hidden[0] != again).any(), "a mask is never used twice"


def test_a_sum_of_hidden_changes_is_the_mean_by_rows_of_each_part():
    told = [({"": 10, "image": 30}, changes(1.0)), ({"": 20, "image": 10}, changes(4.0)), ({"": 30}, changes(9.0))]
    sums = sum(
        weighed({n: x for n, x in of.items() if "image" in rows or "image" not in n}, rows, WEIGHTS)
        for rows, of in told
    )
    found = mean_of_sums(sums, WEIGHTS)
    np.testing.assert_allclose(found["encoders.image.weight"], 1.75)
    np.testing.assert_allclose(found["head.weight"], (10 + 80 + 270) / 60)
    with pytest.raises(ValueError, match="other numbers"):
        mean_of_sums(-np.ones_like(sums), WEIGHTS)


def test_numbers_that_would_turn_round_are_not_hidden():
    key = masks.new_key()
    for bad in (np.array([np.nan]), np.array([1e30])):
        with pytest.raises(ValueError, match="too large"):
            masks.masked(bad, key, {"a": masks.public(key), "b": masks.public(masks.new_key())}, "a", (1,))


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"head.weight": np.full(4, np.nan, np.float32)}, "head.weight holds numbers that are none"),
        ({"head.weight": np.ones(5, np.float32)}, r"head.weight is float32 \(5,\)"),
        ({"head.weight": np.ones(4)}, "head.weight is float64"),
        ({"head.running_var": np.full(2, -2, np.float32)}, "variance below zero"),
        ({"other": np.ones(1, np.float32)}, "other tensors .* other"),
    ],
)
def test_what_is_no_change_of_the_weights_is_refused_by_name(wrong, why):
    rows = {"": 5, "image": 2}
    check_update(WEIGHTS, changes(0.1), Learned(number=1, rows=rows))
    with pytest.raises(RefusedError, match=why):
        check_update(WEIGHTS, changes(0.1) | wrong, Learned(number=1, rows=rows))
    for count in (0, -3, 2**50):
        with pytest.raises(RefusedError, match="rows"):
            check_update(WEIGHTS, changes(0.1), Learned(number=1, rows={"": count, "image": 2}))


@pytest.fixture
def hall(monkeypatch, tmp_path: Path):
    """A coordinator that listens, and what makes silos for it."""
    monkeypatch.setenv(TOKEN, SECRET)
    said: list[str] = []

    class Hall:
        def open(self, chosen: FederationSettings = SETTINGS):
            self.board = Board(chosen, PARTS, said.append)
            self.rounds = Rounds(chosen, self.board, LEARNED, tmp_path / "state.safetensors", said.append)
            return serving(self.board, "127.0.0.1:0", lambda: 2**16)

        def silo(self, url: str, name: str, token: str | None = None) -> Coordinator:
            monkeypatch.setenv(TOKEN, token or token_of(SECRET, name))
            made = Coordinator(url, name, 2)
            monkeypatch.setenv(TOKEN, SECRET)
            return made

    hall = Hall()
    hall.said = said
    return hall


def joining(name: str, key: str = "") -> Joining:
    return Joining(silo=name, parts=PARTS, modalities={"text": 10, "image": 5}, rows=10, key=key)


def work(silo: Coordinator, teach: Callable[[wire.Task, dict], dict | None], refusals: list[str]) -> threading.Thread:
    """A silo in a thread, which learns as told; None: it falls silent."""

    def run() -> None:
        silo.join(joining(silo.silo))
        while not isinstance(said := silo.next_round(), str):
            weights, task = said
            if (learned := teach(task, weights)) is None:
                return
            try:
                silo.send(learned, Learned(number=task.number, attempt=task.attempt, rows={"": 10, "image": 5}))
            except RefusedError as error:
                refusals.append(f"{silo.silo}: {error}")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_a_round_goes_on_without_who_lies_or_dies(hall):
    refusals: list[str] = []
    flipped = changes(-500.0) | {"head.running_var": np.zeros(2, np.float32)}
    teaching = {
        "a": lambda task, weights: changes(1.0),
        "b": lambda task, weights: changes(1.2),
        "c": lambda task, weights: changes(np.nan) if task.number == 1 else flipped,
        "d": lambda task, weights: None,
    }
    with hall.open() as url:
        threads = [work(hall.silo(url, name), teach, refusals) for name, teach in teaching.items()]
        hall.board.gather(4)
        weights, told = hall.rounds.hold(1, WEIGHTS, False)
        assert told["silos"] == 2
        np.testing.assert_allclose(weights["head.weight"], 2.1, atol=0.06)
        weights, told = hall.rounds.hold(2, weights, False)
        assert told["silos"] == 3
        np.testing.assert_allclose(weights["head.weight"], 3.1, atol=0.2)
        hall.board.ended = "done"
        hall.board.dismiss()
        for thread in threads:
            thread.join(5)
    assert refusals == ["c: encoders.image.weight holds numbers that are none (NaN or infinite)"]
    assert any("d fell silent" in line for line in hall.said) and any("c sent is refused" in line for line in hall.said)
    again = Rounds(SETTINGS, hall.board, LEARNED, hall.rounds.state, hall.said.append)
    restored, number = again.restored(WEIGHTS)
    assert number == 2
    np.testing.assert_array_equal(restored["head.weight"], weights["head.weight"])


def test_hidden_changes_are_summed_and_a_lost_silo_repeats_the_round(hall):
    secure = dataclasses.replace(SETTINGS, secure=True, combination=Choice("mean"), least=3)
    keys = {name: masks.new_key() for name in NAMES}
    rows = {"": 10, "image": 5}

    def run(silo: Coordinator, value: float) -> None:
        silo.join(joining(silo.silo, masks.public(keys[silo.silo])))
        while not isinstance(said := silo.next_round(), str):
            weights, task = said
            if silo.silo == "d":
                return
            attempt = ("session", task.number, task.attempt)
            hidden = masks.masked(
                weighed(changes(value), rows, weights), keys[silo.silo], task.keys, silo.silo, attempt
            )
            silo.send({"masked": hidden}, Learned(number=task.number, attempt=task.attempt))

    with hall.open(secure) as url:
        silos = [threading.Thread(target=run, args=(hall.silo(url, n), v), daemon=True) for v, n in enumerate(NAMES)]
        for silo in silos:
            silo.start()
        hall.board.gather(4)
        weights, told = hall.rounds.hold(1, WEIGHTS, True)
        hall.board.ended = "done"
        hall.board.dismiss()
    np.testing.assert_allclose(weights["head.weight"], 1 + 1.0, atol=1e-5)
    assert told == {"silos": 3.0} and any("repeated, since d" in line for line in hall.said)


def test_who_may_not_take_part_is_told_why(hall):
    with hall.open() as url:
        with pytest.raises(wire.NotAllowedError, match="has another token"):
            hall.silo(url, "a", token_of(SECRET, "b")).join(joining("a"))
        with pytest.raises(wire.NotAllowedError, match="z is no silo"):
            hall.silo(url, "z").join(joining("z"))
        silo = hall.silo(url, "a")
        with pytest.raises(wire.UnknownSiloError, match="join first"):
            silo.plan()
        with pytest.raises(wire.NotAllowedError, match="features, training differ"):
            silo.join(dataclasses.replace(joining("a"), parts=PARTS | {"training": "x", "features": "y"}))
        with pytest.raises(wire.NotAllowedError, match="has no training row"):
            silo.join(dataclasses.replace(joining("a"), rows=0, modalities={"text": 0}))
        with pytest.raises(RefusedError, match="no Joining: rows"):
            silo.join(dataclasses.replace(joining("a"), rows="many"))
        silo.join(joining("a"))
        with pytest.raises(wire.TooLateError, match="round 7 is over"):
            silo.send(changes(1.0), Learned(number=7))
        with pytest.raises(RefusedError, match="more than 65,536 bytes"):
            silo.send({"x": np.zeros(2**16, np.float32)}, Learned(number=1))
        request = urllib.request.Request(f"{url}/update", b"\x80\x04.", method="POST")
        for name, value in silo._headers.items():
            request.add_header(name, value)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request)
        assert refused.value.code == 400 and b"no message of safetensors" in refused.value.read()


def test_a_message_without_what_is_said_beside_it_is_refused():
    for body in (b"", b"abc", save({"x": np.zeros(1)}), save({"x": np.zeros(1)}, {"triptych": "{}"})):
        with pytest.raises(RefusedError):
            wire.unpacked(body, Learned)
    tensors, said = wire.unpacked(wire.packed(WEIGHTS, Learned(number=3, rows={"": 4}, loss=0.5)), Learned)
    assert said == Learned(number=3, rows={"": 4}, loss=0.5)
    np.testing.assert_array_equal(tensors["head.weight"], WEIGHTS["head.weight"])


OTHERWISE = {
    **{"modalities": ("text",), "labels": ("yes",), "share_labels": True, "rounds": 3, "epochs": 0.5, "number": 2},
    **{"aggregation": "fedadam", "combination": "mean", "privacy": PrivacySettings()},
}


def test_who_has_other_settings_is_noticed():
    for name, value in OTHERWISE.items():
        assert dataclasses.replace(SETTINGS, **{name: value}).shared() != SETTINGS.shared(), name
    hidden = dataclasses.replace(SETTINGS, combination="mean", least=3)
    assert dataclasses.replace(hidden, secure=True).shared() != hidden.shared()
    for field in dataclasses.fields(PrivacySettings):
        other = PrivacySettings(**{field.name: 0.5})
        changed, plain = (dataclasses.replace(SETTINGS, privacy=p).shared() for p in (other, PrivacySettings()))
        assert changed != plain, field.name
    own = {"silos", "listen", "coordinator", "silo", "least", "wait_seconds", "silent_seconds", "round_seconds"}
    assert {*OTHERWISE, *own, "secure"} == {field.name for field in dataclasses.fields(FederationSettings)}


def test_too_few_silos_end_the_wait_and_a_slow_one_the_round():
    chosen = dataclasses.replace(SETTINGS, wait_seconds=0.3, round_seconds=0.3, silent_seconds=60)
    said: list[str] = []
    board = Board(chosen, PARTS, said.append)
    board.join(joining("a"))
    with pytest.raises(RuntimeError, match=r"1 silos are there after 0.3 s, and federation.least is 2.* at b, c, d"):
        board.gather(4)
    board.join(joining("b"))
    assert board.gather(4) == ["a", "b"]
    assert board.hold_round(wire.Task(number=1), b"", ["a", "b"], lambda changes, learned: None) == {}
    assert "round 1: a took too long and is left out; it may come back" in said


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"silos": ("a",)}, "at least two names"),
        ({"silos": ("a", "a/b")}, "silos is 'a/b'"),
        ({"silos": ("a", "a")}, "each name once"),
        ({"least": 5}, r"least is 5, expected 2 to the number of silos \(4\)"),
        ({"listen": "8765"}, "HOST:PORT"),
        ({"listen": "127.0.0.1:1", "coordinator": "http://127.0.0.1:1", "silo": "a"}, "null beside listen"),
        ({"coordinator": "http://hospital.example:80", "silo": "a"}, "https://: the token"),
        ({"coordinator": "https://hospital.example"}, "silo is None, expected one of federation.silos"),
        ({"combination": "krumm"}, "did you mean krum"),
        ({"secure": True, "combination": "krum"}, "expected mean where `secure`"),
        ({"secure": True, "combination": "mean"}, "at least 3 where `secure`"),
        ({"rounds": 0}, "rounds is 0"),
        ({"modalities": ("smell",)}, "modalities is 'smell'"),
    ],
)
def test_settings_that_cannot_be_are_refused(changed, why):
    plain = {"silos": NAMES, "combination": "median"}
    with pytest.raises(ValueError, match=why):
        FederationSettings(**plain | changed)
