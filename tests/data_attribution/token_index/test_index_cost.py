"""Shards end where documents end, hold what memory holds, and cost what was said beforehand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_attribution import token_index
from data_attribution.errors import IndexSpaceError, SorterError
from data_attribution.token_index import Rate, cost, suffix_array


OWT, GB = 9_040_000_000, 10**9


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    from tests.worlds.stores import store_of

    texts = [f"{'a b c d ' * (1 + k * 7 % 13)}w{k % 40}" for k in range(200)]
    return store_of(tmp_path_factory.mktemp("plans") / "store", texts, held_out=0.2)


def test_a_number_of_shards_and_their_size_are_not_both_given(store):
    with pytest.raises(SorterError, match="both given; give one"):
        token_index.plan_shards(store, shards=1, shard_tokens=9)


@given(
    shards=st.none() | st.integers(1, 60),
    shard_tokens=st.none() | st.integers(60, 4000),
    workers=st.integers(1, 4),
)
@settings(max_examples=150)
def test_shards_tile_the_store_and_end_where_documents_do(store, shards, shard_tokens, workers):
    if shards and shard_tokens:
        shard_tokens = None
    plan = token_index.plan_shards(store, shards=shards, shard_tokens=shard_tokens, workers=workers)
    assert plan.shards[0].start == 0
    assert plan.shards[-1].stop == store.n_tokens
    for one, following in zip(plan.shards, plan.shards[1:], strict=False):
        assert one.stop == following.start
        assert store.tokens[one.stop - 1] == store.eot
        assert following.start == store.train_tokens or following.start in store.starts
    for one in plan.shards:
        assert one.n_tokens > 0
        assert one.held_out == (one.start >= store.train_tokens)
        assert one.held_out or one.stop <= store.train_tokens
    trained = [one for one in plan.shards if not one.held_out]
    assert len(trained) == (shards or len(trained))
    if shard_tokens:
        assert max(one.n_tokens for one in plan.shards) <= shard_tokens
    assert len({one.name for one in plan.shards}) == len(plan.shards)


def test_every_document_can_have_a_shard_of_its_own(make_store):
    store = make_store(["a b", "c", "d e f"])
    plan = token_index.plan_shards(store, shards=3)
    assert [(one.start, one.stop) for one in plan.shards] == [(0, 4), (4, 6), (6, 10)]
    with pytest.raises(SorterError, match="4 shards were asked for and there are 3 documents"):
        token_index.plan_shards(store, shards=4)


def test_nobody_who_did_not_ask_for_shards_is_told_that_there_are_too_few_documents(make_store):
    one = make_store(["a " * 50])
    assert len(token_index.plan_shards(one, workers=4).shards) == 1
    texts = [f"w{k}" for k in range(40)] + ["v " * 300]
    held = make_store(texts, held_out=0.2)
    assert held.train_tokens < held.n_tokens
    regions = {one.held_out for one in token_index.plan_shards(held, shards=8).shards}
    assert regions == {False, True}


@pytest.mark.parametrize("asked", [{}, {"shards": 2}, {"shard_tokens": 4}])
def test_memory_that_holds_no_process_is_refused_in_one_line(make_store, asked):
    store = make_store(["a b", "c", "d e f"])
    with pytest.raises(IndexSpaceError, match="2 sorting processes take more"):
        token_index.plan_shards(store, workers=2, memory=150 << 20, **asked)


def test_a_document_longer_than_a_shard_is_named_by_its_length(make_store):
    store = make_store(["a b", "a " * 50])
    with pytest.raises(IndexSpaceError, match="a single document has 51 tokens, a shard may have"):
        token_index.plan_shards(store, shard_tokens=20)


def test_less_memory_makes_more_shards_and_fewer_tokens_in_each(store, monkeypatch):
    monkeypatch.setattr(cost, "PROCESS", 0)
    itemsize = store.tokens.dtype.itemsize
    for kilobytes in (10, 20, 40):
        plan = token_index.plan_shards(store, workers=2, memory=kilobytes * 1000)
        longest = max(one.n_tokens for one in plan.shards)
        assert 2 * longest * suffix_array.bytes_a_token(itemsize) <= kilobytes * 1000
        assert plan.memory <= kilobytes * 1000
    with pytest.raises(IndexSpaceError, match=r"may be used|by its size or the memory"):
        token_index.plan_shards(store, shards=1, memory=1000)


def test_the_build_refuses_shards_that_memory_does_not_hold(store):
    with pytest.raises(IndexSpaceError, match="ask for more shards or fewer workers"):
        token_index.build(store, shards=2, memory=1000)
    assert not list(store.path.glob("*index*"))


@pytest.mark.parametrize(
    "asked", [{"shards": 0}, {"workers": 0}, {"memory": -1}, {"shard_tokens": 0}]
)
def test_numbers_below_one_are_refused(store, asked):
    with pytest.raises(SorterError, match="give 1 or more"):
        token_index.plan_shards(store, **asked)


def test_openwebtext_takes_six_bytes_a_token_and_fits_the_machines_it_is_said_to_fit():
    # libdivsufsort counts bytes in 31 bits: nine shards, of which 24 GB hold one at a time.
    wheel = cost.estimate_cost(OWT, memory=24 * GB)
    assert wheel.shards == 9
    assert 6.0 < wheel.bytes_a_token < 6.0 + 0.03 * 6
    assert wheel.memory < 24 * GB
    two = cost.estimate_cost(OWT, workers=4, memory=64 * GB)
    assert (two.workers, two.shards) == (4, 9)
    # In five shards it counts them in 63 bits, which 64 GB hold and 24 GB do not.
    five = cost.estimate_cost(OWT, shards=5, memory=64 * GB)
    assert 30 * GB < five.memory < 40 * GB
    with pytest.raises(IndexSpaceError, match="ask for 9 shards"):
        cost.estimate_cost(OWT, shards=5, memory=24 * GB)


def test_many_workers_do_not_make_many_shards():
    """Every question is put to every shard."""
    assert [cost.for_workers(n, 64) for n in (10**5, 10**7, 10**9)] == [1, 5, 8]
    assert cost.for_workers(10**9, 2) == 2


@pytest.mark.parametrize("asked", [{"shards": 3}, {"shards": 7, "workers": 2}, {}])
def test_what_is_said_of_a_store_is_what_is_then_cut_and_taken(store, asked):
    plan = token_index.plan_shards(store, **asked)
    said = token_index.estimate_shards(store, plan)
    index = token_index.build(store, **asked)
    lengths = [len(part.tokens) for part in index.parts]
    assert (said.shards, said.shard_tokens) == (len(lengths), max(lengths))
    taken = sum(path.stat().st_size for path in (store.path / "index").iterdir())
    assert 0 <= said.disk - taken < 4096 * len(index.parts)
    assert said.memory == plan.memory
    assert said.bytes_a_token == 2 + said.disk / store.n_tokens
    # Of equal shards, none held out, nothing of that is known.
    if "workers" not in asked and asked:
        equal = cost.estimate_cost(store.n_tokens, memory=10**9, **asked)
        assert (equal.shards, equal.shard_tokens) != (said.shards, said.shard_tokens)


def test_workers_share_the_seconds_of_the_shards_as_they_are_cut(store):
    rate = Rate(10**6, 1e3)
    plans = [token_index.plan_shards(store, shards=6, workers=workers) for workers in (1, 2)]
    alone, two = (token_index.sorting_seconds(plan, rate) for plan in plans)
    assert alone == pytest.approx(sum(rate.seconds(one.n_tokens) for one in plans[0].shards))
    assert alone / 2 <= two < 0.75 * alone


def test_a_shard_grows_a_little_faster_than_its_tokens():
    rate = Rate(10**7, 2e6)
    assert rate.seconds(10**7) == 5
    seconds = [rate.seconds(n) for n in (10**6, 10**7, 10**8)]
    assert np.divide(seconds[1:], seconds[:-1]) == pytest.approx([10 * cost.GROWTH] * 2)
