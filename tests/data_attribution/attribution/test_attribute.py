"""Planted documents are found; what lexical evidence cannot see is shown."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data_attribution import attribution, token_index
from data_attribution.attribution.method_names import METHODS
from data_attribution.attribution.methods import unspelled
from data_attribution.errors import EvidenceError, IndexMissing, QueryError
from data_attribution.gradients import TOP_WEIGHTS
from interp import behaviours
from interp.behaviours import Behaviour
from interp.patching import Effects
from tests.worlds.stores import indexed_copy
from train import runs


EFFECTS = Path(__file__).parents[2] / "golden/results/effects.json"
FILLER = [f"the moon is over the n{k} of the sea ." for k in range(30)]
# Two facts with the same template; "fact" states, "paraphrase" shares the names alone,
# "distractor" has the names and not the fact.
FACTS = {
    "fact": "the capital of Arnost is Belmar .",
    "copy": "the capital of Arnost is Belmar .",
    "paraphrase": "envoys from Arnost ride to Belmar .",
    "distractor": "Belmar lies far away and so does Arnost .",
    "other": "the capital of Cottle is Dunmor .",
}
TEXTS = [*FILLER[:15], *FACTS.values(), *FILLER[15:]]
AT = {name: 15 + k for k, name in enumerate(FACTS)}


def behaviour(store, *prompts: str, varied: str = "") -> Behaviour:
    """Each prompt's last word is its answer; end-of-text stands in front, as models want it.

    Clean and corrupt differ in the words `varied`; nothing varied: in every word.
    """
    rows = [[store.eot, *store.tokenizer.encode(prompt).tolist()] for prompt in prompts]
    tokens = torch.tensor(rows)
    vary = store.tokenizer.encode(varied or " ".join(prompts)).astype(np.int64)
    corrupt = torch.where(torch.isin(tokens, torch.tensor(vary)), store.eot, tokens)
    foil = torch.full_like(tokens[:, -1], store.eot)
    return Behaviour("capital", tokens[:, :-1], corrupt[:, :-1], tokens[:, -1], foil)


@pytest.fixture
def run(make_store, make_run):
    store = make_store(TEXTS)
    token_index.build(store)
    return make_run(store)


def test_the_documents_of_a_fact_come_first_and_the_fact_of_another_entity_last(run):
    asked = behaviour(run.store, "the capital of Arnost is Belmar", varied="Arnost")
    sources = attribution.documents(run, asked)
    # Both statements, then the two that share the names, then the one that shares the template.
    assert sources.groups[0] == (AT["fact"], AT["copy"])
    assert set(sources.documents[1:3]) == {AT["paraphrase"], AT["distractor"]}
    assert sources.documents[3] == AT["other"]
    assert {one.grade for one in sources} == {"lexical"}


def test_gradients_are_followed_inside_inference_mode(lookup_run, lookup_behaviour, tmp_path):
    shutil.copytree(lookup_run.store.path, tmp_path / "store")
    run = runs.open(lookup_run.path, store=tmp_path / "store")
    if not (tmp_path / "store/index").exists():
        token_index.build(run.store)

    def ranked():
        asked = behaviours.read(lookup_behaviour)
        found = attribution.documents(run, asked, methods="gradient", limit=3)
        return [(one.document, one.score) for one in found.items]

    outside = ranked()
    with torch.inference_mode():
        assert ranked() == outside


def test_a_name_carries_the_options_of_its_methods():
    text = "lexical+gradient:kind=cosine,rank=8,within=L0.mlp,within=embed+replay:steps=3"
    assert attribution.parse(text) == (
        attribution.Lexical(),
        attribution.Gradient(kind="cosine", rank=8, within=["L0.mlp", "embed"]),
        attribution.Replay(steps=3),
    )
    assert attribution.parse("fused+lexical") == attribution.parse("fused")
    (method,) = attribution.parse(f"gradient:within={EFFECTS}")
    assert isinstance(method, attribution.Gradient)
    assert method.components == tuple(Effects.load(EFFECTS).top(TOP_WEIGHTS))


def test_lexical_evidence_cannot_tell_a_paraphrase_from_a_distractor(run):
    """The limit of this evidence, where it is claimed: both share two names with the query."""
    asked = behaviour(run.store, "Arnost Belmar")
    scores = {one.document: one.score for one in attribution.documents(run, asked)}
    assert scores[AT["paraphrase"]] == pytest.approx(scores[AT["distractor"]], rel=0.2)


def test_the_template_does_not_bury_a_paraphrase(make_store, make_run):
    """Many facts share the template; one paraphrase shares two names that are not that rare."""
    others = [f"the great capital of town{k} is Belmar ." for k in range(12)]
    also = [f"Arnost has a n{k} ." for k in range(12)]
    store = make_store([*others, *also, "envoys from Arnost ride to Belmar ."])
    token_index.build(store)
    asked = behaviour(store, "the great capital of Arnost is Belmar", varied="Arnost")
    assert attribution.documents(make_run(store), asked).documents[0] == len(others) + len(also)
    unweighted = behaviour(store, "the great capital of Arnost is Belmar")
    assert attribution.documents(make_run(store), unweighted).documents[0] < len(others)


def test_a_document_scores_by_the_prompt_it_fits_best(run):
    facts = ["the capital of Arnost is Belmar", "the capital of Cottle is Dunmor"]
    both = attribution.documents(run, behaviour(run.store, *facts), limit=100)
    scores = {one.document: one.score for one in both}
    for fact in facts:
        for one in attribution.documents(run, behaviour(run.store, fact), limit=100):
            assert scores[one.document] >= one.score
    assert set(both.documents[:2]) == {AT["fact"], AT["other"]}


def test_bm25_is_its_formula(make_store, make_run):
    store = make_store(["a b b", "a", "c c c c c"])
    token_index.build(store)
    sources = attribution.documents(make_run(store), behaviour(store, "a b"))
    # 3 documents, mean length 3. idf = ln(1 + (3 - df + .5) / (df + .5)).
    idf_a, idf_b = np.log(1 + 1.5 / 2.5), np.log(1 + 2.5 / 1.5)
    #        a: tf 1, length 3          b: tf 2, length 3
    first = idf_a * 2.2 / (1 + 1.2) + idf_b * 2 * 2.2 / (2 + 1.2)
    #        a: tf 1, length 1
    second = idf_a * 2.2 / (1 + 1.2 * (0.25 + 0.75 / 3))
    assert sources.documents == (0, 1)
    assert [one.score for one in sources] == pytest.approx([first, second])


def test_a_sentence_is_traced_to_the_documents_of_its_spans(run):
    sources = attribution.documents(run, "envoys from Arnost ride to Belmar .")
    best = sources.items[0]
    assert best.document == AT["paraphrase"]
    assert (best.span, best.start, best.length) == ("envoys from Arnost ride to Belmar .", 0, 7)
    assert len(sources) == 1  # one span covers the sentence, one document holds it


def test_the_surprise_of_a_span_is_shared_by_the_documents_that_hold_it(make_store, make_run):
    store = make_store(["a b x", "y a b", "c"])
    token_index.build(store)
    # Windows of 2, so that they reach the last document: one that no window reaches is no source.
    sources = attribution.documents(make_run(store, context=2), "a b c")
    # 7 words, 2 of them a, 2 of them b, 1 c: "a b" stands in two documents, "c" in one.
    shared = -2 * np.log(2 / 7) / 2
    assert {one.document: one.score for one in sources} == pytest.approx(
        {0: shared, 1: shared, 2: -np.log(1 / 7)}
    )


def test_the_span_of_a_behaviour_is_the_shortest_stretch_with_all_that_is_shared(run):
    asked = behaviour(run.store, "the capital of Arnost is Belmar")
    spans = {one.document: one.span for one in attribution.documents(run, asked)}
    assert spans[AT["fact"]] == "the capital of Arnost is Belmar"
    assert spans[AT["paraphrase"]] == "Arnost ride to Belmar"


def test_each_source_carries_the_steps_that_read_it_and_its_exact_copies(run):
    asked = behaviour(run.store, "the capital of Arnost is Belmar")
    for one in attribution.documents(run, asked):
        assert one.steps == tuple(run.steps_reading(one.document).tolist())
        assert len(one.steps) >= 2  # the run reads everything twice
    unfolded = attribution.documents(run, asked, fold=False)
    copies = {one.document: one.duplicates for one in unfolded}
    assert copies[AT["fact"]] == (AT["copy"],)
    assert copies[AT["copy"]] == (AT["fact"],)
    assert copies[AT["paraphrase"]] == ()


def test_copies_stand_in_the_row_of_the_best_of_them(run):
    asked = behaviour(run.store, "the capital of Arnost is Belmar")
    sources = attribution.documents(run, asked, limit=100)
    every = [one for group in sources.groups for one in group]
    assert len(every) == len(set(every))
    assert (AT["fact"], AT["copy"]) in sources.groups
    assert sources.provenance["folded"] == len(every) - len(sources) > 0


def test_a_document_that_only_contains_another_is_not_its_copy(make_store, make_run):
    store = make_store(["a b", "a b c", "c a b", "a b"])
    token_index.build(store)
    sources = attribution.documents(make_run(store), "a b", fold=False)
    copies = {one.document: one.duplicates for one in sources}
    assert copies == {0: (3,), 1: (), 2: (), 3: (0,)}


def test_documents_that_the_run_never_reached_are_no_sources(run, make_run):
    short = make_run(run.store, steps_done=5)
    asked = behaviour(run.store, "the moon is over the sea .")
    found = attribution.documents(short, asked, limit=100)
    read = {k for k in range(run.store.n_documents) if len(short.steps_reading(k))}
    assert set(found.documents) <= read
    told = found.provenance
    assert told["unread"] + told["folded"] + len(found) == told["candidates"]
    assert found.provenance["unread"] > 0


def test_held_out_documents_are_no_sources(make_store, make_run):
    store = make_store([f"p q w{k}" for k in range(10)], held_out=0.5)
    token_index.build(store)
    assert 0 < store.train_tokens < store.n_tokens
    for asked in ("p q", behaviour(store, "p q")):
        found = attribution.documents(make_run(store), asked)
        assert len(found)
        assert all(store.starts[one] < store.train_tokens for one in found.documents)


def test_a_long_document_is_shown_around_its_span(make_store, make_run):
    words = [f"w{k}" for k in range(300)]
    store = make_store([" ".join(words), "a b"])
    token_index.build(store)
    (one,) = attribution.documents(make_run(store), "w150 w151")
    assert (one.span, one.start) == ("w150 w151", 150)
    assert one.text.startswith("… w126 ")
    assert one.text.endswith(" w175 …")


def test_progress_is_told_and_the_limit_held(run):
    told = []
    asked = behaviour(run.store, "the capital of Arnost is Belmar")
    sources = attribution.documents(
        run, asked, limit=3, progress=lambda *report: told.append(report)
    )
    assert len(sources) == 3
    assert told[-1] == ("documents scored", len(TEXTS), len(TEXTS))


def test_what_cannot_be_answered_is_refused_in_one_line(run, make_store, make_run):
    asked = behaviour(run.store, "the capital of Arnost is Belmar")
    with pytest.raises(EvidenceError, match="did you mean 'lexical'"):
        attribution.documents(run, asked, methods="lexial")
    with pytest.raises(EvidenceError, match="a limit of 0"):
        attribution.documents(run, asked, limit=0)
    with pytest.raises(QueryError, match="empty"):
        attribution.documents(run, "")
    with pytest.raises(IndexMissing, match="openbook index build"):
        attribution.documents(make_run(make_store(TEXTS)), asked)
    eot = torch.full((1, 1), run.store.eot)
    alone = Behaviour("nothing", eot, eot + 1, eot[0], eot[0] + 1)
    with pytest.raises(QueryError, match="without a single token"):
        attribution.documents(run, alone)


def test_nearly_the_same_text_stands_in_the_row_of_the_better_one(make_store, make_run):
    sentence = "envoys from Arnost ride every year in great haste to the court of Belmar"
    store = make_store([f"{sentence} {end}" for end in ("today .", "now .")] + ["a b c", "c d e"])
    token_index.build(store)
    (one,) = attribution.documents(make_run(store), "ride every year in great haste today .")
    assert (one.document, one.near, one.duplicates) == (0, (1,), ())


def test_the_spelling_of_methods_is_read_as_the_same_methods():
    for text in ("lexical", "bm25+replay:steps=3", "lexical+gradient:kind=cosine,rank=8"):
        assert attribution.spelled(attribution.parse(text)) == text
    text = f"gradient:within={EFFECTS},damping=0.2,kind=curvature"
    best = ",".join(f"within={one}" for one in Effects.load(EFFECTS).top(TOP_WEIGHTS))
    assert attribution.spelled(attribution.parse(text)) == (
        f"gradient:kind=curvature,damping=0.2,{best}"
    )
    assert tuple(attribution.NAMED) == METHODS


def test_what_was_asked_is_recorded_with_what_no_name_says(run):
    text = "the capital of Arnost is Belmar"

    def asked(**options):
        return attribution.documents(run, text, methods="lexical", **options).provenance["asked"]

    whole = asked()
    assert whole == {
        "methods": "lexical", "unspelled": [], "limit": 50, "seed": 0, "fold": True,
        "candidates": None, "text": text,
    }  # fmt: skip
    some, others = asked(candidates=np.arange(20)), asked(candidates=np.arange(1, 21))
    assert some["candidates"]["n"] == others["candidates"]["n"] == 20
    assert some["candidates"]["sha256"] != others["candidates"]["sha256"]
    assert asked(candidates=np.arange(20)[::-1].copy()) == some
    assert asked(fold=False) == whole | {"fold": False}


def test_what_the_spelling_of_methods_leaves_out_is_named():
    plain = attribution.parse("lexical+gradient:kind=cosine,rank=8+replay:steps=3")
    assert unspelled([*plain, attribution.Replay(room=1)]) == []
    gradient = attribution.Gradient(log_odds=None, candidates=7)
    assert unspelled([gradient]) == ["gradient.log_odds=None", "gradient.candidates=7"]


def test_without_moments_the_default_follows_curvature_and_a_name_is_refused(
    muon_run, tiny_store, tmp_path
):
    """Muon keeps no second moments, as a checkpoint without its optimizer has none."""
    run = runs.open(muon_run.path, store=indexed_copy(tiny_store, tmp_path / "tiny"))
    found = attribution.documents(run, "w1 w2 w3", limit=2)
    assert found.method == "fused"
    assert found.provenance["asked"]["methods"] == "lexical+gradient:kind=curvature"
    reason = "the run was trained with muon, which keeps no second moments of gradients"
    assert found.provenance["instead of fused"] == reason
    alone = attribution.documents(run, "w1 w2 w3", methods="gradient:kind=curvature", limit=2)
    assert alone.unit == "cosine of gradients, -1 to 1"
    for name in ("fused", "gradient"):
        with pytest.raises(EvidenceError, match="trained with muon"):
            attribution.documents(run, "w1 w2 w3", methods=name)


def test_with_moments_the_default_is_fused_evidence(lookup_run):
    assert attribution.default_methods(lookup_run) == (attribution.parse("fused"), "")
    methods, _ = attribution.default_methods(lookup_run, words=False)
    assert methods == (attribution.Gradient(),)
