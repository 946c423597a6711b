"""Rankings that are right score what they should, and others what chance gives them.

What a ranking finds is counted by hand; what its documents do is asked of a run that has learned
twelve pairs by heart, from twenty documents each (`lookup_run`).
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from data_attribution import evaluation, queries
from data_attribution.counterfactuals import Change, Retrainings
from data_attribution.evaluation import (
    CurvePoint,
    Evaluation,
    removal_curves,
    result,
    retrieval_metrics,
    tail_patch,
)
from data_attribution.evaluation.facts import FactCase
from data_attribution.queries import Query
from interp import behaviours, metrics
from interp.behaviours import Behaviour
from interp.metrics import Metric
from train import trainer
from train.statistics import wilson


pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def pair(lookup_behaviour, lookup_store):
    """A case for each pair: which value follows a key, and the documents that say so."""
    whole = behaviours.read(lookup_behaviour)
    texts = [lookup_store.text(one) for one in range(lookup_store.n_documents)]

    def case(k: int) -> FactCase:
        parts = {
            part: getattr(whole, part)[k : k + 1] for part in ("clean", "corrupt", "answer", "foil")
        }
        said = frozenset(one for one, text in enumerate(texts) if text == f"k{k} is v{k}")
        behaviour = replace(whole, name=f"pair {k}", **parts)
        return FactCase(f"pair {k}", "verbatim", behaviour, said, frozenset(), 20)

    return case


def stub(name, relevant):
    asked = Behaviour(
        name, torch.tensor([[0, 1]]), torch.tensor([[0, 2]]), torch.tensor([3]), torch.tensor([4])
    )
    return FactCase(name, "verbatim", asked, frozenset(relevant), frozenset(), len(relevant))


# --- what a ranking finds ------------------------------------------------------------------------


def test_recall_counts_what_could_be_among_the_first():
    ranked = [7, 3, 9, 1, 4, 2]
    assert retrieval_metrics.recall(ranked, {3, 4}, 3) == 1 / 2
    assert retrieval_metrics.recall(ranked, {3, 4}, 5) == 1
    assert (
        retrieval_metrics.recall(ranked, {7, 3, 9, 1, 4, 2}, 3) == 1
    )  # three of the three there is room for
    assert retrieval_metrics.recall(ranked, {8}, 10) == 0
    assert retrieval_metrics.recall([], {8}, 10) == 0


def test_the_reciprocal_rank_is_of_the_first_relevant_document():
    assert retrieval_metrics.reciprocal_rank([7, 3, 9], {9, 3}) == 1 / 2
    assert retrieval_metrics.reciprocal_rank([7, 3, 9], {8}) == 0


def test_copies_of_one_text_are_found_once():
    texts = {1: "a", 2: "a", 3: "a", 4: "b"}
    share = retrieval_metrics.distinct_texts
    assert share([1, 2, 3, 9], {1, 2, 3, 4}, texts) == 0.5
    assert share([1, 4, 9, 8], {1, 2, 3, 4}, texts) == 1.0
    assert share([9, 8, 7, 6, 1], {1, 2, 3, 4}, texts) == 0.0


def test_the_first_n_notice_a_distractor_that_recall_at_k_does_not():
    cases = [stub("a", {1, 2}), stub("b", {5}), stub("c", set())]
    ranked = {"a": [1, 9, 2], "b": [8, 7], "c": [1], "d": [1]}
    found = retrieval_metrics.retrieval_measures(ranked, cases, k=10)
    assert found.cases == ("a", "b")  # what has no document and what was not asked count nowhere
    assert found.recall.tolist() == [1, 0]
    assert found.reciprocal_rank.tolist() == [1, 0]
    assert found.first_n.tolist() == [0.5, 0]
    mean = found.mean("first_n")
    assert (mean.value, mean.n) == (0.25, 2)
    assert (mean.low, mean.high) == wilson(0.25, 2)


def test_finding_all_of_a_few_is_no_certainty():
    found = retrieval_metrics.retrieval_measures(
        {"a": [1], "b": [2]}, [stub("a", {1}), stub("b", {2})]
    )
    assert found.mean("recall").value == 1
    assert found.mean("recall").low < 0.5


# --- what one more step does ---------------------------------------------------------------------


def log_probability(case):
    answer = int(case.behaviour.answer[0])

    def score(logits):
        return logits[:, -1].log_softmax(-1)[:, answer]

    return Query(case.name, case.behaviour.clean, metrics.custom(case.name, score, unit="nats"))


def test_a_step_on_a_document_teaches_what_it_says(lookup_run, pair):
    three, nine = pair(3), pair(9)
    own, other = min(three.relevant), min(nine.relevant)
    asked = [(log_probability(one), [own, other]) for one in (three, nine)]
    (for_three, for_nine) = tail_patch.tail_patch_changes(lookup_run, asked)
    # Both are known by heart, so there is little left to gain.
    assert for_three[0] > max(0, for_three[1])
    assert for_nine[1] > max(0, for_nine[0])


def test_a_tail_patch_is_the_optimizers_own_step(lookup_run, pair):
    """Against a step written out: the loss of one document, and AdamW as the run has it."""
    case, store = pair(3), lookup_run.store
    document = min(case.relevant)
    start, n = int(store.starts[document]), int(store.lengths[document])
    text = torch.tensor([store.eot, *store.tokens[start : start + n].tolist(), store.eot])
    after = []
    for share in (1.0, 0.0):
        state = trainer.load_state(lookup_run, lookup_run.recipe.steps, lookup_run.numerics)
        for group in state.optimizer.param_groups:
            group["lr"] = trainer.lr_at(lookup_run.recipe, lookup_run.recipe.steps - 1)
        loss = trainer.next_token_loss(state.model(text[None, :-1]), text[None, 1:], n + 1)
        (share * loss).backward()
        parameters = state.model.parameters()
        torch.nn.utils.clip_grad_norm_(parameters, lookup_run.recipe.grad_clip)
        state.optimizer.step()
        after.append(queries.measure_query(state.model, case.question).mean())
    ((found,),) = tail_patch.tail_patch_changes(lookup_run, [(case.question, [document])])
    assert found == pytest.approx(after[0] - after[1], rel=1e-4)


def test_a_document_longer_than_the_context_is_taken_whole(tiny_run):
    """Its windows are disjoint, and their losses share one divisor."""
    longest = int(tiny_run.store.lengths.argmax())
    length = int(tiny_run.store.lengths[longest])
    assert length > tiny_run.config.n_ctx
    windows = list(tail_patch.document_windows(tiny_run.store, longest, tiny_run.config.n_ctx))
    assert [n for *_, n in windows] == [length + 1] * len(windows)
    targets = torch.cat([targets[0] for _, targets, _ in windows])
    start = int(tiny_run.store.starts[longest])
    expected = [*tiny_run.store.tokens[start : start + length].tolist(), tiny_run.store.eot]
    assert targets.tolist() == expected


# --- what removing the first k does --------------------------------------------------------------


@pytest.fixture(scope="module")
def curves(lookup_run, pair, tmp_path_factory):
    torch.set_num_threads(1)
    cases = [pair(3), pair(9)]
    right = {case.name: sorted(case.relevant) for case in cases}
    wrong = {"pair 3": sorted(pair(5).relevant), "pair 9": sorted(pair(6).relevant)}
    return evaluation.removal_curves_of(
        Retrainings(lookup_run, "blank", None, tmp_path_factory.mktemp("weights")),
        cases,
        {"right": right, "wrong": wrong},
        ks=(2,),
        seeds=2,
        unrelated=[pair(0).question],
    )


def test_the_right_documents_take_the_answer_away_and_the_wrong_ones_do_not(curves):
    right, wrong = curves.points
    assert curves.cases == ("pair 3", "pair 9")
    assert (right.method, right.k, wrong.method) == ("right", 2, "wrong")
    assert right.removed == wrong.removed == 40  # two documents and their copies, of two pairs
    assert [len(one) for one in (right.documents, *right.controls, wrong.documents)] == [40] * 4
    assert not any({*right.documents} & {*one} for one in right.controls)
    assert wrong.controls == ()
    assert right.random_interval is not None
    assert right.random_interval[0] < right.random.mean() < right.random_interval[1]
    assert wrong.random_interval is None
    assert (right.change < -3).all()
    assert wrong.change.mean() > right.change.mean() + 3
    assert right.random.shape == (2, 2)
    assert wrong.random.shape == (0, 2)
    assert (np.abs(right.random) < 6).all()
    assert right.ratio is not None
    assert right.ratio.value == pytest.approx(-right.change.mean() / np.abs(right.random).mean())
    assert wrong.ratio is None


def test_an_unrelated_question_is_asked_of_the_same_runs(curves, lookup_run, pair):
    (unrelated,) = curves.points[0].unrelated
    full = queries.measure_query(lookup_run.load(), pair(0).question)
    assert unrelated.before == pytest.approx(full)
    assert unrelated.controls.shape == (2, 1)
    assert abs(float(unrelated.after[0] - full[0])) < abs(curves.points[0].change).min()
    rows = curves.rows()
    assert [row["method"] for row in rows] == ["right", "wrong"]
    assert rows[0]["unrelated"][0]["question"] == "pair 0"
    assert rows[1]["random"] is None


def test_cases_are_chosen_by_what_states_them_and_not_by_their_lists(pair):
    three, nine, four = pair(3), pair(9), pair(4)
    again = replace(nine, relevant=frozenset({*nine.relevant, min(three.relevant)}))
    assert [case.name for case in evaluation.apart([three, nine, four])] == [
        "pair 3", "pair 9", "pair 4"
    ]  # fmt: skip
    assert evaluation.apart([three, again, four]) == [three, four]


def test_lists_that_overlap_are_counted_and_no_case_is_dropped(lookup_run, pair, tmp_path):
    """Two of three cases name the same document; its one removal is asked of all three."""
    cases = [pair(3), pair(9), pair(4)]
    shared = min(cases[0].relevant)
    ranked = {"x": {"pair 3": [shared], "pair 9": [shared], "pair 4": sorted(pair(4).relevant)}}
    again = Retrainings(lookup_run, "blank", None, tmp_path)
    found = evaluation.removal_curves_of(again, cases, ranked, ks=(1,), seeds=0, together="none")
    (point,) = found.points
    assert found.cases == ("pair 3", "pair 9", "pair 4")
    assert point.removed == 2
    assert point.overlaps is not None
    assert point.overlaps.tolist() == [True, True, False]
    assert found.rows()[0]["overlapping"] == 2


def test_foils_of_one_prompt_are_one_prompt_of_an_unrelated_question():
    """Four rows of two prompts: n is 2, each prompt counting once whatever foils it has."""
    tokens = torch.tensor([[7, 1], [7, 2], [7, 1], [7, 1]])
    asked = Query("q", tokens, Metric("q", "nats", lambda logits, row: row))
    before, after = np.array([1.0, 5.0, 2.0, 3.0]), np.array([1.0, 6.0, 2.0, 0.0])
    found = removal_curves.unrelated_change(asked, before, after, [before, before])
    assert found.before.tolist() == [2, 5]
    assert found.after.tolist() == [1, 6]
    assert found.controls.tolist() == [[2, 5], [2, 5]]
    assert (found.effect.n, found.effect.seeds) == (2, 2)
    assert removal_curves.unrelated_change(asked, before, after, []).controls.shape == (0, 2)


def unrelated(after, controls):
    return Change("q", "nats", False, np.zeros(3), np.asarray(after), np.asarray(controls))


def test_what_is_within_a_large_noise_was_not_shown_to_be_small():
    """Both effects hold 0; only beside quiet controls is the far end a small part of the loss."""
    lost = point([-10, -12, -8, -10.0], [[1, -1, 1, -1.2]])
    quiet = unrelated([0.1, -0.1, 0.05], [[0.1] * 3, [-0.1] * 3])
    loud = unrelated([0.1, -0.1, 0.05], [[3.0] * 3, [-3.0] * 3])
    assert quiet.effect.within_noise
    assert loud.effect.within_noise
    small, large = lost.share_of_loss(quiet), lost.share_of_loss(loud)
    assert small is not None
    assert large is not None
    low, high = lost.interval or (0, 0)
    assert small.value == pytest.approx(quiet.effect.mean / 10)
    assert small.high == pytest.approx((quiet.effect.high or 0) / -high)  # over the least loss
    assert -0.4 < small.low < 0 < (small.high or 1) < 0.4
    assert large.low < -1
    assert low < high < 0


def test_without_a_loss_or_an_interval_there_is_no_share_of_the_loss():
    change = unrelated([0.1, -0.1, 0.05], [[0.1] * 3, [-0.1] * 3])
    assert point([1.0, -1, 0.5, -0.6], [[1, 1, 1, 1.0]]).share_of_loss(change) is None
    assert point([-10.0], [[1.0]]).share_of_loss(change) is None
    alone = Change("q", "nats", False, np.zeros(1), np.ones(1), np.zeros((1, 1)))
    assert point([-10, -12, -8, -10.0], [[1] * 4]).share_of_loss(alone) is None


def point(change, random):
    return CurvePoint("x", 1, 1, np.asarray(change, float), np.asarray(random, float))


def test_the_ratio_is_of_what_is_lost_to_what_random_documents_move():
    """Chance moves up as often as down: signed, the same controls would make the ratio infinite."""
    found = point([-10, -12, -8, -10.0], [[1, -1, 1, -1.2], [-1, 1, -0.8, 1]]).ratio
    assert found is not None
    assert found.value == pytest.approx(10)
    assert 5 < found.low < 10 < (found.high or np.inf)
    nothing = point([0.5, -0.5, 0.4, -0.4], [[1, -1, 1, -1.2]]).ratio
    assert nothing is not None
    assert nothing.low < 1
    assert point([-10.0], [[1.0]]).ratio is None  # a single case has no interval


def test_controls_that_move_nothing_for_sure_leave_no_upper_end():
    found = point([-10, -12, -8, -10.0], [[4, 0.0, 0.0, 0.0]]).ratio
    assert found is not None
    assert found.high is None
    assert 0 < found.low < found.value == 10
    # Four cases that may have gained, over next to nothing: any number is possible.
    assert point([-10, 12, -8, -10.0], [[4, 0.0, 0.0, 0.0]]).ratio is None


# --- the table -----------------------------------------------------------------------------------


def test_the_table_shows_every_number_with_its_n_and_leaves_out_what_was_not_asked():
    rows = [
        result.row("bm25", "verbatim", "recall@10", 0.5, (0.25, 0.75), 4),
        result.row("random", "verbatim", "tail patch", -0.1, None, 1),
        result.row("gradient", "verbatim", "recall@10", 0.5, None, 4),
        result.row("gradient (all)", "verbatim", "recall@10", 0.5, None, 4),
        *result.mean_row("bm25", "verbatim", "tail patch", np.array([1.0, 2.0, 3.0])),
        *result.mean_row("bm25", "paraphrase", "tail patch", np.array([])),
    ]
    about = {"run": "r", "candidates": 3, "within": []}
    found = Evaluation(tuple(rows), about)
    head, bm25, random, chosen, every, end = found.lines().splitlines()
    assert head.split() == ["method", "facts", "recall@10", "tail", "patch"]
    assert bm25.split()[:6] == ["bm25", "verbatim", "0.5", "[0.25,", "0.75]", "(4)"]
    assert "2 [-0.484, 4.48] (3)" in bm25
    assert random.split() == ["random", "verbatim", "-0.1", "[,", "]", "(1)"]
    assert [one.split("verbatim")[0].strip() for one in (chosen, every)] == [
        "gradient (preselected)",
        "gradient (all)",
    ]
    assert "(preselected): gradients of 3 documents that words preselected, also in fused" in end
    assert found.value("bm25", "verbatim", "tail patch")["n"] == 3
    measures = ["recall@10", "tail patch", "recall@10", "recall@10", "tail patch"]
    assert list(found.to_frame()["measure"]) == measures
