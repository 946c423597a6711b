"""Cutting edges is exact: all kept is the clean run, none the corrupt one, for every layout."""

from dataclasses import replace

import pytest
import torch

from interp import circuits, metrics
from interp.behaviours import Behaviour
from interp.circuits import Graph, edge_ablation
from interp.errors import BudgetError, CircuitError, ModelError
from train.model import GPT, GPTConfig, init_gpt


LAYOUTS = {
    "gpt2": GPTConfig(n_layers=3, n_heads=4, d_model=32, n_ctx=16, d_vocab=50, init_std=0.2),
    "llama, shared keys": GPTConfig(
        n_layers=3,
        n_heads=4,
        n_key_value_heads=2,
        d_model=32,
        n_ctx=16,
        d_vocab=50,
        position="rope",
        norm="rmsnorm",
        mlp="swiglu",
        bias=False,
        tie=False,
        init_std=0.2,
    ),
    "pythia": GPTConfig(
        n_layers=3,
        n_heads=4,
        d_model=32,
        n_ctx=16,
        d_vocab=50,
        position="rope",
        rotary_channels=2,
        mlp="gelu",
        tie=False,
        parallel_residual=True,
        init_std=0.2,
    ),
    "a window, normalised queries and keys": GPTConfig(
        n_layers=3,
        n_heads=4,
        n_key_value_heads=2,
        d_model=32,
        n_ctx=16,
        d_vocab=50,
        position="rope",
        norm="rmsnorm",
        mlp="swiglu",
        bias=False,
        qkv_bias=True,
        qk_norm=True,
        window=3,
        init_std=0.3,
    ),
    "no positions": GPTConfig(
        n_layers=2, n_heads=2, d_model=16, n_ctx=16, d_vocab=50, position="none", init_std=0.2
    ),
}


