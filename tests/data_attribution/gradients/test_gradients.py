"""Projected gradients are what autograd would have formed, whatever they are batched with."""

import hashlib

import numpy as np
import pytest
import torch
from torch import Tensor

from data_attribution import gradients, queries
from data_attribution.errors import EvidenceError
from data_attribution.gradients import (
    features,
    losses,
    projection,
    select_weights,
    weight_selection,
)
from data_attribution.gradients.weight_selection import Site
from interp.behaviours import Behaviour
from interp.metrics import Metric
from train.data import IGNORED, DocumentRemoval, TokenStore
from train.model import GPT, GPTConfig, init_gpt


SIZES = {"n_layers": 2, "n_heads": 4, "d_model": 24, "d_mlp": 40, "n_ctx": 8, "init_std": 0.3}
ARCHITECTURES = {
    "gpt2": {},
    "llama": {
        "position": "rope", "norm": "rmsnorm", "mlp": "swiglu", "bias": False, "tie": False,
        "n_key_value_heads": 2, "vocab_multiple": 16,
    },
    "post-norm": {"position": "sinusoidal", "norm_placement": "post", "mlp": "relu"},
    "modern": {
        "position": "rope", "norm": "rmsnorm", "mlp": "swiglu", "bias": False, "qk_norm": True,
        "sinks": "learned", "n_sinks": 2,
    },
    "u-net": {
        "exclusive": "learned", "head_gate": True, "value_residual": True, "embed_mix": True,
        "unet": True, "embed_norm": True,
    },
    "pythia": {
        "position": "rope", "rotary_channels": 2, "mlp": "gelu", "tie": False,
        "parallel_residual": True,
    },
    "biases of queries, keys and values in a window": {
        "position": "rope", "norm": "rmsnorm", "mlp": "swiglu", "bias": False, "qkv_bias": True,
        "window": 3,
    },
    "loop": {"n_layers": 4, "loop_first": 1, "loop_layers": 1, "loop_passes": 2},
}  # fmt: skip
PLACES = {
    "qkv": "attn.qkv", "o": "attn.out", "up": "mlp.up", "gate": "mlp.gate", "down": "mlp.down",
}  # fmt: skip


@pytest.fixture(scope="module")
def store(tiny_store) -> TokenStore:
    """Documents of 2 to 40 words: up to five windows of eight."""
    return tiny_store


def made(store: TokenStore, name: str = "gpt2", **others: object) -> GPT:
    cfg = GPTConfig(**{**SIZES, **ARCHITECTURES[name], **others}, d_vocab=store.vocab_size)
    model = init_gpt(cfg, 0).eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():  # biases and gains that are not all alike
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return model


def oracle(gradients: dict[str, Tensor], site: Site, rank: int, seed: int = 0) -> Tensor:
    """A site's block, from explicit weight gradients."""
    tables = site.matrix in weight_selection.TABLES
    whole = gradients[site.matrix if tables else f"blocks.{site.layer}.{PLACES[site.matrix]}"]
    if site.matrix in ("embed", "pos_embed"):
        whole = whole.transpose(1, 2)
    columns = [*range(*site.columns), *[whole.shape[2] - 1][: site.bias]]
    part = whole[:, slice(*site.rows)][:, :, columns]
    sides = []
    for side, width in (("out", site.height), ("in", site.width)):
        kept = torch.eye(width)
        sides.append(
            kept if width <= rank else projection.signs(seed, site.name, side, rank, width)
        )
    return torch.einsum("po,coi,qi->cpq", sides[0], part, sides[1]).flatten(1)


def difference(found: np.ndarray, wanted: Tensor) -> float:
    """Largest error of a row, as a share of that row's norm."""
    error = np.linalg.norm(found - wanted.numpy(), axis=1)
    return float((error / np.linalg.norm(wanted.numpy(), axis=1)).max())


