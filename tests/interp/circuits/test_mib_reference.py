"""Our numbers are those of the code that MIB's figures were made with, on the same random GPT-2.

The expected values were computed once with hannamw/EAP-IG@795f560 and hannamw/MIB-circuit-track
@b759df3 on transformer_lens 3.9.0, from the weights and tokens built below; all 262 edges agreed
within 2e-6. Written out are the strongest edges of each method and one in the middle. Their EAP-IG
takes the starts of its steps where ours takes the middles, so it is asked for by its points.
"""

import pytest
import torch

from interp import circuits, metrics
from interp.behaviours import Behaviour
from interp.circuits import edge_ablation, edge_attribution_patching, faithfulness
from train.model import GPT, GPTConfig, init_gpt


EAP = {
    "input->a0.h1<k>": 0.41573,
    "a0.h1->m0": 0.35090,
    "input->a0.h3<v>": -0.29359,
    "m1->logits": 0.29210,
    "m0->a2.h1<k>": 0.02231,
}
EAP_IG = {
    "a0.h1->m0": 0.76268,
    "input->a0.h1<k>": 0.56713,
    "m1->logits": 0.50219,
    "input->a0.h3<v>": 0.46866,
    "m0->a2.h1<k>": -0.00118,
}
EXACT = {
    "input->a0.h0<k>": 0.84136,
    "a0.h1->m0": 0.64536,
    "input->a0.h1<k>": 0.60664,
    "input->a0.h0<v>": 0.57787,
    "m0->a2.h1<k>": 0.01987,
}


@pytest.fixture(scope="module")
def case() -> tuple[GPT, Behaviour]:
    config = GPTConfig(n_layers=3, n_heads=4, d_model=32, n_ctx=16, d_vocab=50, init_std=0.3)
    model = init_gpt(config, seed=0).eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
            elif ".ln" in name or name == "ln_final.weight":
                parameter.copy_(1 + 0.2 * torch.randn(parameter.shape, generator=draw))
        clean = torch.randint(50, (12, 9), generator=draw)
        corrupt = clean.clone()
        corrupt[:, 2:5] = (clean[:, 2:5] + 7) % 50
        logits = model(clean)[:, -1] - 0.5 * model(corrupt)[:, -1]
    return model, Behaviour("random", clean, corrupt, logits.argmax(1), logits.argmin(1))


def test_eap_eap_ig_and_exact_worths_are_theirs(case):
    model, behaviour = case
    starts = [k / 5 for k in range(5)]
    found = {
        "eap": edge_attribution_patching.eap(model, behaviour),
        "eap-ig": edge_attribution_patching.gradient_worth(
            model, behaviour, starts, metrics.logit_difference, edge_ablation.MEMORY, None
        ),
        "exact": edge_attribution_patching.exact_edge_effects(model, behaviour),
    }
    graph = circuits.graph_of(model)
    for method, expected in (("eap", EAP), ("eap-ig", EAP_IG), ("exact", EXACT)):
        worth = found[method].mean(dim=0)
        for edge, value in expected.items():
            assert worth[graph.index(edge)].item() == pytest.approx(value, abs=2e-5), (method, edge)


def test_cpr_and_cmd_are_theirs(case):
    model, behaviour = case
    worth = edge_attribution_patching.eap_ig(model, behaviour).mean(dim=0)
    judge = faithfulness.Judge.of(
        model, behaviour, metric=metrics.logit_difference, memory=edge_ablation.MEMORY
    )
    cpr, cmd = faithfulness.curves(judge, circuits.graph_of(model), worth)
    assert cpr.kept == (0, 0, 0, 0, 0, 11, 23, 49, 131, 262)
    assert cmd.kept == (0, 0, 0, 0, 0, 10, 22, 47, 125, 262)
    signed = [0, 0, 0, 0, 0, 0.393801, 0.665956, 0.798450, 0.988327, 1]
    by_size = [0, 0, 0, 0, 0, 0.367774, 0.487955, 0.604791, 1.032535, 1]
    assert cpr.f == pytest.approx(signed, abs=1e-5)
    assert cmd.f == pytest.approx(by_size, abs=1e-5)
    assert cpr.area.value == pytest.approx(0.870720, abs=1e-5)
    assert cmd.area.value == pytest.approx(0.189748, abs=1e-5)
