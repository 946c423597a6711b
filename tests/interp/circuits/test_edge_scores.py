"""EAP is exact where the model is linear; EAP-IG adds up to what there is to explain."""

import pytest
import torch

from interp import circuits
from interp.behaviours import Behaviour
from interp.circuits import edge_ablation, edge_attribution_patching
from interp.errors import BehaviourError, BudgetError
from train.model import GPT, GPTConfig, init_gpt


def nonlinear(**choices) -> GPT:
    config = {"n_layers": 2, "n_heads": 2, "d_model": 16, "n_ctx": 8, "d_vocab": 20}
    return init_gpt(GPTConfig(**config, init_std=0.3, **choices), seed=0).eval()


def linear(**choices) -> GPT:
    """Norms divide by a constant, patterns are uniform, every ReLU is open."""
    model = nonlinear(norm_eps=1e12, mlp="relu", **choices).double()
    with torch.no_grad():
        for block in model.blocks:
            # sqrt(variance + 1e12) is 1e6 to nine digits.
            for norm in (block.ln1, block.ln2, model.ln_final):
                norm.weight.fill_(1e6)
            block.attn.qkv.weight[: 2 * model.cfg.d_model] = 0
            block.mlp.up.bias.fill_(50.0)
            block.mlp.down.weight *= 0.05  # or the second layer reads more than 50
    return model


def behaviour() -> Behaviour:
    generator = torch.Generator().manual_seed(1)
    clean = torch.randint(20, (4, 6), generator=generator)
    corrupt = clean.clone()
    corrupt[:, 1:3] = (clean[:, 1:3] + 3) % 20
    return Behaviour("random", clean, corrupt, torch.arange(4), torch.arange(4) + 10)


def difference(model: GPT) -> torch.Tensor:
    with torch.no_grad():
        one = behaviour()
        return one.score(model(one.clean)) - one.score(model(one.corrupt))


@pytest.mark.parametrize("choices", [{}, {"parallel_residual": True}, {"window": 5}], ids=str)
@pytest.mark.parametrize("method", ["eap", "eap-ig"])
def test_on_a_linear_model_the_estimate_is_the_truth_for_every_edge(method: str, choices):
    model, one = linear(**choices), behaviour()
    estimated = edge_attribution_patching.edge_scores(model, one, method=method)
    exact = edge_attribution_patching.exact_edge_effects(model, one)
    assert exact.abs().max() > 0.1
    torch.testing.assert_close(estimated, exact, atol=1e-4, rtol=1e-4)
    # Uniform patterns do not look at queries and keys.
    graph = circuits.graph_of(model)
    looks = torch.tensor(["<q>" in edge or "<k>" in edge for edge in graph.edges])
    assert exact[:, looks].abs().max() < 1e-4


def test_on_another_model_the_estimate_errs():
    model, one = nonlinear(), behaviour()
    exact = edge_attribution_patching.exact_edge_effects(model, one)
    assert (edge_attribution_patching.eap(model, one) - exact).abs().max() > 0.01


@pytest.mark.parametrize("layout", [{}, {"position": "rope", "norm": "rmsnorm", "mlp": "swiglu"}])
def test_with_more_steps_the_input_edges_add_up_to_the_whole_difference(layout: dict):
    model, one = nonlinear(**layout), behaviour()
    from_input = torch.tensor([e.startswith("input->") for e in circuits.graph_of(model).edges])
    misses = []
    for steps in (1, 8, 64):
        worth = edge_attribution_patching.eap_ig(model, one, steps=steps)
        misses.append((worth[:, from_input].sum(dim=1) - difference(model)).abs().max().item())
    assert misses[2] < 1e-3 < misses[0]
    assert misses[2] < misses[1] < misses[0]


def test_the_gradients_are_those_that_hooks_see():
    """Of an MLP and the logits at their norm; heads' queries, keys and values add up to theirs."""
    model, one = nonlinear(), behaviour()
    from interp import metrics

    clean, _ = edge_ablation.written(model, one)
    found = edge_attribution_patching.reader_gradients(
        model, clean[0], metrics.logit_difference(one)
    )
    readers, seen = circuits.graph_of(model).readers, {}
    hooks = [
        (name, lambda gradient, point: seen.update({point.name: gradient}))
        for name in ("blocks.0.ln1.hook_in", "blocks.1.ln2.hook_in", "ln_final.hook_in")
    ]
    with model.hooks(bwd_hooks=hooks):
        one.score(model(one.clean)).sum().backward()
    for name, belonging in (
        ("blocks.0.ln1.hook_in", [i for i, reader in enumerate(readers) if "a0." in reader]),
        ("blocks.1.ln2.hook_in", [readers.index("m1")]),
        ("ln_final.hook_in", [readers.index("logits")]),
    ):
        torch.testing.assert_close(found[belonging].sum(dim=0), seen[name], atol=1e-5, rtol=1e-4)


def test_an_edge_against_the_behaviour_has_a_worth_below_zero():
    model, one = linear(), behaviour()
    exact = edge_attribution_patching.exact_edge_effects(model, one)
    graph = circuits.graph_of(model)
    worst = int(exact[0].argmin())
    kept = torch.arange(graph.n_edges) != worst
    both = torch.stack([torch.ones_like(kept), kept])
    full, without = edge_ablation.scores(model, one, both)
    assert without[0] > full[0]


def test_prompts_and_memory_do_not_change_a_worth():
    model, one = nonlinear(), behaviour()
    together = edge_attribution_patching.eap_ig(model, one)
    scant = edge_attribution_patching.eap_ig(model, one, memory=100_000)
    torch.testing.assert_close(together, scant, atol=1e-5, rtol=1e-4)
    alone = edge_attribution_patching.eap_ig(model, one.of([2]))
    torch.testing.assert_close(together[2:3], alone, atol=1e-5, rtol=1e-4)


def test_it_works_in_inference_mode_and_leaves_no_gradient_behind():
    model, one = nonlinear(), behaviour()
    with torch.inference_mode():
        edge_attribution_patching.eap(model, one)
        assert not torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_interrupt_leaves_modes_hooks_and_random_numbers_as_they_were():
    model, one = nonlinear(), behaviour()
    before = torch.get_rng_state()

    def stop(what: str, done: int, total: int | None) -> None:
        if done:
            raise KeyboardInterrupt

    for method in ("eap-ig", "exact"):
        with pytest.raises(KeyboardInterrupt):
            edge_attribution_patching.edge_scores(model, one, method=method, progress=stop)
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert not any(point.hooked for point in model.hook_dict.values())
    assert torch.get_rng_state().equal(before)


# What is refused


def test_an_unknown_method_is_named_with_its_neighbours():
    with pytest.raises(BehaviourError, match=r"no method is called 'eap_ig'.*'eap-ig'"):
        edge_attribution_patching.edge_scores(nonlinear(), behaviour(), method="eap_ig")


def test_no_step_and_no_memory_are_refused():
    with pytest.raises(BehaviourError, match="0 steps"):
        edge_attribution_patching.eap_ig(nonlinear(), behaviour(), steps=0)
    with pytest.raises(BudgetError, match="gradients on one prompt of 6 tokens take"):
        edge_attribution_patching.eap(nonlinear(), behaviour(), memory=1000)