def texts(store: TokenStore, documents: np.ndarray) -> list[list[int]]:
    found = []
    for document in documents:
        start = int(store.starts[document])
        found.append(store.tokens[start : start + int(store.lengths[document])].tolist())
    return found


EVERYTHING = {
    "gpt2": [None, ("L1H2", "L0H1.q", "L0H3.o", "L1N5"), ("L1.mlp", "unembed"), ("pos_embed",)],
    "llama": [None, ("L1H3", "L0H1.k", "L0H3.pattern", "L1N5"), ("L1.mlp.gate", "embed")],
    "post-norm": [None, ("L1.attn",), ("unembed",)],
    "modern": [None, ("L0H1",)],
    "u-net": [None, ("L0.mlp",)],
    "pythia": [None, ("L1H2", "L1.mlp", "unembed")],
    "biases of queries, keys and values in a window": [None, ("L1H3", "L0H1.k", "L1.attn")],
    "loop": [None, ("L1.mlp", "L3H1")],
}


@pytest.mark.parametrize("rank", [3, 1000])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_documents_gradient_is_what_autograd_forms(store, explicit_gradients, name, rank):
    model, documents = made(store, name), np.array([3, 50, 7, 101, 20])
    expected = explicit_gradients.of_documents(model, texts(store, documents), store.eot)
    for within in EVERYTHING[name]:
        selection = select_weights(model.cfg, within)
        found = gradients.document_features(model, store, documents, selection, rank=rank)
        assert found.sites == tuple(site.name for site in selection.sites)
        assert found.rows.tolist() == documents.tolist()
        for site in selection.sites:
            assert difference(found.of(site.name), oracle(expected, site, rank)) < 1e-4, site


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_prompts_gradient_is_what_autograd_forms(store, explicit_gradients, name):
    model = made(store, name)
    question = asked(store)
    expected = explicit_gradients.of_question(model, question)
    selection = select_weights(model.cfg)
    found = gradients.query_features(model, question, selection, rank=4, batch_tokens=10)
    for site in selection.sites:
        wanted = oracle(expected, site, 4)
        if wanted.any():
            assert difference(found.of(site.name), wanted) < 1e-4, site
        else:
            assert not found.of(site.name).any(), site


def asked(store: TokenStore) -> queries.Query:
    draw = torch.Generator().manual_seed(0)
    prompts = torch.randint(1, store.vocab_size, (6, 5), generator=draw)
    answers = torch.arange(6) + 1
    behaviour = Behaviour("made", prompts, prompts.flip(0), answers, answers + 7)
    return queries.query_of_behaviour(behaviour)


def test_what_shares_a_batch_changes_nothing(store):
    model, documents = made(store), np.arange(25)
    selection = select_weights(model.cfg)
    alone = [
        gradients.document_features(model, store, [int(document)], selection, rank=4).values
        for document in documents
    ]
    wanted = torch.from_numpy(np.concatenate(alone))
    order = np.random.default_rng(0).permutation(documents)
    for batch_tokens in (50, 10_000):
        found = gradients.document_features(
            model, store, order, selection, rank=4, batch_tokens=batch_tokens
        )
        assert difference(found.values, wanted[order]) < 1e-5


def test_what_is_removed_is_what_has_a_gradient(store):
    """The loss whose gradient is taken is the loss that `Removal` takes away."""
    document = 11
    start, length = int(store.starts[document]), int(store.lengths[document])
    ((_, first, n_targets),) = features.document_batches(store, np.array([document]), 64, 1000)
    _, targets = features.inputs_and_targets(store, first, n_targets)
    removed = DocumentRemoval((document,), "loss").covers(store, np.arange(store.n_tokens)[None])[0]
    assert targets.tolist() == [store.tokens[removed].tolist()]
    assert np.flatnonzero(removed).tolist() == list(range(start, start + length + 1))


