"""What a run read, and when, is what replaying its order window by window finds."""

import gc
import json
from dataclasses import replace

import numpy as np
import pytest

from data_attribution import token_index
from data_attribution.errors import EvidenceError, QueryError
from data_attribution.tracing import exposure
from tests.data_attribution.ordered_run import OrderedRun
from tests.worlds.figures import traces
from train import trainer
from train.data import DataOrder, DocumentRemoval, LateOrder, RecordedOrder, TokenStore, open_store


def replayed(run: OrderedRun, position: int, length: int, before: int) -> dict[int, float]:
    """Step to the share read of [position, position + length), a window and a token at a time."""
    found: dict[int, float] = {}
    for step in range(before):
        for start in run.order.starts(step).tolist():
            targets = range(start + 1, start + 1 + run.order.context)
            read = sum(position <= target < position + length for target in targets)
            if read:
                found[step] = found.get(step, 0.0) + read / length
    return found


def ordered(store: TokenStore, kind: str, seed: int, context: int = 5) -> OrderedRun:
    batch, n_steps = 3, 40
    if kind == "function":
        order = DataOrder(seed, (store.train_tokens - 1) // context, context, batch)
    elif kind == "late":
        n_windows = (store.train_tokens - 1) // context
        early = DataOrder(seed, n_windows - 9, context, batch)
        order = LateOrder(early, DataOrder(seed, 9, context, 1), begin=11)
    else:
        draw = np.random.default_rng(seed)
        order = RecordedOrder(draw.integers(store.train_tokens - context, size=(64, 3)), context)
    return OrderedRun(store, order, n_steps)


@pytest.fixture
def store(make_store):
    draw = np.random.default_rng(3)
    words = [[f"w{draw.integers(9)}" for _ in range(draw.integers(1, 25))] for _ in range(30)]
    made = make_store([" ".join(row) for row in words], held_out=0.2)
    token_index.build(made)
    return made


@pytest.mark.parametrize("kind", ["function", "recorded", "late"])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("before", [0, 1, 17, 40])
def test_every_reading_is_the_one_found_by_replaying_the_order(store, kind, seed, before):
    run = ordered(store, kind, seed)
    found = exposure.exposure_of_text(run, "w1 w2", before=before)
    assert len(found.positions) > 1
    for stretch, position in enumerate(found.positions.tolist()):
        mine = found.stretches == stretch
        shares = dict(zip(found.steps[mine].tolist(), found.shares[mine].tolist(), strict=True))
        assert shares == pytest.approx(replayed(run, position, 2, before))
    assert (np.diff(found.steps) >= 0).all()


@pytest.mark.parametrize("kind", ["function", "recorded", "late"])
@pytest.mark.parametrize("context", [5, 7, 8, 11])
def test_the_steps_are_those_that_the_order_answers_with(store, kind, context):
    """The last document ends in what no window reaches, for some of these lengths."""
    run = ordered(store, kind, 5, context)
    whole = exposure.exposure_of_documents(run, np.flatnonzero(store.starts < store.train_tokens))
    for stretch in range(len(whole.positions)):
        start = int(whole.positions[stretch])
        steps = run.order.steps_reading(start, start + int(whole.lengths[stretch]), 40)
        assert whole.steps[whole.stretches == stretch].tolist() == steps.tolist()


def test_a_stretch_is_read_once_an_epoch_however_windows_cut_it(store):
    """Of the whole corpus but what no window reaches."""
    run = ordered(store, "function", 2)
    assert isinstance(run.order, DataOrder)
    n_windows = run.order.n_windows
    epoch = -(-n_windows // run.order.batch)
    whole = exposure.exposure_of_documents(
        replace(run, steps_done=3 * epoch), np.flatnonzero(store.starts < store.train_tokens - 40)
    )
    # Three times epochs rounded up to steps: a little of the fourth.
    for stretch in range(len(whole.positions)):
        total = whole.shares[whole.stretches == stretch].sum()
        assert 3 - 1e-9 <= total <= 4 + 1e-9
    one = replace(run, steps_done=n_windows, order=replace(run.order, batch=1))
    exact = exposure.exposure_of_documents(one, whole.documents)
    assert exact.readings == len(whole.positions)
    assert exact.epoch == pytest.approx(n_windows, abs=1)
    assert exact.even(round(exact.epoch)) == pytest.approx(exact.readings, rel=0.01)


def test_the_curve_rises_from_nothing_to_all_and_says_what_was_read_before_a_step(store):
    run = ordered(store, "function", 0)
    rare = exposure.exposure_of_text(run, "w0 w3")
    assert rare.steps[0] > 0
    assert rare.curve()[0].tolist() == sorted({0, 40, *(rare.steps + 1).tolist()})
    found = exposure.exposure_of_text(run, "w3")
    steps, readings = found.curve()
    assert (steps[0], readings[0]) == (0, 0)
    assert (steps[-1], readings[-1]) == (40, found.readings)
    assert (np.diff(readings) >= 0).all()
    for step in (0, 1, 13, 40):
        assert found.at(step) == pytest.approx(
            exposure.exposure_of_text(run, "w3", before=step).readings
        )
    coarse, values = found.curve(5)
    assert coarse.tolist() == [0, 10, 20, 30, 40]
    assert values.tolist() == [found.at(step) for step in coarse.tolist()]


def test_what_was_removed_or_held_out_is_never_read(store):
    run = ordered(store, "function", 0)
    found = exposure.exposure_of_text(run, "w3")
    gone = int(found.documents[0])
    without = exposure.exposure_of_text(
        replace(run, removal=DocumentRemoval((gone,), "blank")), "w3"
    )
    kept = found.documents[found.stretches] != gone
    assert without.steps.tolist() == found.steps[kept].tolist()
    assert len(without.positions) == len(found.positions)
    held = np.flatnonzero(store.starts >= store.train_tokens)
    never = exposure.exposure_of_documents(run, held)
    assert (never.readings, never.held_out, len(never.positions)) == (0, len(held), 0)
    assert never.curve()[1].tolist() == [0, 0]
    assert found.held_out == token_index.open(store).count("w3").held_out > 0


def test_many_places_are_computed_block_by_block(store, monkeypatch):
    run = ordered(store, "function", 0)
    found = exposure.exposure_of_text(run, "w3")
    monkeypatch.setattr(exposure, "BLOCK", 3)
    blocks = exposure.exposure_of_text(run, "w3", index=token_index.open(store))
    assert blocks.steps.tolist() == found.steps.tolist()
    assert sorted(zip(blocks.steps, blocks.stretches, blocks.shares, strict=True)) == sorted(
        zip(found.steps, found.stretches, found.shares, strict=True)
    )


def test_the_table_of_another_trainer_is_sorted_once_a_run(store, monkeypatch):
    run = ordered(store, "recorded", 0)
    found = exposure.exposure_of_text(run, "w3")
    asked = []
    monkeypatch.setattr(RecordedOrder, "starts", lambda self, step: asked.append(step))
    early = exposure.exposure_of_text(run, "w3", before=17)
    assert asked == []
    assert early.readings == pytest.approx(found.at(17)) != found.readings


def test_a_table_that_is_no_longer_in_use_is_let_go(store):
    gc.collect()  # Else tables of earlier tests may go meanwhile.
    held = len(exposure.SORTED_TABLES)
    runs = [ordered(store, "recorded", seed) for seed in (1, 2)]
    first, second = (exposure.exposure_of_text(run, "w3").steps.tolist() for run in runs)
    assert first != second
    assert len(exposure.SORTED_TABLES) == held + 2
    del runs
    assert len(exposure.SORTED_TABLES) == held


def test_of_too_many_places_some_are_drawn_and_stand_for_all(store):
    run = ordered(store, "function", 0)
    words = [f"w{k}" for k in range(9)]
    whole = {word: exposure.exposure_of_text(run, word) for word in words}
    for word, every in whole.items():
        found = exposure.exposure_of_text(run, word, limit=20)
        assert len(found.positions) <= 20 < len(every.positions)
        assert (found.sampled, every.sampled) == (True, False)
        assert found.places == every.places == len(every.positions)
        assert found.readings == pytest.approx(every.readings, rel=0.15)
        assert found.even(20) == every.even(20)
        assert set(found.positions.tolist()) <= set(every.positions.tolist())
        assert exposure.exposure_of_text(run, word, limit=20).steps.tolist() == found.steps.tolist()


def test_a_real_run_and_its_counterfactual_agree_with_their_own_look_ups(
    tiny_run, tmp_path_factory
):
    token_index.build(tiny_run.store)
    document = int(tiny_run.documents_read(3)[0])
    found = exposure.exposure_of_documents(tiny_run, [document])
    assert found.steps.tolist() == tiny_run.steps_reading(document).tolist()
    out = tmp_path_factory.mktemp("without") / "run"
    branched = trainer.retrain_without(tiny_run, out, DocumentRemoval((document,), "blank"))
    assert exposure.exposure_of_documents(branched, [document]).readings == 0
    text = tiny_run.store.text(document).split()[0]
    assert (
        0
        < exposure.exposure_of_text(branched, text).readings
        < exposure.exposure_of_text(tiny_run, text).readings
    )


def test_a_table_has_a_row_a_reading_and_a_figure_both_lines(store):
    found = exposure.exposure_of_text(ordered(store, "function", 0), "w3 w3")
    frame = found.to_frame()
    assert len(frame) == len(found.steps)
    assert frame["readings"].iloc[-1] == found.readings == pytest.approx(frame["share"].sum())
    assert set(frame["document"]) <= set(found.documents.tolist())
    figure = found.plot()
    assert [line.name for line in traces(figure)] == ["read", "spread evenly"]
    assert traces(figure)[0].y[-1] == pytest.approx(found.readings, rel=1e-3)


def test_what_cannot_be_asked_is_refused_in_one_line(store):
    run = ordered(store, "function", 0)
    with pytest.raises(EvidenceError, match="checkpoint 41 was asked of a run that has done 40"):
        exposure.exposure_of_text(run, "w3", before=41)
    with pytest.raises(EvidenceError, match="documents 30 to 30 were asked of a store with 30"):
        exposure.exposure_of_documents(run, [30])
    with pytest.raises(EvidenceError, match="documents none"):
        exposure.exposure_of_documents(run, [])
    with pytest.raises(QueryError):
        exposure.exposure_of_text(run, "")
    found = exposure.exposure_of_text(run, "w3", before=17)
    for step in (-1, 18):
        with pytest.raises(EvidenceError, match=f"checkpoint {step} .* ends at checkpoint 17"):
            found.at(step)
    with pytest.raises(EvidenceError, match="a curve of 1 checkpoints"):
        found.curve(1)


def test_a_text_that_stands_nowhere_was_never_read(store):
    found = exposure.exposure_of_text(ordered(store, "function", 0), "w8 w8 w8 w8 w8 w8")
    assert (len(found.positions), found.readings) == (0, 0)
    assert found.curve()[0].tolist() == [0, 40]
    assert len(found.to_frame()) == 0


def test_the_command_says_when_a_text_was_read(openbook, tiny_run):
    token_index.build(open_store(tiny_run.store.path))
    ended = openbook("exposure", "text", tiny_run.path, "w1", "--before", 16)
    found = exposure.exposure_of_text(tiny_run, "w1", before=16)
    assert ended.code == 0
    assert ended.out.startswith(
        f"{len(found.positions)} places in {len(set(found.documents.tolist()))} documents, "
        f"{found.readings:g} readings before checkpoint 16"
    )
    late = openbook("exposure", "text", tiny_run.path, "w1", "--before", 99)
    assert (late.code, late.out) == (2, "")
    assert "checkpoint 99 was asked of a run that has done 24 steps" in late.err
    one = openbook("exposure", "documents", tiny_run.path, 3, "--json")
    assert '"target": "document 3"' in one.out
    two = json.loads(openbook("exposure", "documents", tiny_run.path, 3, 5, "--json").out)
    assert two["documents"] == 2
