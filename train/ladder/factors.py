"""The factors in which two architectures differ, and the rungs between them.

A factor is a part of the architecture with the fields that describe it: `sinks` and `n_sinks` are
one factor. `rungs_between` changes each factor by itself, and all of them one after another.

Some parts cannot be had alone: U-Net skips, for example, are defined for pre-norm layers only. Such
a factor is changed together with the smallest set of others that makes it possible, it is compared
with these others without it, and its rung says why.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any

from train.errors import RecipeError
from train.model import GPTConfig
from train.short_repr import short_repr


__all__ = ["Factor", "Rung", "factors_between", "part_way", "rungs_between"]

# Fields by factor, in the order in which a ladder changes them. `n_distinct_layers` stands for
# `n_layers`, which counts the passes of a loop. A field that is in no factor is one by itself.
FIELDS: Mapping[str, tuple[str, ...]] = {
    "position": (
        "position", "rope_theta", "position_init", "position_init_scale", "rotary_channels",
        "rope_scaling", "rope_factor", "rope_low_freq_factor", "rope_high_freq_factor",
        "rope_original_ctx",
    ),
    "norm": ("norm", "norm_eps", "norm_gain"),
    "norm placement": ("norm_placement",),
    "parallel residual": ("parallel_residual",),
    "MLP": ("mlp",),
    "bias": ("bias", "qkv_bias"),
    "attention": ("attention", "aft_passes", "retention_chunk"),
    "window": ("window",),
    "sinks": ("sinks", "n_sinks"),
    "QK norm": ("qk_norm",),
    "exclusive attention": ("exclusive",),
    "head gates": ("head_gate",),
    "value residual": ("value_residual",),
    "embedding norm": ("embed_norm",),
    "embedding mix": ("embed_mix",),
    "U-Net skips": ("unet",),
    "loop": ("loop_first", "loop_layers", "loop_passes"),
    "tying": ("tie",),
    "heads": ("n_heads", "n_key_value_heads", "d_head"),
    "width": ("d_model",),
    "depth": ("n_distinct_layers",),
    "initialisation": ("init_std",),
    "padding": ("vocab_multiple",),
}  # fmt: skip
# What all rungs have in common, and the width of the MLP, by which sizes are adapted.
COMMON = ("n_layers", "d_mlp", "n_ctx", "d_vocab")


@dataclass(frozen=True)
class Factor:
    """A part in which two architectures differ.

    Attributes:
        before: Fields of the part and their values in the first architecture.
        after: Their values in the second.
    """

    name: str
    before: dict[str, Any]
    after: dict[str, Any]

    __repr__ = short_repr

    @property
    def change(self) -> str:
        """The fields that change: `mlp relu -> swiglu`."""
        pairs = [(key, old, self.after[key]) for key, old in self.before.items()]
        return ", ".join(f"{key} {old} -> {new}" for key, old, new in pairs if old != new)


@dataclass(frozen=True)
class Rung:
    """A step of a ladder: an architecture between two others, and what it is compared with.

    Attributes:
        kind: `start`; `alone`: one factor from the first architecture; `cumulative`: one more
            factor than the rung before.
        changed: Names of the factors that this rung changes.
        factors: Names of all factors that are as in the second architecture.
        base: Names of those of the rung that it is compared with.
        reason: Why a factor cannot be changed without others; "" if it can.
    """

    kind: str
    changed: tuple[str, ...]
    factors: tuple[str, ...]
    base: tuple[str, ...]
    reason: str = ""

    __repr__ = short_repr


def factors_between(start: GPTConfig, end: GPTConfig) -> tuple[Factor, ...]:
    """Return the factors in which two architectures differ, in the order of a ladder.

    Sizes of context, vocabulary and MLP are no factors.

    Examples:
        >>> from train.model import preset
        >>> between = ladder.factors_between(preset("gpt2-nano"), preset("retro-nano"))
        >>> [factor.name for factor in between]
        ['position', 'norm placement', 'MLP', 'attention', 'depth']
        >>> between[2].change
        'mlp gelu-tanh -> relu'
    """
    before, after = _parts(start), _parts(end)
    named = {name for group in FIELDS.values() for name in group}
    groups = {**FIELDS, **{name: (name,) for name in before if name not in named}}
    return tuple(
        Factor(name, {key: before[key] for key in group}, {key: after[key] for key in group})
        for name, group in groups.items()
        if any(before[key] != after[key] for key in group)
    )


def part_way(start: GPTConfig, changed: Collection[Factor]) -> GPTConfig:
    """Return the first architecture with some factors as in the second.

    Raises:
        RecipeError: There is no such architecture.

    Examples:
        >>> from train.model import preset
        >>> between = ladder.factors_between(preset("gpt2-nano"), preset("retro-nano"))
        >>> cfg = ladder.part_way(preset("gpt2-nano"), between[:2])
        >>> cfg.position, cfg.norm_placement, cfg.mlp
        ('sinusoidal', 'post', 'gelu-tanh')
    """
    parts = _parts(start)
    for factor in changed:
        parts |= factor.after
    n_distinct = parts.pop("n_distinct_layers")
    n_layers = n_distinct + parts["loop_layers"] * (parts["loop_passes"] - 1)
    common = {name: getattr(start, name) for name in COMMON}
    return GPTConfig(**{**parts, **common, "n_layers": n_layers})


def rungs_between(start: GPTConfig, factors: Collection[Factor]) -> tuple[Rung, ...]:
    """Return the start, each factor by itself, and all factors one after another.

    A factor that is impossible where its turn comes waits for those that it needs.

    Examples:
        >>> from train.model import preset
        >>> gpt2, slowrun = preset("gpt2-nano"), preset("slowrun-nano")
        >>> rungs = ladder.rungs_between(gpt2, ladder.factors_between(gpt2, slowrun)[:1])
        >>> [(rung.kind, *rung.changed) for rung in rungs]
        [('start',), ('alone', 'position'), ('cumulative', 'position')]
    """
    rungs = [Rung("start", (), (), ())]
    for factor in factors:
        others = tuple(one for one in factors if one is not factor)
        needed, reason = _needed(start, (), (factor,), others)
        base = needed if _impossible(start, needed) is None else ()
        changed = (factor,) if base == needed else (*needed, factor)
        all_changed = _sorted((*needed, factor), factors)
        rungs.append(Rung("alone", _names(changed), all_changed, _names(base), reason))
    return (*rungs, *_cumulative(start, tuple(factors)))


def _cumulative(start: GPTConfig, factors: tuple[Factor, ...]) -> Iterator[Rung]:
    done: tuple[Factor, ...] = ()
    waited: dict[str, str] = {}
    while left := tuple(factor for factor in factors if factor not in done):
        reasons = {one.name: _impossible(start, (*done, one)) for one in left}
        possible = [one for one in left if reasons[one.name] is None]
        if possible:
            group = possible[:1]
            before = left[: left.index(group[0])]
            waited |= {one.name: reasons[one.name] or "" for one in before}
            reason = waited.get(group[0].name, "")
            reason = f"comes after what it needs: {reason}" if reason else ""
        else:
            needed, reason = _needed(start, done, left[:1], left[1:])
            group = [*needed, left[0]]
        base = _sorted(done, factors)
        done = (*done, *group)
        yield Rung("cumulative", _names(group), _sorted(done, factors), base, reason)


def _needed(
    start: GPTConfig,
    done: tuple[Factor, ...],
    wanted: tuple[Factor, ...],
    others: tuple[Factor, ...],
) -> tuple[tuple[Factor, ...], str]:
    """Return the smallest set of others with which the wanted factors are possible, and why.

    All factors together are the second architecture, so there is one.
    """
    reason = _impossible(start, (*done, *wanted))
    for size in range(len(others) + 1):
        for needed in combinations(others, size):
            if _impossible(start, (*done, *needed, *wanted)) is None:
                return needed, reason or ""
    raise RecipeError(f"factor {wanted[0].name!r} cannot be changed: {reason}")


def _impossible(start: GPTConfig, changed: Collection[Factor]) -> str | None:
    """Return why there is no such architecture, or None."""
    try:
        part_way(start, changed)
    except RecipeError as error:
        return str(error)
    return None


def _parts(cfg: GPTConfig) -> dict[str, Any]:
    content = {one.name: getattr(cfg, one.name) for one in fields(GPTConfig)}
    parts = {name: value for name, value in content.items() if name not in COMMON}
    return {**parts, "n_distinct_layers": cfg.n_distinct_layers}


def _names(factors: Collection[Factor]) -> tuple[str, ...]:
    return tuple(factor.name for factor in factors)


def _sorted(some: Collection[Factor], factors: Collection[Factor]) -> tuple[str, ...]:
    """Return the names in the order of the ladder, so that equal sets have equal names."""
    return tuple(factor.name for factor in factors if factor in some)
