"""The bank: one trace per item, recent and hard ones, the same after a restart."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from configs.reward import BankConfig
from data.errors import DamagedCheckpoint
from data.types import Side
from reward.bank import Candidate, CandidateBank


def make(name, degrees, *, sibling=0):
    angle = math.radians(degrees)
    vector = np.array([math.cos(angle), math.sin(angle)], dtype=np.float32)
    return Candidate(key=f"{name}/{sibling}", content=name, vector=vector)


def golds(*degrees):
    return np.stack([make("gold", one).vector for one in degrees])


def drawn(bank, *degrees, side=Side.TARGET):
    return [one.key for one in bank.draw(side, golds(*degrees))]


def filled(**config):
    bank = CandidateBank(BankConfig(**config))
    for index, degrees in enumerate((0, 90, 45, 80, 10)):
        bank.add(Side.TARGET, [make(f"item{index}", degrees)])
    return bank


def test_by_default_nothing_is_remembered():
    assert drawn(filled(), 0) == []


def test_the_recent_ones_are_the_last_and_the_other_side_is_apart():
    bank = filled(recent=2)
    assert drawn(bank, 0) == ["item3/0", "item4/0"]
    assert drawn(bank, 0, side=Side.QUERY) == []


def test_the_hard_ones_are_the_closest_of_the_older_to_any_gold():
    bank = filled(recent=2, hard=2, capacity=3)
    assert drawn(bank, 88, 40) == ["item3/0", "item4/0", "item1/0", "item2/0"]
    assert drawn(bank, -10) == ["item3/0", "item4/0", "item0/0", "item2/0"]


def test_beyond_the_capacity_the_oldest_is_forgotten():
    assert drawn(filled(recent=2, hard=3, capacity=2), -10) == [
        "item3/0",
        "item4/0",
        "item2/0",
        "item1/0",
    ]


def test_of_an_items_siblings_the_first_by_key_is_kept_whatever_their_order():
    siblings = [make("item", 10 * index, sibling=index) for index in range(3)]
    for order in (siblings, siblings[::-1]):
        bank = CandidateBank(BankConfig(recent=5))
        bank.add(Side.QUERY, order)
        assert drawn(bank, 0, side=Side.QUERY) == ["item/0"]


def test_an_item_met_again_is_kept_once_and_counts_as_recent():
    bank = filled(recent=2)
    bank.add(Side.TARGET, [make("item3", 20, sibling=7)])
    assert drawn(bank, 0) == ["item4/0", "item3/7"]


def test_equally_close_candidates_come_by_key():
    bank = CandidateBank(BankConfig(hard=2, capacity=3))
    for name in "cab":
        bank.add(Side.TARGET, [make(name, 30)])
    assert drawn(bank, 0) == ["a/0", "b/0"]


def test_a_saved_bank_goes_on_as_before(tmp_path):
    bank = filled(recent=2, hard=2, capacity=3)
    bank.save(tmp_path / "bank.npz")
    again = CandidateBank(BankConfig(recent=2, hard=2, capacity=3))
    again.load(tmp_path / "bank.npz")
    for one in (bank, again):
        one.add(Side.TARGET, [make("new", 5)])
    before, after = (one.draw(Side.TARGET, golds(88)) for one in (bank, again))
    assert [one.key for one in before] == [one.key for one in after]
    assert [one.content for one in before] == [one.content for one in after]
    assert all((a.vector == b.vector).all() for a, b in zip(before, after, strict=True))
    assert after[0].vector.dtype == np.float32


def test_embeddings_without_trace_are_saved_where_they_are_known(tmp_path):
    bank = CandidateBank(BankConfig(recent=3))
    for index, plain in enumerate((None, golds(20)[0], None)):
        bank.add(Side.TARGET, [replace(make(f"item{index}", 0), plain=plain)])
    bank.save(tmp_path / "bank.npz")
    again = CandidateBank(BankConfig(recent=3))
    again.load(tmp_path / "bank.npz")
    first, second, third = (one.plain for one in again.draw(Side.TARGET, golds(0)))
    assert (first, third) == (None, None)
    assert (second == golds(20)[0]).all()


def test_a_bank_of_a_run_that_began_before_is_read(tmp_path):
    words = json.dumps([["target", "item/0", "item", "its label"]])
    np.savez(
        tmp_path / "bank.npz",
        words=np.frombuffer(words.encode(), dtype=np.uint8),
        vectors=golds(30),
    )
    bank = CandidateBank(BankConfig(recent=3))
    bank.load(tmp_path / "bank.npz")
    [one] = bank.draw(Side.TARGET, golds(0))
    assert (one.key, one.content, one.plain) == ("item/0", "item", None)


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_bank_is_a_damaged_checkpoint(tmp_path, damage):
    path = tmp_path / "bank.npz"
    CandidateBank(BankConfig()).save(path)
    content = path.read_bytes()
    path.write_bytes(content[:-9] if damage == "cut" else content.replace(b"[]", b"{}", 1))
    if damage == "gone":
        path.unlink()
    with pytest.raises(DamagedCheckpoint, match=r"bank\.npz: damaged"):
        CandidateBank(BankConfig()).load(path)


def test_an_empty_bank_can_be_saved(tmp_path):
    CandidateBank(BankConfig()).save(tmp_path / "bank.npz")
    bank = CandidateBank(BankConfig(recent=2))
    bank.load(tmp_path / "bank.npz")
    assert drawn(bank, 0) == []


def test_what_is_remembered_keeps_no_other_embedding_alive():
    answer = np.eye(2, dtype=np.float32)
    bank = CandidateBank(BankConfig(recent=1))
    bank.add(Side.TARGET, [Candidate(key="a/0", content="a", vector=answer[0])])
    [one] = bank.draw(Side.TARGET, golds(0))
    assert one.vector.tolist() == [1.0, 0.0]
    assert one.vector.base is None
