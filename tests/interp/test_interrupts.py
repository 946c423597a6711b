"""Whatever ends a computation early, nothing of it stays: no hook, no mode, no random state.

An interrupt is raised at a random call of torch or by the progress that a sweep reports. What was
finished by then is returned with a warning and is what an undisturbed run computes; before anything
is finished, the interrupt goes on to whoever called. `benchmarks/interrupts.py` stops the same work
by a timer, between any two instructions as Ctrl-C does, and counts what stays behind.
"""

import ast
import gc
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

import interp
from interp import attribution_patching, circuits, patching
from interp.behaviours import Behaviour
from interp.circuits import edge_attribution_patching
from interp.errors import InterpWarning, InterruptedWarning
from interp.metrics import Metric, custom
from interp.patching import Effects, engine
from interp.patching.engine import base_run
from tests.worlds.behaviours import said_by
from train.model import GPT, GPTConfig, init_gpt


pytestmark = pytest.mark.integration
CFG = GPTConfig(n_layers=2, n_heads=2, d_model=16, n_ctx=8, d_vocab=30, init_std=0.3)
Work = Callable[[GPT, Behaviour], Any]


def small_model() -> GPT:
    """Two layers of random weights."""
    return init_gpt(CFG, seed=0).eval()


def random_behaviour(model: GPT) -> Behaviour:
    """Random prompts that differ at two positions; the answers are what the model says."""
    clean = torch.randint(30, (4, 6), generator=torch.Generator().manual_seed(0))
    corrupt = clean.clone()
    corrupt[:, 1:3] = (clean[:, 1:3] + 1) % 30
    return said_by(model, clean, corrupt, subject=(1, 3))


@pytest.fixture(scope="module")
def model() -> GPT:
    return small_model()


@pytest.fixture(scope="module")
def behaviour(model) -> Behaviour:
    return random_behaviour(model)


@pytest.fixture(autouse=True)
def another_product(monkeypatch) -> Iterator[None]:
    """As on processors where it is faster, so that there is something to set back."""
    monkeypatch.setattr(base_run, "fast_product", lambda: "medium")
    yield
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.fixture
def small_chunks(monkeypatch) -> None:
    """So that a sweep of a tiny model is not over in one pass."""
    monkeypatch.setitem(engine.ROWS, "cpu", 24)


# What is disturbed


def with_own_hook(model: GPT, behaviour: Behaviour) -> Effects:
    """A hook that was placed by hand sends every patch through the plain path."""
    with model.hooks([("blocks.0.hook_attn_out", lambda value, point: 1.1 * value)]):
        return patching.heads(model, behaviour)


def with_hooks(model: GPT, behaviour: Behaviour) -> torch.Tensor:
    names = ("hook_embed", "blocks.0.attn.hook_pattern", "blocks.1.hook_mlp_out")
    hooks = [(name, lambda value, point: 2 * value) for name in names]
    return model.run_with_hooks(behaviour.clean, fwd_hooks=hooks)


SWEEPS: dict[str, Work] = {
    "heads": lambda m, b: patching.heads(m, b, positions="each"),
    "residual": patching.residual,
    "patterns": patching.patterns,
    "plain hooks": with_own_hook,
    "paths": patching.senders,
}
WORK: dict[str, Work] = {
    **SWEEPS,
    "run_with_cache": lambda m, b: m.run_with_cache(b.clean),
    "run_with_hooks": with_hooks,
    "tracing": lambda m, b: patching.causal_trace(m, b, damage="noised", draws=2),
    "ablating": lambda m, b: patching.ablate(m, b, standin="resample", draws=2),
    "attribution": attribution_patching.attribution,
    "AtP*": attribution_patching.atp_star,
    "edges by gradients": lambda m, b: edge_attribution_patching.eap_ig(m, b, steps=2),
    "edges exactly": edge_attribution_patching.exact_edge_effects,
    "circuits": lambda m, b: circuits.find(m, b, n_edges=5, steps=1, checked=False),
}
every_work = pytest.mark.parametrize("work", WORK.values(), ids=WORK.keys())
every_sweep = pytest.mark.parametrize("work", SWEEPS.values(), ids=SWEEPS.keys())