def model_of(layout: str) -> GPT:
    """Random weights, and random biases where there are any."""
    model = init_gpt(LAYOUTS[layout], seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def behaviour_of(n_prompts: int = 5, n_pos: int = 7, d_vocab: int = 50) -> Behaviour:
    generator = torch.Generator().manual_seed(2)
    clean = torch.randint(d_vocab, (n_prompts, n_pos), generator=generator)
    corrupt = clean.clone()
    corrupt[:, 2:4] = (clean[:, 2:4] + 7) % d_vocab
    answer = torch.arange(n_prompts)
    return Behaviour("random", clean, corrupt, answer, answer + 10)


@pytest.mark.parametrize(
    ("n_layers", "n_heads", "n_edges"),
    # 36 sum(1 + 13 l) + sum(13 + 13 l) + 157, as MIB's file of GPT-2 small has it.
    [(12, 12, 32_491), (2, 4, 110), (1, 1, 3 + 2 + 3)],
)
def test_the_number_of_edges_follows_the_formula(n_layers: int, n_heads: int, n_edges: int):
    graph = Graph(n_layers, n_heads, 8)
    per = n_heads + 1
    formula = sum(3 * n_heads * (1 + per * i) + per + per * i for i in range(n_layers))
    assert graph.n_edges == len(set(graph.edges)) == formula + 1 + n_layers * per == n_edges


def test_with_a_parallel_residual_no_mlp_reads_the_heads_of_its_own_layer():
    serial, parallel = Graph(3, 2, 8), Graph(3, 2, 8, parallel=True)
    assert parallel.nodes == serial.nodes
    left = [edge for edge in serial.edges if edge not in parallel.edges]
    assert left == [f"a{layer}.h{head}->m{layer}" for layer in range(3) for head in range(2)]
    assert [edge for edge in serial.edges if edge not in left] == list(parallel.edges)


def test_every_edge_points_from_an_earlier_node_to_a_later_one():
    graph = Graph(3, 2, 8)
    order = {name: i for i, name in enumerate(graph.nodes)}
    for edge in graph.edges:
        source, _, reader = edge.partition("->")
        node = reader.partition("<")[0]
        assert order[source] < order[node]
        # Heads of one layer work side by side.
        assert not (source[0] == node[0] == "a" and source.split(".")[0] == node.split(".")[0])
    assert {"input->a0.h1<q>", "a0.h0->m0", "a0.h1->a2.h0<v>", "m2->logits"} <= set(graph.edges)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_complete_circuit_is_the_clean_run_and_the_empty_one_the_corrupt_run(layout: str):
    model, behaviour = model_of(layout), behaviour_of()
    graph = circuits.graph_of(model)
    kept = torch.stack([torch.ones(graph.n_edges), torch.zeros(graph.n_edges)]).bool()
    full, empty = edge_ablation.scores(model, behaviour, kept)
    with torch.no_grad():
        clean, corrupt = model(behaviour.clean), model(behaviour.corrupt)
    torch.testing.assert_close(full, behaviour.score(clean), atol=1e-5, rtol=0)
    torch.testing.assert_close(empty, behaviour.score(corrupt), atol=1e-5, rtol=0)


def test_a_prompt_with_several_foils_counts_once_in_the_mean():
    model, behaviour, rows = model_of("gpt2"), behaviour_of(), [0, 0, 0, 1, 2, 3, 4]
    none = torch.zeros(1, circuits.graph_of(model).n_edges).bool()
    once = edge_ablation.scores(model, behaviour, none, standin="mean")
    again = edge_ablation.scores(model, behaviour.of(rows), none, standin="mean")
    torch.testing.assert_close(again, once[:, rows])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("standin", ["mean", "resample"])
def test_cutting_all_edges_out_of_a_head_equals_a_hook_that_puts_the_stand_in(layout, standin):
    model, behaviour = model_of(layout), behaviour_of()
    graph = circuits.graph_of(model)
    kept = torch.tensor([not edge.startswith("a1.h1->") for edge in graph.edges])
    cut = edge_ablation.scores(model, behaviour, kept[None], standin=standin, seed=3)[0]
    hook = "blocks.1.attn.hook_z"
    with torch.no_grad():
        z = model.run_with_cache(behaviour.clean, names_filter=[hook])[1][hook]
        candidates = []
        for values in [z.mean(dim=0, keepdim=True), *(z.roll(i, 0) for i in range(1, len(z)))]:

            def put(now: torch.Tensor, hook: object, values: torch.Tensor = values) -> torch.Tensor:
                return torch.cat([now[:, :, :1], values[:, :, 1:2].expand_as(now[:, :, 1:2]),
                                  now[:, :, 2:]], dim=2)  # fmt: skip

            run = model.run_with_hooks(behaviour.clean, fwd_hooks=[(hook, put)])
            candidates.append(behaviour.score(run))
    if standin == "mean":
        torch.testing.assert_close(cut, candidates[0], atol=1e-5, rtol=0)
    else:
        # Every prompt carries the value of some other prompt.
        gaps = (torch.stack(candidates[1:]) - cut).abs().min(dim=0).values
        assert gaps.max() < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cutting_all_edges_out_of_a_node_equals_a_hook_that_puts_its_corrupt_value(layout: str):
    model, behaviour = model_of(layout), behaviour_of()
    graph = circuits.graph_of(model)
    for node, hook, head in (("a1.h1", "blocks.1.attn.hook_z", 1), ("m0", "hook_mlp_out", None)):
        hook = hook if head is not None else f"blocks.0.{hook}"
        kept = torch.tensor([not edge.startswith(f"{node}->") for edge in graph.edges])
        cut = edge_ablation.scores(model, behaviour, kept[None])[0]
        with torch.no_grad():
            _, cache = model.run_with_cache(behaviour.corrupt, names_filter=hook)
            there = cache[hook]

            def put(value, point, *, there=there, head=head):
                if head is None:
                    return there
                value = value.clone()
                value[:, :, head] = there[:, :, head]
                return value

            hooked = model.run_with_hooks(behaviour.clean, fwd_hooks=[(hook, put)])
        torch.testing.assert_close(cut, behaviour.score(hooked), atol=1e-5, rtol=0)


def test_cutting_all_edges_into_the_queries_equals_a_hook_on_the_queries():
    model, behaviour = model_of("gpt2"), behaviour_of()
    graph = circuits.graph_of(model)
    for letter in "qkv":
        kept = torch.tensor([not edge.endswith(f"->a2.h3<{letter}>") for edge in graph.edges])
        cut = edge_ablation.scores(model, behaviour, kept[None])[0]
        hook = f"blocks.2.attn.hook_{letter}"
        with torch.no_grad():
            there = model.run_with_cache(behaviour.corrupt, names_filter=hook)[1][hook]

            def put(value, point, *, there=there):
                value = value.clone()
                value[:, :, 3] = there[:, :, 3]
                return value

            hooked = model.run_with_hooks(behaviour.clean, fwd_hooks=[(hook, put)])
        torch.testing.assert_close(cut, behaviour.score(hooked), atol=1e-5, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_edge_equals_the_two_passes_of_path_patching(layout: str):
    """`a0.h1->m1`: the MLP reads a residual in which the head's output alone is corrupt."""
    model, behaviour = model_of(layout), behaviour_of()
    graph = circuits.graph_of(model)
    cut = edge_ablation.scores(model, behaviour, ~graph.holding(["a0.h1->m1"])[None])[0]
    with torch.no_grad():
        z = "blocks.0.attn.hook_z"
        change = (
            model.run_with_cache(behaviour.corrupt, names_filter=z)[1][z]
            - model.run_with_cache(behaviour.clean, names_filter=z)[1][z]
        )[:, :, 1] @ model.W_O[0, 1]
        block = model.blocks[1]

        def reread(value, point):
            return block.mlp(block.ln2(seen["read"] + change))

        seen: dict = {}
        read = "hook_resid_pre" if block.parallel else "hook_resid_mid"
        hooks = [
            (f"blocks.1.{read}", lambda value, point: seen.update(read=value)),
            ("blocks.1.hook_mlp_out", reread),
        ]
        patched = model.run_with_hooks(behaviour.clean, fwd_hooks=hooks)
    torch.testing.assert_close(cut, behaviour.score(patched), atol=1e-5, rtol=0)


def test_a_circuit_scores_the_same_alone_in_company_and_in_little_memory():
    model, behaviour = model_of("gpt2"), behaviour_of()
    graph = circuits.graph_of(model)
    kept = torch.rand(9, graph.n_edges, generator=torch.Generator().manual_seed(3)) < 0.7
    together = edge_ablation.scores(model, behaviour, kept)
    alone = torch.cat([edge_ablation.scores(model, behaviour, one[None]) for one in kept])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    scant = edge_ablation.scores(model, behaviour, kept, memory=300_000)
    torch.testing.assert_close(together, scant, atol=1e-5, rtol=0)
    with pytest.raises(BudgetError, match="one circuit on one prompt of 7 tokens takes"):
        edge_ablation.scores(model, behaviour, kept, memory=10_000)


def test_another_metric_reads_the_same_run():
    model, behaviour = model_of("gpt2"), behaviour_of()
    graph = circuits.graph_of(model)
    kept = torch.ones(1, graph.n_edges).bool()
    found = edge_ablation.scores(model, behaviour, kept, metric=metrics.probability)[0]
    with torch.no_grad():
        chances = model(behaviour.clean)[:, -1].softmax(dim=-1)
    expected = chances[torch.arange(5), behaviour.answer]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    named = edge_ablation.scores(model, behaviour, kept, metric="probability")[0]
    assert named.equal(found)


def test_edges_on_no_path_are_pruned_and_change_nothing():
    model, behaviour = model_of("gpt2"), behaviour_of()
    graph = circuits.graph_of(model)
    named = ["input->m0", "m0->m1", "m1->logits", "a0.h0->m1", "m0->a1.h0<q>", "input->a2.h0<v>"]
    kept = graph.holding(named)
    pruned = graph.pruned(kept)
    assert pruned.equal(graph.holding(named[:3]))
    before, after = edge_ablation.scores(model, behaviour, torch.stack([kept, pruned]))
    torch.testing.assert_close(before, after, atol=1e-5, rtol=0)


def test_a_chain_that_begins_or_ends_nowhere_is_pruned_to_its_last_edge():
    graph = Graph(3, 2, 8)
    for chain in (
        ["a0.h0->m0", "m0->m1", "m1->logits"],  # nothing goes into a0.h0
        ["input->m0", "m0->m1", "m1->a2.h1<k>"],  # nothing reads a2.h1
    ):
        assert not graph.pruned(graph.holding(chain)).any()


def test_pruning_a_random_circuit_never_changes_its_score():
    model, behaviour = model_of("llama, shared keys"), behaviour_of()
    graph = circuits.graph_of(model)
    kept = torch.rand(20, graph.n_edges, generator=torch.Generator().manual_seed(4)) < 0.08
    pruned = torch.stack([graph.pruned(one) for one in kept])
    assert pruned.sum() < kept.sum()
    before, after = (edge_ablation.scores(model, behaviour, both) for both in (kept, pruned))
    torch.testing.assert_close(before, after, atol=1e-5, rtol=0)


def test_no_gradient_mode_and_no_hook_is_left_behind():
    model, behaviour = model_of("gpt2"), behaviour_of()
    edge_ablation.scores(model, behaviour, torch.ones(1, circuits.graph_of(model).n_edges).bool())
    assert torch.is_grad_enabled()
    assert not any(point.hooked for point in model.hook_dict.values())


# What is refused


def test_a_post_norm_decoder_has_no_edges():
    model = init_gpt(replace(LAYOUTS["gpt2"], norm_placement="post"), seed=0)
    with pytest.raises(ModelError, match=r"no node reads a plain sum .* \(post-norm\)"):
        circuits.graph_of(model)


def test_a_model_that_looks_ahead_has_no_edges():
    model = init_gpt(replace(LAYOUTS["gpt2"], causal=False), seed=0)
    with pytest.raises(ModelError, match="causal=False"):
        circuits.graph_of(model)


def test_a_model_that_carries_hooks_is_refused():
    model = model_of("gpt2")
    model.add_hook("blocks.1.hook_mlp_out", lambda value, point: None)
    with pytest.raises(ModelError, match=r"a hook at blocks\.1\.hook_mlp_out"):
        circuits.graph_of(model)


def test_an_edge_that_does_not_exist_is_named_with_its_neighbours():
    with pytest.raises(CircuitError, match=r"a0\.h0->a1\.h0<q>"):
        Graph(2, 2, 8).holding(["a0.h0->a1.h0"])