def test_padding_carries_no_loss(store, monkeypatch):
    """End-of-text behind end-of-text, as in a packed row, teaches nothing."""
    inputs, targets = features.inputs_and_targets(store, np.array([0]), np.array([3]))
    assert inputs[0, 0] == store.eot
    assert (targets != IGNORED).all()
    behind = int(store.starts[5]) - 1  # an end-of-text; two of them stand where a row is filled up
    tokens = np.array(store.tokens)
    tokens[behind + 1] = store.eot
    with monkeypatch.context() as patch:
        patch.setitem(store.__dict__, "tokens", tokens)
        _, targets = features.inputs_and_targets(store, np.array([behind]), np.array([2]))
    assert targets.tolist() == [[IGNORED, int(tokens[behind + 2])]]


def test_the_loss_and_its_log_odds_follow_their_formulas():
    logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0)) * 4
    targets = torch.tensor([[1, 2, IGNORED], [0, 6, 3]])
    for log_odds in (None, 1e-9, 0.2):
        ours, theirs = (logits.double().requires_grad_() for _ in range(2))
        (slope,) = torch.autograd.grad(losses.summed(ours, targets, log_odds), ours)
        log_p = theirs.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        missing = (1 - log_p.exp()).detach().clamp(min=log_odds or 0)
        weighted = -log_p if log_odds is None else -log_p / missing
        total = weighted[targets != IGNORED].sum()
        torch.testing.assert_close(slope, torch.autograd.grad(total, theirs)[0])
    ours, theirs = (logits.double().requires_grad_() for _ in range(2))
    (slope,) = torch.autograd.grad(losses.summed(ours, targets, 1e-9), ours)
    p = theirs.softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    against = -(p / (1 - p)).log()[targets != IGNORED].sum()
    torch.testing.assert_close(slope, torch.autograd.grad(against, theirs)[0])


def test_sides_multiply_both_factors_before_the_projection(store, explicit_gradients):
    model, documents = made(store), np.array([3, 50])
    expected = explicit_gradients.of_documents(model, texts(store, documents), store.eot)
    selection = select_weights(model.cfg, ("L1.mlp.up", "embed"))
    draw = torch.Generator().manual_seed(0)
    for site in selection.sites:
        out = torch.rand(site.height, generator=draw)
        inside = torch.randn(site.width, site.width, generator=draw)
        found = gradients.document_features(
            model, store, documents, selection, rank=5, sides={site.name: (out, inside)}
        )
        whole = expected["blocks.1.mlp.up"] if site.matrix == "up" else expected["embed"]
        whole = whole.transpose(1, 2) if site.matrix == "embed" else whole
        p, q = (
            projection.signs(0, site.name, side, 5, width)
            for side, width in (("out", site.height), ("in", site.width))
        )
        wanted = torch.einsum("po,coi,qi->cpq", p * out, whole, q @ inside).flatten(1)
        assert difference(found.of(site.name), wanted) < 1e-4
    with pytest.raises(EvidenceError, match="must be"):
        gradients.document_features(
            model, store, documents, selection, sides={"embed": (torch.ones(3), torch.ones(3))}
        )