def state(model: GPT) -> dict[str, Any]:
    """Everything that a computation may touch on the way and must leave as it was."""
    return {
        "hooks": {name: len(p.fwd + p.bwd) for name, p in model.hook_dict.items() if p.hooked},
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "training": [module.training for module in model.modules()],
        "leaves": [(one.requires_grad, one.grad is None) for one in model.parameters()],
        "torch's random numbers": torch.get_rng_state().tolist(),
        "numpy's": np.random.get_state(legacy=False)["state"]["key"].tolist(),
        "product": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "type": torch.get_default_dtype(),
    }


def unchanged(model: GPT, before: dict[str, Any]) -> bool:
    """Whether everything is as it was; says what is not."""
    if state(model) != before:
        # A generator that was stopped while it opened a block closes it when it is thrown away.
        gc.collect()
    after = state(model)
    return {name: after[name] for name in after if after[name] != before[name]} == {}


def ended(disturbed: Callable[[], Any]) -> tuple[str, Any]:
    """How it ended, "interrupted", "in part" or "whole", and with what."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", InterpWarning)
        try:
            result = disturbed()
        except KeyboardInterrupt:
            result = None
    if result is None:
        return "interrupted", None
    partly = any(issubclass(one.category, InterruptedWarning) for one in seen)
    return ("in part" if partly else "whole"), result


def finished_is_right(result: Any, whole: Any) -> bool:
    """What is there is what an undisturbed run has there; returns whether something is missing."""
    if isinstance(result, Effects):
        there = ~result.values.isnan()
        assert torch.equal(result.values[there], whole.values[there])
        assert there.any()
        assert result.unfinished == (~there).sum()
        # An interrupt in the last call of the last chunk finds everything finished.
        noted = any("interrupted" in note for note in result.notes)
        assert noted == (result.unfinished > 0)
        return noted
    return False


# Two ways to disturb


class CallsCounted(TorchFunctionMode):
    """Raises at one of the calls of torch; -1: at none."""

    def __init__(self, stop_at: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        super().__init__()
        self.calls, self.stop_at, self.error = 0, stop_at, error

    def __torch_function__(self, func, types, args=(), kwargs=None):
        # Reading a shape is no work, and the checker of shapes, which does it, eats exceptions.
        self.calls += func.__name__ != "__get__"
        if self.calls == self.stop_at:
            self.stop_at = -1
            raise self.error
        return func(*args, **(kwargs or {}))


def stopped_at_call(work: Callable[[], Any], number: int) -> Any:
    with CallsCounted(number):
        return work()


def calls_of(work: Callable[[], Any]) -> int:
    with CallsCounted(-1) as counted, warnings.catch_warnings():
        warnings.simplefilter("ignore", InterpWarning)
        work()
    return counted.calls


def drawn(n: int, seed: int) -> list[float]:
    return random.Random(seed).choices([i / 9973 for i in range(1, 9973)], k=n)


# What must hold


@every_work
def test_an_interrupt_at_a_random_call_of_torch_leaves_nothing(
    work, model, behaviour, small_chunks
):
    n_calls = calls_of(lambda: work(model, behaviour))
    before, ends = state(model), Counter()
    for share in drawn(8, seed=len(str(work))):
        number = 1 + int(share * n_calls)
        end, _ = ended(lambda n=number: stopped_at_call(lambda: work(model, behaviour), n))
        ends[end] += 1
        assert unchanged(model, before)
    assert ends["whole"] == 0, "every one of them was felt"


@every_work
def test_an_exception_of_any_kind_leaves_nothing(work, model, behaviour):
    n_calls = calls_of(lambda: work(model, behaviour))
    before = state(model)
    for share in drawn(3, seed=1):
        error = type("Unforeseen", (Exception,), {})
        counted = CallsCounted(1 + int(share * n_calls), error)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InterpWarning)
            with pytest.raises(error), counted:
                work(model, behaviour)
        assert unchanged(model, before)


@every_sweep
def test_the_finished_part_of_a_sweep_is_returned_and_is_right(
    work, model, behaviour, small_chunks
):
    n_calls = calls_of(lambda: work(model, behaviour))
    whole = ended(lambda: work(model, behaviour))[1]
    ends, missing = Counter(), 0
    for share in (0.01, 0.7, 0.8, 0.9, 0.97):
        number = int(share * n_calls)
        end, result = ended(lambda n=number: stopped_at_call(lambda: work(model, behaviour), n))
        ends[end] += 1
        if end == "in part":
            missing += finished_is_right(result, whole)
    assert missing >= 2, "parts of a result, and not only whole ones with a warning"
    assert ends["interrupted"] >= 1, "at the beginning nothing is finished"
    assert ends["in part"] >= 2
    assert ends["whole"] == 0


@pytest.mark.parametrize(
    "sweep",
    [
        patching.heads,
        patching.mlps,
        with_own_hook,
        patching.senders,
        patching.causal_trace,
    ],
)
def test_an_interrupt_from_the_progress_report_is_one_too(
    sweep, model, behaviour, small_chunks, monkeypatch
):
    told: list[int] = []

    def stop(what: str, done: int, total: int | None) -> None:
        told.append(done)
        raise KeyboardInterrupt

    if sweep is with_own_hook:
        hook = ("blocks.0.hook_attn_out", lambda value, point: 1.1 * value)
        with model.hooks([hook]):
            before = state(model)
            end, result = ended(lambda: patching.heads(model, behaviour, progress=stop))
            assert unchanged(model, before)
    else:
        before = state(model)
        end, result = ended(lambda: sweep(model, behaviour, progress=stop))
        assert unchanged(model, before)
    assert len(told) == 1
    assert end in ("in part", "interrupted")
    if isinstance(result, Effects):
        assert result.values.numel() - result.unfinished == told[0]


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_a_metric_that_fails_leaves_nothing(error, model, behaviour):
    def fail(logits: torch.Tensor) -> torch.Tensor:
        raise error

    before = state(model)
    failing = custom("failing", fail, unit="nothing")
    for positions in ("together", "each"):
        with pytest.raises(error):
            patching.heads(model, behaviour, metric=failing, positions=positions)
        assert unchanged(model, before)


def test_a_metric_that_fails_late_leaves_nothing_and_loses_nothing(model, behaviour, small_chunks):
    asked = Counter()

    def score(logits: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        asked["times"] += 1
        if asked["times"] == asked["last"]:
            raise KeyboardInterrupt
        return logits[:, -1, 3]

    metric = Metric("a logit", "nats", score)
    whole = patching.residual(model, behaviour, metric=metric)
    asked["last"] = asked["times"] - 1  # of the next run, which asks as often
    asked["times"] = 0
    before = state(model)
    end, result = ended(lambda: patching.residual(model, behaviour, metric=metric))
    assert end == "in part"
    finished_is_right(result, whole)
    assert unchanged(model, before)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_a_hook_that_fails_takes_itself_and_its_neighbours_away(error, model, behaviour):
    def fail(value: torch.Tensor, point: object) -> None:
        raise error

    before = state(model)
    for position in range(3):
        hooks: list = [("blocks.1.hook_resid_post", lambda value, point: None)] * 3
        hooks[position] = ("blocks.1.hook_mlp_out", fail)
        with pytest.raises(error):
            model.run_with_hooks(behaviour.clean, fwd_hooks=hooks)
        assert unchanged(model, before)
    with model.hooks([("blocks.1.hook_mlp_out", fail)]):
        with pytest.raises(error):
            patching.heads(model, behaviour)
        with pytest.raises(error):
            model.run_with_cache(behaviour.clean)
        assert state(model)["hooks"] == {"blocks.1.hook_mlp_out": 1}, "the user's own hook stays"
    assert unchanged(model, before)


def test_pythons_own_random_numbers_are_not_used_at_all():
    # Not part of `state`: beartype, which checks shapes under test, draws from them.
    uses = {
        path.name
        for path in Path(interp.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        and "random" in (getattr(node, "module", None), *(one.name for one in node.names))
        and [one.name for one in node.names] != ["Random"]  # a generator of its own, with a seed
    }
    assert uses == set()


def test_the_prompts_and_the_weights_are_not_touched(model, behaviour):
    prompts = replace(behaviour, clean=behaviour.clean.clone(), corrupt=behaviour.corrupt.clone())
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for work in WORK.values():
        ended(lambda work=work: work(model, behaviour))
    assert torch.equal(prompts.clean, behaviour.clean)
    assert torch.equal(prompts.corrupt, behaviour.corrupt)
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
