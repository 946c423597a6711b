"""Influence by replay says what a change of a document's weight in training does."""

import importlib.util
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from data_attribution import attribution, metagradients, token_index
from data_attribution.errors import EvidenceError
from data_attribution.metagradients import ReplayOptions, backward_step, optimizer_vectors
from data_attribution.metagradients.backward_step import Update
from data_attribution.metagradients.optimizer_vectors import Vectors
from interp import behaviours
from train import runs
from train.data import Batch
from train.errors import TrainError
from train.model import GPTConfig, init_gpt, preset
from train.recipes import Recipe
from train.runs import Run
from train.trainer import lr_at, weight_decay_at


pytestmark = pytest.mark.integration
RECIPE = Recipe(
    name="weighted", batch_size=4, steps=7, lr=1e-2, min_lr=1e-3, warmup_steps=2, eps=1e-4,
    model=GPTConfig(n_layers=2, n_heads=2, d_model=8, n_ctx=6, d_vocab=11, init_std=0.3),
)  # fmt: skip
SIZES = {
    "d_model": 16, "d_head": 4, "d_mlp": 20, "n_ctx": 6, "d_vocab": 11, "init_std": 0.3,
}  # fmt: skip
ARCHITECTURES = {
    "gpt2": RECIPE.model,
    "llama": replace(
        RECIPE.model, norm="rmsnorm", mlp="swiglu", position="rope", tie=False, bias=False,
        n_heads=4, d_model=16, n_key_value_heads=2, d_mlp=20,
    ),
    "modern": replace(preset("modern-nano"), **SIZES),
    "slowrun": replace(preset("slowrun-nano"), **SIZES),
    "strawberry": replace(preset("strawberry-nano"), **SIZES, retention_chunk=2),
}  # fmt: skip


def drawn(recipe: Recipe) -> list[Batch]:
    """A batch a step of random tokens, with a target or two that carry no loss."""
    draw = torch.Generator().manual_seed(3)
    made = []
    for step in range(recipe.steps):
        tokens = torch.randint(recipe.model.d_vocab, (4, recipe.model.n_ctx + 1), generator=draw)
        targets = tokens[:, 1:].clone()
        targets[step % 4, 2] = -100
        made.append(
            Batch(step, tokens[:, :-1], targets, torch.arange(len(tokens)), divisor=23, digest="")
        )
    return made


def answer(model, tokens):
    return torch.log_softmax(model(tokens)[:, -1], dim=-1)[:, 3].mean()


