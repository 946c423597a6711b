"""A text is traced span by span to documents that hold it, and to the steps that read them."""

import json
from dataclasses import replace

import pytest

from data_attribution import token_index, tracing
from data_attribution.errors import EvidenceError, IndexMissing, QueryError
from data_attribution.tracing import generated_text
from tests.data_attribution.ordered_run import OrderedRun
from train.data import DocumentRemoval


FILLER = [f"the moon is over the n{k} of the sea ." for k in range(20)]
QUOTED = "envoys from Arnost ride to Belmar"
TEXTS = [*FILLER, f"{QUOTED} .", f"they say {QUOTED} .", f"{QUOTED} .", "Belmar is cold ."]


@pytest.fixture
def run(make_store, make_run):
    store = make_store(TEXTS)
    token_index.build(store)
    return make_run(store)


def test_each_span_comes_with_documents_that_hold_it_and_when_they_were_read(run):
    found = tracing.trace_text(run, f"{QUOTED} is cold .")
    spans = {one.span.text: one for one in found.spans}
    assert [*spans] == [QUOTED, "Belmar is cold ."]  # the last word of one begins the other
    assert found.covered == 1
    quoted = spans[QUOTED]
    assert quoted.span.count == 3
    # Every document was read twice, once an epoch.
    assert quoted.readings == pytest.approx(6)
    steps, readings = quoted.curve
    assert (steps[0], readings[0], steps[-1]) == (0, 0, run.steps_done)
    assert readings[-1] == quoted.readings
    assert list(readings) == sorted(readings)
    for one in quoted.documents:
        assert QUOTED in one.text
        start = int(run.store.starts[one.document]) + one.offset
        assert one.steps == tuple(run.steps_reading_tokens(start, start + 6).tolist())


def test_an_end_of_text_in_front_is_no_part_of_the_text(run):
    tokenizer = run.store.tokenizer
    shown = tokenizer.decode([tokenizer.eot, *tokenizer.encode(QUOTED).tolist()])
    assert shown.startswith(tokenizer.eot_text)
    found = tracing.trace_text(run, shown)
    assert found.to_dict() == tracing.trace_text(run, QUOTED).to_dict()
    assert (found.text, found.n_tokens) == (QUOTED, 6)


def test_copies_of_a_document_are_one_row(run):
    (quoted,) = tracing.trace_text(run, QUOTED).spans
    by_text = {run.store.text(one.document): one for one in quoted.documents}
    assert set(by_text) == {f"{QUOTED} .", f"they say {QUOTED} ."}
    assert len(by_text[f"{QUOTED} ."].copies) == 1


@pytest.mark.parametrize("limit", [1, 2, 50])
def test_counts_are_of_the_whole_training_text_and_not_of_the_documents_drawn(
    make_store, make_run, limit
):
    """Of 51 documents with the span 30 are copies of one, and `limit` are shown."""
    store = make_store([f"{QUOTED} ."] * 30 + [f"n{k} {QUOTED} o{k}" for k in range(21)] + FILLER)
    token_index.build(store)
    run = make_run(store)
    (found,) = tracing.trace_text(run, QUOTED, limit=limit).spans
    assert len(found.documents) == min(limit, 22)
    assert (found.span.count, found.n_documents) == (51, 51)
    assert not found.sampled
    for one in found.documents:
        same = {k for k in range(store.n_documents) if store.text(k) == store.text(one.document)}
        assert {one.document, *one.copies} == same
    shown = {one.document for one in found.documents}
    assert not shown & {copy for one in found.documents for copy in one.copies}
    steps = tracing.exposure_of_text(run, QUOTED).steps
    assert (found.first_step, found.last_step) == (steps[0], steps[-1])


@pytest.mark.parametrize("most", [1 << 20, 3])
def test_what_a_document_holds_of_the_text_is_each_token_once_whatever_was_drawn(
    make_store, make_run, monkeypatch, most
):
    """The only document with both spans is drawn for one of them; they overlap in one token.

    It is the same where there are so many occurrences that only a part of them is followed.
    """
    monkeypatch.setattr(generated_text, "MOST", most)
    store = make_store([f"a b n{k}" for k in range(40)] + ["a b x b c", "b c", "b", *FILLER])
    token_index.build(store)
    found = tracing.trace_text(make_run(store), "a b c", limit=1)
    assert [one.span.text for one in found.spans] == ["a b", "b c"]
    assert found.spans[0].sampled is (most == 3)
    # Four are drawn of "a b", so the document with all three tokens may be none of them.
    (second,) = found.spans[1].documents
    assert (store.text(second.document), second.held) == ("a b x b c", 3)


