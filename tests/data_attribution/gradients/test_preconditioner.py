"""A metric on gradients is what dense algebra says it is."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel

from data_attribution import gradients
from data_attribution.errors import EvidenceError
from data_attribution.gradients import preconditioner, projection, similarity
from data_attribution.gradients.features import Features
from data_attribution.queries import query_of_text
from interp import models
from train import runs


BLOCKS = (("a", 0, 4), ("b", 4, 7))


def features(n: int, seed: int = 0, scale: float = 1.0) -> Features:
    values = np.random.default_rng(seed).normal(size=(n, 7)) * scale
    return Features(np.arange(n), values.astype(np.float32), BLOCKS)


@pytest.mark.parametrize("damping", [0.01, 0.1, 10.0])
def test_products_under_curvature_are_those_with_the_damped_inverse_of_every_block(damping):
    sample, asked, given_ = features(50), features(3, 1), features(5, 2)
    metric = preconditioner.curvature(sample, damping=damping)
    found = similarity.products(metric.applied(asked), metric.applied(given_))
    expected = np.zeros((5, 3))
    for start, stop in ((0, 4), (4, 7)):
        part = sample.values[:, start:stop].astype(np.float64)
        moment = part.T @ part / 50
        moment += damping * np.trace(moment) / len(moment) * np.eye(len(moment))
        ours, theirs = (one.values[:, start:stop] for one in (given_, asked))
        expected -= ours @ np.linalg.inv(moment) @ theirs.T
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_much_damping_leaves_the_order_of_plain_products():
    sample, asked, given_ = features(50), features(1, 1), features(20, 2)
    # Both blocks alike, so that they keep their weight against each other.
    sample.values[:] /= np.sqrt((sample.values**2).mean())
    metric = preconditioner.curvature(sample, damping=1e6)
    plain = similarity.products(asked, given_)[:, 0]
    damped = similarity.products(metric.applied(asked), metric.applied(given_))[:, 0]
    assert np.corrcoef(plain, damped)[0, 1] > 0.99


def test_curvature_takes_away_what_all_documents_share():
    """Every document pulls along one direction; what is left apart decides."""
    sample = features(200, scale=0.1)
    sample.values[:, 0] += 10
    asked, given_ = features(1, 1), features(2, 2)
    asked.values[:], given_.values[:] = 0, 0
    asked.values[0, :2] = 10, -1
    given_.values[0, :2] = -10, -1  # pulls along with all, and against what is asked
    given_.values[1, :2] = 10, 1
    plain = similarity.products(asked, given_, unit=True)[:, 0]
    metric = preconditioner.curvature(sample, damping=1e-3)
    found = similarity.products(metric.applied(asked), metric.applied(given_), unit=True)[:, 0]
    assert plain[0] > 0 > plain[1]
    assert found[1] > found[0]


def test_curvature_without_damping_of_nothing_or_of_other_sites_is_refused():
    with pytest.raises(EvidenceError, match="leaves the curvature singular"):
        preconditioner.curvature(features(9), damping=0.0)
    with pytest.raises(EvidenceError, match="9 sampled gradients of 'a' are all zero"):
        preconditioner.curvature(features(9, scale=0.0))
    other = replace(features(2), blocks=(("c", 0, 7),))
    with pytest.raises(EvidenceError, match="curvature of 'c' was not estimated"):
        preconditioner.curvature(features(9)).applied(other)


def test_targets_that_the_model_draws_give_the_gauss_newton_matrix_and_those_read_do_not(
    lookup_run,
):
    """240 documents say 12 texts; the oracle is J^T H J of the logits, as autograd has it."""
    model, store = lookup_run.load(0), lookup_run.store
    selection, documents = gradients.select_weights(model.cfg, ["L0H1.v"]), np.arange(240)
    width = model.cfg.d_model + 1

    def moment(seed: int | None) -> np.ndarray:
        found = gradients.document_features(
            model, store, documents, selection, rank=1000, drawn=seed
        ).values.reshape(240, -1, width)[:, :, :-1]
        flat = found.reshape(240, -1).astype(np.float64)
        return flat.T @ flat / 240

    spoken = Counter(store.text(int(one)) for one in documents)
    first = {store.text(int(one)): int(one) for one in documents}
    expected = sum(n * gauss_newton(model, store, first[text]) for text, n in spoken.items()) / 240

    def distance(found: np.ndarray) -> float:
        return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))

    drawn = [moment(seed) for seed in range(8)]
    assert distance(np.mean(drawn, axis=0)) < 0.15
    assert distance(moment(None)) > 0.7
    assert np.array_equal(moment(3), drawn[3])
    assert not np.allclose(drawn[3], drawn[4])


def gauss_newton(model, store, document: int) -> np.ndarray:
    """Of a document's summed loss in the values of head 1, without their biases."""
    start, n_tokens = store.starts[document] - 1, store.lengths[document]
    tokens = torch.tensor(np.asarray(store.tokens[start : start + n_tokens + 1], np.int64))[None]
    name, d_head = "blocks.0.attn.qkv.weight", model.cfg.d_head
    whole = model.get_parameter(name).detach()
    first = 2 * model.cfg.n_heads * d_head + d_head

    def logits(part: torch.Tensor) -> torch.Tensor:
        weight = torch.cat([whole[:first], part, whole[first + d_head :]])
        return torch.func.functional_call(model, {name: weight}, (tokens,))[0]

    part = whole[first : first + d_head]
    with sdpa_kernel(SDPBackend.MATH):
        slope = torch.func.jacrev(logits)(part).flatten(2)  # [pos vocab weight]
    chances = logits(part).detach().softmax(-1)
    middle = torch.diag_embed(chances) - chances[:, :, None] * chances[:, None]
    return torch.einsum("pvi,pvw,pwj->ij", slope, middle, slope).detach().double().numpy()


