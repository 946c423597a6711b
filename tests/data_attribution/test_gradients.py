"""Projected gradients are what autograd would have formed, whatever they are batched with."""


import numpy as np
import pytest
import torch
from torch import Tensor

from data_attribution import questions
from data_attribution.gradients import collecting, projecting, selecting
from data_attribution.gradients.selecting import Site
from interp.behaviours import Behaviour
from train.model import GPT, GPTConfig, init
from train.token_store import TokenStore


SIZES = {"n_layers": 2, "n_heads": 4, "d_model": 24, "d_mlp": 40, "n_ctx": 8, "init_std": 0.3}
ARCHITECTURES = {
    "gpt2": {},
    "llama": {
        "position": "rope", "norm": "rmsnorm", "mlp": "swiglu", "bias": False, "tie": False,
        "n_key_value_heads": 2, "vocab_multiple": 16,
    },
    "post-norm": {"position": "sinusoidal", "norm_placement": "post", "mlp": "relu"},
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
    model = init(cfg, 0).eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():  # biases and gains that are not all alike
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return model


def oracle(gradients: dict[str, Tensor], site: Site, rank: int, seed: int = 0) -> Tensor:
    """A site's block, from explicit weight gradients."""
    tables = site.matrix in selecting.TABLES
    whole = gradients[site.matrix if tables else f"blocks.{site.layer}.{PLACES[site.matrix]}"]
    if site.matrix in ("embed", "pos_embed"):
        whole = whole.transpose(1, 2)
    columns = [*range(*site.columns), *[whole.shape[2] - 1][: site.bias]]
    part = whole[:, slice(*site.rows)][:, :, columns]
    sides = []
    for side, width in (("out", site.height), ("in", site.width)):
        kept = torch.eye(width)
        sides.append(
            kept if width <= rank else projecting.signs(seed, site.name, side, rank, width)
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
}


@pytest.mark.parametrize("rank", [3, 1000])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_documents_gradient_is_what_autograd_forms(store, explicit_gradients, name, rank):
    model, documents = made(store, name), np.array([3, 50, 7, 101, 20])
    expected = explicit_gradients.of_documents(model, texts(store, documents), store.eot)
    for within in EVERYTHING[name]:
        selection = selecting.select(model.cfg, within)
        found = collecting.of_documents(model, store, documents, selection, rank=rank)
        assert found.sites == tuple(site.name for site in selection.sites)
        assert found.rows.tolist() == documents.tolist()
        for site in selection.sites:
            assert difference(found.of(site.name), oracle(expected, site, rank)) < 1e-4, site


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_prompts_gradient_is_what_autograd_forms(store, explicit_gradients, name):
    model = made(store, name)
    question = asked(store)
    expected = explicit_gradients.of_question(model, question)
    selection = selecting.select(model.cfg)
    found = collecting.of_question(model, question, selection, rank=4, batch_tokens=10)
    for site in selection.sites:
        if found.of(site.name).any():  # a bias of keys moves no pattern
            assert difference(found.of(site.name), oracle(expected, site, 4)) < 1e-4, site


def asked(store: TokenStore) -> questions.Question:
    draw = torch.Generator().manual_seed(0)
    prompts = torch.randint(1, store.vocab_size, (6, 5), generator=draw)
    answers = torch.arange(6) + 1
    behaviour = Behaviour("made", prompts, prompts.flip(0), answers, answers + 7)
    return questions.of_behaviour(behaviour)