def test_the_pass_back_stops_at_the_lowest_site_and_forms_no_weight_gradient(store):
    model = made(store)
    seen = []
    with model.hooks(bwd_hooks=[("blocks.1.hook_resid_mid", lambda *_: seen.append("above"))]):
        selection = select_weights(model.cfg, ("L1H0.o",))
        gradients.document_features(model, store, [3], selection, rank=2)
    below = ("blocks.1.attn.hook_z", "hook_embed")
    for name in below:
        found = []
        model.add_hook(name, lambda value, _, found=found: found.append(value.requires_grad))
        gradients.document_features(model, store, [3], selection, rank=2)
        assert found == [False], name
        model.reset_hooks()
    assert seen
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_is_left_as_it_was_found(store):
    model = made(store)
    model.embed.weight.requires_grad_(False)
    before = [one.requires_grad for one in model.parameters()]

    def interrupted(what: str, done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    selection = select_weights(model.cfg)
    with pytest.raises(KeyboardInterrupt):
        gradients.document_features(model, store, [3], selection, progress=interrupted)
    assert [one.requires_grad for one in model.parameters()] == before
    assert not any(point.hooked for point in model.hook_dict.values())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_question_read_below_what_was_named_is_refused(store):
    model = made(store)
    pattern = "blocks.0.attn.hook_pattern"
    metric = Metric(
        "looks at the first",
        "share",
        lambda logits, prompt, values: values[pattern][:, 0, -1, 0],
        hooks=(pattern,),
    )
    question = queries.Query(metric.name, asked(store).tokens, metric)
    found = gradients.query_features(model, question, select_weights(model.cfg, ("L0H0", "L1H1")))
    assert found.of("L0H0.q").any()
    assert not found.of("L1H1.q").any()
    with pytest.raises(EvidenceError, match=r"depends on none of L1H1\.q"):
        gradients.query_features(model, question, select_weights(model.cfg, ("L1H1",)))


def test_gradients_are_the_same_inside_inference_mode(store):
    model, question, documents = made(store), asked(store), np.array([3, 50])

    def collected():
        selection = select_weights(model.cfg, ("L0H0", "L1.mlp"))
        return (
            gradients.query_features(model, question, selection).values,
            gradients.document_features(model, store, documents, selection).values,
        )

    outside = collected()
    with torch.inference_mode():
        inside = collected()
    for one, other in zip(outside, inside, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_hangs_on_a_model_is_named_and_not_left_out(store):
    model, question, documents = made(store), asked(store), np.array([3, 50])
    selection = select_weights(model.cfg, ("L0H0",))
    model.blocks[0].mlp.register_forward_hook(lambda _module, _inputs, value: 2 * value)
    with pytest.raises(EvidenceError, match=r"^a torch hook on blocks\.0\.mlp, which"):
        gradients.query_features(model, question, selection)
    with pytest.raises(EvidenceError, match=r"^a torch hook on blocks\.0\.mlp, which"):
        gradients.document_features(model, store, documents, selection)


@pytest.mark.parametrize("row", range(3))
def test_a_step_on_a_document_changes_the_question_by_minus_the_product(store, row):
    """First order: theta - lr dL raises the score by -lr <question, document>."""
    model, question, documents = made(store), asked(store), np.array([3, 50, 7])
    selection = select_weights(model.cfg, ("L1.mlp.down",))
    given = gradients.document_features(model, store, documents, selection, rank=10**6).values[row]
    sought = gradients.query_features(model, question, selection, rank=10**6).values.mean(axis=0)
    before, lr = queries.measure_query(model, question).mean(), 1e-3 / np.linalg.norm(given)
    slope, down = torch.from_numpy(given).view(SIZES["d_model"], -1), model.blocks[1].mlp.down
    with torch.no_grad():
        down.weight -= lr * slope[:, :-1]
        down.bias -= lr * slope[:, -1]
    moved = (queries.measure_query(model, question).mean() - before) / lr
    assert moved == pytest.approx(-given @ sought, rel=0.05, abs=1e-3)


@pytest.mark.parametrize(
    ("within", "says"),
    [
        ((), "no component was named"),
        (("L2H0",), "it has 2 layers"),
        (("L0H4",), "it has 4 heads"),
        (("L0H4.o",), "it has 4 heads"),
        (("L0N40",), "it has 40 neurons"),
        (("L0.resid_pre",), "has no weights"),
        (("L0.mlp.gate",), "no matrix"),
        (("head three",), "names no place"),
    ],
)
def test_a_component_that_is_not_there_is_refused(within, says):
    cfg = GPTConfig(**SIZES, d_vocab=9)
    with pytest.raises(EvidenceError, match=says):
        select_weights(cfg, within)


def test_a_model_without_learned_positions_has_no_table_of_them():
    cfg = GPTConfig(**{**SIZES, **ARCHITECTURES["llama"]}, d_vocab=9)
    assert "pos_embed" not in [site.name for site in select_weights(cfg).sites]
    with pytest.raises(EvidenceError, match="'rope'"):
        select_weights(cfg, ("pos_embed",))


def test_names_stand_for_sites():
    cfg = GPTConfig(**{**SIZES, **ARCHITECTURES["llama"]}, d_vocab=9)

    def names(*within: str) -> list[str]:
        return [site.name for site in select_weights(cfg, within).sites]

    assert names("L1H3") == ["L1H3.q", "L1H1.k", "L1H1.v", "L1H3.o"]  # two queries to a key
    assert names("L1H1.k", "L1H3@4") == names("L1H3")
    assert names("L0H2.pattern") == ["L0H2.q", "L0H1.k"]
    assert names("unembed", "L1.mlp", "embed") == [
        "embed", "L1.mlp.gate", "L1.mlp.up", "L1.mlp.down", "unembed"
    ]  # fmt: skip
    assert names("L0.attn", "L0H2", "L1N3") == [
        "L0.attn.qkv", "L0.attn.o", "L1N3.gate", "L1N3.up", "L1N3.down"
    ]  # fmt: skip
    again = select_weights(cfg)
    assert select_weights(cfg, [site.name for site in again.sites]).sites == again.sites


def test_a_projection_keeps_products_on_average_and_depends_on_nothing_but_its_key():
    drawn = projection.signs(3, "L0H1.q", "in", 8, 40)
    assert (
        drawn[:, :5].mul(8**0.5).sign().tolist()
        == projection.signs(3, "L0H1.q", "in", 8, 5).mul(8**0.5).sign().tolist()
    )
    assert hashlib.sha256((drawn > 0).numpy().tobytes()).hexdigest()[:12] == "242629632df8"
    others = [(4, "L0H1.q", "in"), (3, "L0H1.k", "in"), (3, "L0H1.q", "out")]
    assert not any(torch.equal(drawn, projection.signs(*key, 8, 40)) for key in others)
    a, b = torch.randn(2, 200, generator=torch.Generator().manual_seed(0))
    products = [
        ((p := projection.signs(seed, "x", "in", 16, 200)) @ a) @ (p @ b) for seed in range(300)
    ]
    spread = (a.norm() * b.norm() / 16**0.5) / 300**0.5
    assert abs(torch.stack(products).mean() - a @ b) < 4 * spread


def test_what_has_no_documents_or_no_causal_loss_is_refused(store):
    model = made(store)
    selection = select_weights(model.cfg)
    for documents, says in (([], "no document"), ([store.n_documents], "is not one of the")):
        with pytest.raises(EvidenceError, match=says):
            gradients.document_features(model, store, documents, selection)
    with pytest.raises(EvidenceError, match="rank 0"):
        gradients.document_features(model, store, [1], selection, rank=0)
    with pytest.raises(EvidenceError, match="causal"):
        gradients.document_features(made(store, causal=False), store, [1], selection)


def test_a_question_may_read_what_each_head_adds(store, explicit_gradients):
    """Then the output projection runs by another route, head by head."""
    model, result = made(store), "blocks.1.attn.hook_result"
    metric = Metric(
        "first unit of head 2",
        "units",
        lambda logits, prompt, values: values[result][:, -1, 2, 0],
        hooks=(result,),
    )
    question = queries.Query(metric.name, asked(store).tokens, metric)
    selection = select_weights(model.cfg, ("L1H2.v", "L0.attn", "embed"))
    found = gradients.query_features(model, question, selection, rank=4)
    expected = explicit_gradients.of_question(model, question)
    for site in selection.sites:
        assert difference(found.of(site.name), oracle(expected, site, 4)) < 1e-4, site