@pytest.mark.parametrize("batch_tokens", [8, 2048])
def test_what_is_drawn_does_not_hang_on_what_shares_a_batch(lookup_run, batch_tokens):
    selection = gradients.select_weights(lookup_run.config, ["L0.mlp"])

    def of(documents: list[int], tokens: int) -> np.ndarray:
        return gradients.document_features(
            lookup_run.load(), lookup_run.store, documents, selection, drawn=1, batch_tokens=tokens
        ).values

    alone = np.concatenate([of([one], 2048) for one in (3, 70, 9)])
    np.testing.assert_allclose(of([3, 70, 9], batch_tokens), alone, rtol=1e-3, atol=1e-5)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
@settings(max_examples=30)
def test_moments_that_are_an_outer_product_are_taken_to_the_power_exactly(rows, columns, seed):
    draw = np.random.default_rng(seed)
    left, right = draw.uniform(1e-6, 1e-2, rows), draw.uniform(1e-6, 1e-2, columns)
    moments = torch.from_numpy(np.outer(left, right))
    out, inside = preconditioner.factored(moments, 1e-12)
    torch.testing.assert_close(torch.outer(out, inside).double(), moments**-0.25, rtol=1e-5, atol=0)


def test_a_weight_without_moments_is_not_scaled_beyond_what_eps_allows():
    moments = torch.zeros(2, 3)
    moments[0, :2] = 1e-6
    out, inside = preconditioner.factored(moments, 1e-8)
    scale = torch.outer(out, inside)
    assert torch.isfinite(scale).all()
    assert scale.max() <= 1.001 * 1e-8**-0.5


def test_products_under_adam_are_steps_of_the_checkpoints_own_optimizer(
    lookup_run, explicit_gradients
):
    """With moments of rank one (as forged here), <q, d> is the product of q with d / sqrt(v)."""
    model, store = models.load(lookup_run), lookup_run.store
    selection = gradients.select_weights(model.cfg, ["L0.mlp", "L0H1", "unembed", "embed"])
    documents = np.array([3, 30, 200])
    sides = preconditioner.adam(lookup_run, selection)
    plain, scaled = (
        gradients.document_features(model, store, documents, selection, rank=64, sides=one)
        for one in (None, sides)
    )
    state = runs.read_tensors(lookup_run.path, lookup_run.saved[-1], "optimizer.safetensors")
    correction = 1 - lookup_run.recipe.beta2**lookup_run.recipe.steps
    up = torch.cat(
        [
            state[f"blocks.0.mlp.up.{part}.exp_avg_sq"].reshape(128, -1)
            for part in ("weight", "bias")
        ],
        dim=1,
    )
    moments = (up / correction).double()
    ranked_one = torch.outer(moments.mean(1), moments.mean(0)) / moments.mean()
    tokens = [
        store.tokens[one : one + n].tolist()
        for one, n in zip(store.starts[documents], store.lengths[documents], strict=True)
    ]
    explicit = explicit_gradients.of_documents(model, tokens, store.eot)["blocks.0.mlp.up"]
    expected = torch.einsum("aoi,boi->ab", explicit.double() / ranked_one.sqrt(), explicit.double())
    found = sides["L0.mlp.up"]
    scaled_up = explicit.double() * torch.outer(found[0], found[1]).double()
    torch.testing.assert_close(
        torch.einsum("aoi,boi->ab", scaled_up, scaled_up), expected, rtol=1e-3, atol=0
    )
    assert set(sides) == set(plain.sites) == set(scaled.sites)
    drawn = projection.signs(0, "L0.mlp.up", "out", 64, 128).double()  # 17 inputs are kept all
    for collected, whole in ((plain, explicit.double()), (scaled, scaled_up)):
        wanted = torch.einsum("po,doi->dpi", drawn, whole).flatten(1).numpy()
        error = np.linalg.norm(collected.of("L0.mlp.up") - wanted, axis=1)
        assert (error <= 1e-4 * np.linalg.norm(wanted, axis=1)).all()


def test_a_checkpoint_without_moments_names_those_that_have_them(lookup_run):
    selection = gradients.select_weights(lookup_run.config)
    with pytest.raises(EvidenceError, match=r"step 0 holds no second moments.*40, 80, 120, 160 do"):
        preconditioner.adam(lookup_run, selection, step=0)


def test_a_run_of_muon_is_refused_by_name_before_anything_is_read(muon_run, tmp_path, monkeypatch):
    monkeypatch.setattr(type(muon_run), "load", None)
    some, out = np.array([1, 2]), tmp_path / "gradients"
    for call in (
        lambda: gradients.collect(muon_run, some),
        lambda: gradients.collect(muon_run, some, how=gradients.GradientOptions("adam-cosine")),
        lambda: gradients.build_gradient_store(muon_run, out=out, documents=some),
        lambda: preconditioner.adam(muon_run, gradients.select_weights(muon_run.config)),
    ):
        with pytest.raises(EvidenceError, match=r"trained with muon, .* compare by 'curv") as error:
            call()
        assert "\n" not in str(error.value)
    assert not out.exists()


@pytest.mark.parametrize("kind", ["dot", "cosine", "curvature"])
def test_kinds_without_moments_rank_the_documents_of_a_run_of_muon(muon_run, kind):
    collected = gradients.collect(muon_run, np.array([1, 2]), how=gradients.GradientOptions(kind))
    question = query_of_text("w1 w2 w3", muon_run.store.tokenizer, n_ctx=muon_run.config.n_ctx)
    assert np.isfinite(collected.products(question)[0]).all()
