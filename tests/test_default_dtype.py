"""The default type of torch is the caller's own: it changes no number and no saved file."""

import ast
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from data_attribution import attribution
from interp import (
    attribution_patching,
    behaviours,
    causal_abstraction,
    circuits,
    heads,
    lenses,
    models,
    patching,
    probing,
    steering,
)
from tests.worlds.stores import indexed_copy
from train import runs, storage, trainer
from train.model import GPTConfig, init_gpt


ROOT = Path(__file__).parents[1]
# Calls of torch that make a float of the default type, if no other one is named.
MAKERS = ("zeros", "ones", "empty", "rand", "randn", "eye", "linspace", "logspace", "normal")


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("package", ["train", "interp", "data_attribution"])
def test_every_tensor_names_its_type(package: str):
    without = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value) == "torch"
        and node.func.attr in MAKERS
        and not any(keyword.arg in ("dtype", None) for keyword in node.keywords)
    ]
    assert without == []


def _numbers(result: Any) -> str:
    """The numbers of a result; its provenance names the time of its making."""
    content = result if isinstance(result, dict) else result.to_dict()
    return storage.canonical_json({key: content[key] for key in content if key != "provenance"})


def _steered(run: Any, model: Any, ioi: Any) -> Any:
    vector = steering.difference(model, ioi.clean, ioi.corrupt, place="L1.resid_pre")
    others = behaviours.load("capital", run, n_prompts=16)
    return steering.curve(model, vector, others, coefficients=(0.0, 1.0), n_random=2)


ANALYSES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "patching": lambda run, model, ioi: patching.heads(model, ioi),
    "patching of the stream": lambda run, model, ioi: patching.residual(model, ioi),
    "causal tracing": lambda run, model, ioi: patching.causal_trace(model, ioi, seed=0),
    "ablation": lambda run, model, ioi: patching.ablate(model, ioi, ["L0H1"]),
    "attribution patching": lambda run, model, ioi: attribution_patching.attribution(model, ioi),
    "AtP*": lambda run, model, ioi: attribution_patching.atp_star(model, ioi),
    "circuits": lambda run, model, ioi: circuits.find(model, ioi, n_edges=20),
    "exact circuits": lambda run, model, ioi: circuits.find(
        model, ioi, n_edges=20, method="exact", checked=False
    ),
    "logit lens": lambda run, model, ioi: lenses.logit(model, ioi),
    "probes": lambda run, model, ioi: probing.linear(
        model, probing.load_task("word-class", run, n_cases=60)
    ),
    "interchange": lambda run, model, ioi: causal_abstraction.interchange(
        model, causal_abstraction.swaps(ioi), ["L0H1"]
    ),
    "DAS": lambda run, model, ioi: causal_abstraction.align(
        model,
        *map(causal_abstraction.swaps, causal_abstraction.halves(ioi)),
        place="L1.resid_pre",
        rank=1,
        steps=3,
    ),
    "heads": lambda run, model, ioi: heads.detector_scores(
        model, heads.repeated_tokens(run), "induction"
    ),
    "steering": _steered,
}


@pytest.mark.integration
@pytest.mark.parametrize("name", ANALYSES)
def test_an_analysis_gives_the_same_numbers(name: str, released_run):
    def analysed() -> str:
        model = models.load(released_run)
        ioi = behaviours.load("ioi", released_run, n_prompts=16)
        return _numbers(ANALYSES[name](released_run, model, ioi))

    expected = analysed()
    with _default(torch.float64):
        assert analysed() == expected


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["cosine", "adam", "curvature"])
def test_gradient_attribution_gives_the_same_numbers(
    kind: str, lookup_run, lookup_behaviour, tmp_path
):
    run = runs.open(lookup_run.path, store=indexed_copy(lookup_run.store, tmp_path / "store"))
    methods = [attribution.Gradient(kind=kind, within=["L0.mlp"])]
    target = behaviours.load(str(lookup_behaviour), run)

    def attributed() -> str:
        return _numbers(attribution.documents(run, target, methods=methods, limit=5))

    expected = attributed()
    with _default(torch.float64):
        assert attributed() == expected


def test_a_model_is_made_in_fp32():
    cfg = GPTConfig(n_layers=1, n_heads=2, d_model=8, n_ctx=8, d_vocab=9, mlp="swiglu")
    tokens = torch.tensor([[1, 2, 3]])
    expected = init_gpt(cfg, seed=0)(tokens)
    with _default(torch.float64):
        assert torch.equal(init_gpt(cfg, seed=0)(tokens), expected)


@pytest.mark.integration
def test_training_writes_the_same_files(tiny_run, tiny_recipe, one_thread_numerics, tmp_path):
    with _default(torch.float64):
        other = trainer.train(
            tiny_recipe, tiny_run.store, out=tmp_path / "run", numerics=one_thread_numerics
        )
    assert other.id == tiny_run.id
    for path in sorted(tiny_run.path.rglob("*.safetensors")):
        assert (other.path / path.relative_to(tiny_run.path)).read_bytes() == path.read_bytes()
