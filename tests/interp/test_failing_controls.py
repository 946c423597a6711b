"""Every control fails where it must: the case in which it reaches what it is held against.

A control that cannot fail proves nothing. Elsewhere: random circuits and the untrained model's own
scale (`circuits/test_discovery.py`), an untrained model as its own control
(`patching/test_untrained_control.py`), placebos of an erasure (`probing/test_concept_erasure.py`),
labels of a control task (`probing/test_probes.py`), untrained heads (`heads/`), random documents
(`tests/data_attribution/counterfactuals/test_effect_size.py`, `test_fact_removal.py`), random
orders and random scores (`tests/data_attribution/evaluation/`).
"""

from dataclasses import replace

import pytest
import torch

from interp import causal_abstraction, circuits, metrics, patching, steering
from interp.behaviours import Behaviour
from interp.causal_abstraction import interventions
from interp.circuits import controls, faithfulness
from interp.errors import ContrastError
from train.model import GPT, GPTConfig, init_gpt


VOCAB = 20
CONFIG = GPTConfig(
    n_layers=1, n_heads=2, d_model=16, n_ctx=4, d_vocab=VOCAB, norm="none", position="none",
    tie=True, init_std=0.5,
)  # fmt: skip


@pytest.fixture(scope="module")
def tied() -> GPT:
    """Any such model says its last token again, trained or not: its embedding unembeds it."""
    return init_gpt(CONFIG, seed=0).eval()


def repeats(n: int = 16, seed: int = 0) -> Behaviour:
    draw = torch.Generator().manual_seed(seed)
    clean = torch.randint(VOCAB, (n, 3), generator=draw)
    corrupt = clean.clone()
    corrupt[:, -1] = (clean[:, -1] + 1 + torch.arange(n) % 7) % VOCAB
    return Behaviour("repeat", clean, corrupt, clean[:, -1], corrupt[:, -1])


def test_untrained_models_do_what_their_shape_does_without_training(tied):
    judge = faithfulness.Judge.of(tied, repeats(), metric=metrics.logit_difference, memory=2**30)
    kept = circuits.graph_of(tied).holding(["input->logits"])
    assert controls.random_init(judge, kept).value > 0.5
    own = controls.own_scale(judge, kept)
    assert own is not None
    assert own.value == pytest.approx(1, abs=0.2)


def test_another_source_gives_the_expected_answer_where_exchange_only_destroys():
    model = init_gpt(replace(CONFIG, tie=False), seed=1).eval()
    clean = torch.randint(VOCAB, (40, 3), generator=torch.Generator().manual_seed(1))
    said = model(clean)[:, -1].argmax(-1)
    behaviour = Behaviour("said", clean, (clean + 1) % VOCAB, said, (said + 1) % VOCAB)
    pairs = causal_abstraction.crossed(behaviour, n_pairs=60)
    found = interventions.interchange(model, pairs, ["L0.resid_pre@2"])
    assert found.unpatched.values.item() == 0
    assert found.shuffled.values.item() > 0.2


def test_random_rotations_reach_a_search_of_nearly_all_directions(tied):
    one, other = (causal_abstraction.crossed(half) for half in causal_abstraction.halves(repeats()))
    place = {"place": "L0.resid_pre@2", "rank": CONFIG.d_model - 1}
    found = causal_abstraction.align(tied, one, other, steps=1, **place)
    reached = {arm: share.values.item() for arm, share in found.accuracy.items()}
    assert reached["random"] > 0.9 * reached["learned"] > 0.5


def test_a_direction_that_means_nothing_moves_no_more_than_random_ones(tied):
    behaviour = repeats()
    vector = steering.difference(tied, behaviour.clean, behaviour.corrupt, place="L0.resid_pre")
    drawn = torch.randn(CONFIG.d_model, generator=torch.Generator().manual_seed(3))
    nothing = replace(vector, values=drawn * vector.values.norm() / drawn.norm())
    found = steering.curve(tied, nothing, repeats(seed=5), coefficients=(1.0,), n_random=32)
    assert abs(found.effect.values[0]) < found.control_largest[0]


def test_a_foil_that_never_wins_is_no_contrast():
    """The answer beats such a foil in both prompts: what differs between them is not asked for."""
    clean = torch.randint(5, 12, (16, 3), generator=torch.Generator().manual_seed(0))
    corrupt = clean.clone()
    corrupt[:, -1] += 1 + torch.arange(16) % 7
    likely = torch.full((16,), 3)
    behaviour = Behaviour("always", clean, corrupt, likely, likely + 1)
    always = init_gpt(CONFIG, seed=0).eval()
    with torch.no_grad():
        for parameter in always.parameters():
            parameter.zero_()
        always.embed.weight[:, 0] = 1.0
        always.embed.weight[3, 0] = 9.0
    assert (behaviour.score(always(clean)) > 0).all()
    with pytest.raises(ContrastError):
        patching.heads(always, behaviour)