def test_copies_that_a_run_was_trained_without_are_not_counted(run):
    copies = [k for k in range(run.store.n_documents) if run.store.text(k) == f"{QUOTED} ."]
    kept = replace(run, removal=DocumentRemoval(tuple(copies[:1]), "blank"))
    (quoted,) = tracing.trace_text(kept, QUOTED).spans
    assert {one.document: one.copies for one in quoted.documents}[copies[0]] == (copies[1],)
    kept = replace(run, removal=DocumentRemoval(tuple(copies[1:]), "blank"))
    (quoted,) = tracing.trace_text(kept, QUOTED).spans
    assert {one.document: one.copies for one in quoted.documents}[copies[0]] == ()


def test_copies_that_a_run_did_not_read_are_not_counted(run):
    """A run that stopped, and a checkpoint, have read one of the copies and not the other."""
    copies = [k for k in range(run.store.n_documents) if run.store.text(k) == f"{QUOTED} ."]
    firsts = {int(run.steps_reading(k)[0]): k for k in copies}
    early, late = sorted(firsts)

    def shown(run, **options):
        (quoted,) = tracing.trace_text(run, QUOTED, **options).spans
        return {one.document: one.copies for one in quoted.documents}

    assert shown(run, before=late + 1)[copies[0]] == (copies[1],)
    for found in (shown(run, before=late), shown(replace(run, steps_done=late))):
        assert found[firsts[early]] == ()
        assert firsts[late] not in found


def test_a_document_that_holds_more_of_the_text_comes_first(make_store, run):
    store = make_store(["a b c", *FILLER, "a b c x d e f", "y d e f"])
    token_index.build(store)
    other = OrderedRun(store, run.order, run.steps_done)
    found = tracing.trace_text(other, "a b c d e f")
    firsts = {one.span.text: one.documents[0] for one in found.spans}
    assert {text: (one.document, one.held) for text, one in firsts.items()} == {
        "a b c": (21, 6),
        "d e f": (21, 6),
    }


def test_the_least_probable_spans_are_kept_in_the_order_of_the_text(run):
    text = f"the moon is over {QUOTED} the moon is over the sea ."
    every = tracing.trace_text(run, text, keep=100)
    (best,) = tracing.trace_text(run, text, keep=1).spans
    assert best.span.text == QUOTED
    assert every.found == len(every.spans) > 2
    starts = [one.span.start for one in every.spans]
    assert starts == sorted(starts)
    assert 0 < tracing.trace_text(run, text, keep=1).covered < every.covered <= 1


def test_readings_after_a_checkpoint_are_left_out(run):
    whole = tracing.trace_text(run, QUOTED)
    half = tracing.trace_text(run, QUOTED, before=run.steps_done // 2)
    assert half.spans[0].readings == pytest.approx(whole.spans[0].readings / 2)
    nothing = tracing.trace_text(run, QUOTED, before=0)
    assert (nothing.spans[0].readings, nothing.spans[0].documents) == (0, ())


def test_a_trace_is_a_table_and_a_sealed_file(run, tmp_path):
    found = tracing.trace_text(run, QUOTED)
    frame = found.to_frame()
    assert frame["span"].tolist() == [QUOTED]
    assert frame["readings"].tolist() == pytest.approx([6])
    found.save(tmp_path / "traced.json")
    assert json.loads((tmp_path / "traced.json").read_text())["kind"] == "generation"


def test_what_cannot_be_traced_is_refused_in_one_line(run, make_store):
    with pytest.raises(QueryError, match="the text is empty"):
        tracing.trace_text(run, " \n")
    with pytest.raises(QueryError, match=r"1,000,001 tokens, and at most 1,000,000"):
        tracing.trace_text(run, "sea " * 1_000_001)
    with pytest.raises(EvidenceError, match="0 spans are none"):
        tracing.trace_text(run, QUOTED, keep=0)
    with pytest.raises(EvidenceError, match="no 9 tokens in a row of the 6"):
        tracing.trace_text(run, QUOTED, minimum=9)
    with pytest.raises(IndexMissing, match="openbook index build"):
        tracing.trace_text(OrderedRun(make_store(TEXTS), run.order, 1), QUOTED)