class Weighted:
    """Training in fp64 where every target of every step has a weight; torch's own AdamW."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.batches = recipe, drawn(recipe)

    def run(self, weights: torch.Tensor):
        """The states, the norms, and the model at the end."""
        recipe, model = self.recipe, init_gpt(self.recipe.model, 5).double()
        groups = [
            {"params": [one for one in model.parameters() if one.ndim >= 2], "weight_decay": 0.1},
            {"params": [one for one in model.parameters() if one.ndim < 2], "weight_decay": 0.0},
        ]
        betas = (recipe.beta1, recipe.beta2)
        adamw = torch.optim.AdamW(groups, betas=betas, eps=recipe.eps, foreach=False)
        kept, norms = [taken(model, adamw)], []
        for step, batch in enumerate(self.batches):
            losses = torch.nn.functional.cross_entropy(
                model(batch.inputs).transpose(1, 2), batch.targets, reduction="none"
            )
            ((losses * weights[step]).sum() / batch.divisor).backward()
            norms.append(
                torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip).item()
            )
            for group in adamw.param_groups:
                group["lr"] = lr_at(recipe, step)
            adamw.param_groups[0]["weight_decay"] = weight_decay_at(recipe, step)
            adamw.step()
            adamw.zero_grad()
            kept.append(taken(model, adamw))
        return kept, norms, model


def taken(model, adamw) -> Vectors:
    parameters = list(model.parameters())
    moments = (
        optimizer_vectors.flat(
            [adamw.state.get(one, {}).get(key, torch.zeros_like(one)) for one in parameters]
        )
        for key in ("exp_avg", "exp_avg_sq")
    )
    return Vectors(optimizer_vectors.flat(parameters).clone(), *moments)


@pytest.mark.parametrize("clip", [0.4, 100.0])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_targets_score_is_the_slope_of_the_answer_in_its_weight(architecture, clip):
    recipe = replace(
        RECIPE, model=ARCHITECTURES[architecture], grad_clip=clip, weight_decay_end=0.0,
        weight_decay_hold=0.1,
    )  # fmt: skip
    training = Weighted(recipe)
    ones = torch.ones(recipe.steps, 4, recipe.model.n_ctx, dtype=torch.float64)
    kept, norms, model = training.run(ones)
    assert (min(norms) > clip) if clip < 1 else (max(norms) < clip)
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
    gradient = torch.autograd.grad(answer(model, tokens), list(model.parameters()))
    at_end = optimizer_vectors.flat(gradient)[None]
    adjoint = Vectors(at_end, torch.zeros_like(at_end), torch.zeros_like(at_end))
    scores = torch.zeros_like(ones)
    for step in range(recipe.steps - 1, -1, -1):
        for one, weight in zip(
            model.parameters(), optimizer_vectors.split(kept[step].weights, model), strict=True
        ):
            one.data.copy_(weight)
        update = Update(
            step, kept[step], kept[step + 1], norms[step], optimizer_vectors.decayed(model)
        )
        adjoint, found = backward_step.backwards(
            model, training.batches[step], adjoint, update, recipe, windows=3
        )
        scores[step] = found[0]
    # Other architectures bend more, so the two ends lie closer together, which costs digits.
    step, rounding = (1e-7, 1e-6) if architecture in ("gpt2", "llama") else (1e-8, 3e-5)
    draw = torch.Generator().manual_seed(0)
    for direction in torch.randn((4, *ones.shape), generator=draw, dtype=torch.float64):
        up, down = (answer(training.run(ones + h * direction)[2], tokens) for h in (step, -step))
        slope = ((up - down) / (2 * step)).item()
        assert (scores * direction).sum().item() == pytest.approx(slope, rel=rounding)


@pytest.fixture(scope="module")
def request_of(lookup_run, lookup_behaviour, tmp_path_factory):
    store = tmp_path_factory.mktemp("indexed") / "store"
    shutil.copytree(lookup_run.store.path, store)
    run = runs.open(lookup_run.path, store=store)
    token_index.build(run.store)
    asked = behaviours.read(lookup_behaviour)
    return lambda **options: attribution.make_request(run, asked, **options)


def test_a_window_is_replayed_from_the_checkpoint_before_it(request_of, tmp_path):
    (found,) = metagradients.rank_by_replay(
        [request_of()], window=ReplayOptions(5, scratch=tmp_path)
    )
    assert found.details["steps"] == [155, 159]
    assert found.details["from checkpoint"] == 120
    assert "asked for" not in found.details
    assert found.signed
    with pytest.raises(FileNotFoundError, match="nowhere"):
        metagradients.rank_by_replay(
            [request_of()], window=ReplayOptions(5, scratch=tmp_path / "nowhere")
        )
    with pytest.raises(EvidenceError, match="1 step or more, not 0"):
        ReplayOptions(0)


def test_a_window_begins_no_earlier_than_the_first_checkpoint_to_go_on_from(
    request_of, monkeypatch
):
    """The run kept optimizers at 0, 40, 80, 120 and 160; only from 120 on are they left here."""
    every = Run.saved.fget
    monkeypatch.setattr(
        Run, "saved", property(lambda run: [one for one in every(run) if one.step >= 120])
    )
    (found,) = metagradients.rank_by_replay([request_of()], window=ReplayOptions(100))
    assert found.details["steps"] == [120, 159]
    assert found.details["from checkpoint"] == 120
    assert found.details["asked for"] == 100
    monkeypatch.setattr(
        Run, "saved", property(lambda run: [one for one in every(run) if one.step >= 160])
    )
    with pytest.raises(TrainError, match="keeps no optimizer at or before step 155"):
        metagradients.rank_by_replay([request_of()], window=ReplayOptions(5))


@pytest.fixture(scope="module")
def measured() -> ModuleType:
    """`benchmarks/replay_attribution.py`, whose small runs these are."""
    path = Path(__file__).parents[3] / "benchmarks" / "replay_attribution.py"
    sys.path.insert(0, str(path.parent))
    try:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # A dataclass looks its module up.
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


@pytest.mark.slow
def test_scores_foretell_what_training_without_a_twentieth_of_the_documents_gives(measured):
    """24 subsets, 4 questions, 2 runs; the benchmark asks the same of 40 subsets and 3 runs."""
    found = np.array([measured.foretold(seed, 24) for seed in (0, 1)])
    assert found.shape == (2, 4)
    assert found.mean() >= 0.95
    assert found.min() > 0.8
