"""The planted lineage in a short form: what the stages teach, and which stage is named for a fact.

`benchmarks/tuning_stages.py` is the long form, with more steps, facts and documents.
"""

import json
from typing import Any

import numpy as np
import pytest

from data_attribution import attribution, gradients, metagradients, queries
from data_attribution.errors import EvidenceError
from data_attribution.evaluation import tail_patch
from interp import behaviours
from tests.worlds.scripts import benchmark
from train import storage, trainer


pytestmark = pytest.mark.slow

SFT = {"steps": 65, "lr": 7e-4, "batch_size": 16, "checkpoint_every": 65, "optimizer_every": 65}
DPO = {**SFT, "steps": 40, "lr": 3e-4, "dpo_beta": 0.2, "checkpoint_every": 40}


@pytest.fixture(scope="module")
def stages():
    return benchmark("tuning_stages")


@pytest.fixture(scope="module")
def tuned(stages, released_run, tmp_path_factory):
    """The released run, tuned on the planted instructions and then on the planted preferences."""
    return stages.lineage(tmp_path_factory.mktemp("stages"), released_run, sft=SFT, dpo=DPO)


@pytest.fixture(scope="module")
def asked(stages, tuned):
    return list(stages.cases(tuned, 4))


@pytest.fixture(scope="module")
def found(stages, tuned, asked):
    return stages.compared(tuned, asked, candidates=300, rank=32)


def test_the_lineage_verifies_and_replays_to_the_bit(tuned, released_run):
    pretraining, sft, dpo = tuned.lineage()
    assert (pretraining.id, dpo.id) == ("f932c8200363", tuned.id)
    for stage in (sft, dpo):
        assert trainer.verify(stage, spans=1).level == "bit-exact"
    assert trainer.replay(dpo, 0, 4).exact
    assert dpo.ledger[0].loss == pytest.approx(np.log(2), abs=1e-6)


def test_each_stage_moves_what_it_teaches_and_leaves_the_rest(stages, tuned, released_run):
    models = [stage.load() for stage in tuned.lineage()]
    by_instructions = [stages.answered(m, tuned, "instructions", "new")[0] for m in models]
    assert by_instructions[0] < 0.1
    assert by_instructions[1] > 0.8
    # DPO moves the margin between the two answers first, in nats.
    margins = [margin(stages, model, tuned) for model in models]
    assert margins[2] > max(margins[:2]) + 4
    # The form of the answer carries over to facts that no example asks for.
    test = [stages.answered(model, tuned, "pretraining", "test")[0] for model in models]
    assert test[0] < 0.1
    assert test[1] > 0.4
    for name in ("ioi", "induction"):
        behaviour = behaviours.load(name, released_run)
        before, *after = (behaviours.measure(model, behaviour).accuracy for model in models)
        assert min(after) > before - 0.15, name


def margin(stages, model, tuned) -> float:
    """The mean logit difference between the answers of facts that preferences alone ask for."""
    facts = stages.facts_of(tuned, "preferences", "new")
    asked = [behaviours.load(fact["name"], tuned) for fact in facts]
    return float(np.mean([behaviours.measure(model, one).score for one in asked]))


def test_the_stage_and_its_examples_are_named(stages, asked, found):
    rows = stages.table(asked, found)
    by_cosine, random = rows[::2], rows[1::2]
    assert [row["facts"] for row in rows] == [4] * 6
    for row in by_cosine:
        assert str(row["stage named"]).startswith("1.00 [")
    for row in by_cosine[1:]:
        assert float(str(row["recall@10"]).split()[0]) >= 0.6
        assert float(str(row["in the first n"]).split()[0]) >= 0.5
    for row in random:
        assert float(str(row["recall@10"]).split()[0]) <= 0.2


def test_the_changes_of_the_stages_add_up(tuned, asked, found):
    first, last = tuned.lineage()[0].load(0), tuned.load()
    for case, sources in zip(asked[::4], found[::4], strict=True):
        ends = [queries.measure_query(model, case.query).mean() for model in (first, last)]
        total = sum(stage.change for stage in sources.stages)
        assert total == pytest.approx(ends[1] - ends[0], abs=1e-4)
        # A fact of the corpus is asked for by one prompt, which has no interval.
        if case.stage:
            assert all(stage.low <= stage.change <= stage.high for stage in sources.stages)


def test_the_gradient_of_a_preference_is_that_of_its_margin(tuned):
    model, store = tuned.load(), tuned.store
    selection = gradients.select_weights(model.cfg, ["L1.mlp"])
    options: dict[str, Any] = {"rank": 8, "seed": 0}
    features = gradients.document_features(model, store, [0, 5], selection, **options)
    for row, document in enumerate((0, 5)):
        tokens = store.tokens[store.starts[document] - 1 :][: store.row_length]
        half, prompt = store.example_length, int(store.prompt_tokens[document])
        margin = 0
        for side, sign in ((tokens[:half], 1), (tokens[half:], -1)):
            ids = [int(one) for one in side[1:]]
            answer = [*ids[prompt : ids.index(store.eot)], store.eot]
            query = queries.query_of_continuations(
                [(ids[:prompt], answer)], store.eot, name="response"
            )
            asked = gradients.query_features(model, query, selection, **options)
            # A query is the mean log-probability of a token.
            margin = margin + sign * len(answer) * asked.values[0]
        assert np.allclose(features.values[row], -margin, atol=1e-4 * np.abs(margin).max())


def test_a_result_is_saved_and_shown(tuned, found, tmp_path):
    found[4].save(tmp_path / "found.json")
    content = storage.read_sealed(tmp_path / "found.json")
    assert content["taught_by"] == 1
    assert [stage["objective"] for stage in content["stages"]] == ["next-token", "sft", "dpo"]
    assert len(found[4].to_frame()) == 20


def test_the_command_names_the_stage(tuned, openbook):
    facts = tuned.store.tuning_truth["facts"]
    name = next(one["name"] for one in facts if one["stage"] == "preferences")
    options = ("--candidates", 100, "--rank", 8, "--limit", 5)
    ended = openbook("trace", "stages", tuned.path, name, *options, "--json")
    assert ended.code == 0
    assert len(json.loads(ended.out)["items"]) == 5
    ended = openbook("trace", "stages", tuned.path, "ioi", *options)
    assert "stage 0  planted  +" in ended.out
    assert "taught it" in ended.out.splitlines()[1]


def test_methods_that_follow_next_tokens_refuse_preferences(tuned, asked):
    query = asked[0].query
    with pytest.raises(EvidenceError, match="was tuned by dpo; replay differentiates"):
        metagradients.influence(tuned, query)
    with pytest.raises(EvidenceError, match="was tuned by dpo, and a tail patch"):
        tail_patch.tail_patch_changes(tuned, [(query, [0])])


def test_what_cannot_be_compared_is_refused(released_run):
    query = queries.query_of_behaviour(behaviours.load("capital", released_run))
    with pytest.raises(EvidenceError, match="by 'cosine', not by 'adam'"):
        attribution.across_stages(released_run, [query], how=gradients.DEFAULT)
    with pytest.raises(EvidenceError, match="no query was asked"):
        attribution.across_stages(released_run, [])
    with pytest.raises(EvidenceError, match="of 2 stages were given for a lineage of 1"):
        attribution.across_stages(released_run, [query], documents=[None, None])
