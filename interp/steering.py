"""Steering: add a direction to an activation and measure how far a behaviour moves.

The direction is a difference of means: mean activation on prompts with a property minus mean
activation on prompts without it (Turner et al. 2023, "Activation Addition",
https://arxiv.org/abs/2308.10248; Rimsky et al. 2023, "Contrastive Activation Addition",
https://arxiv.org/abs/2312.06681). It is multiplied by a coefficient and added in a forward pass or
during generation.

Any large added vector moves some logit. A steering effect is therefore reported next to two
controls: the effect of random directions of the same length, and the effect of the same vector on
an unrelated behaviour.
"""

import hashlib
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp import components, plots
from interp.behaviours import Behaviour
from interp.components import Component, HookedModel, device_of
from interp.errors import BehaviourError, ContrastError, UninformativeWarning
from interp.patching import engine
from interp.results import Provenance, Result, provenance
from train import storage
from train.model import Hook, HookedModule
from train.progress import count
from train.statistics import Average, over_prompts


if TYPE_CHECKING:
    import pandas

__all__ = ["COEFFICIENTS", "SteeringEffects", "SteeringVector", "curve", "difference", "steered"]

VECTOR_SCHEMA, EFFECTS_SCHEMA = "openbook.steering_vector/1", "openbook.steering_effects/1"
COEFFICIENTS = (-2.0, -1.0, 0.0, 1.0, 2.0)
# Sites that hold one vector per position. A pattern holds none, and a neuron is a single number.
SITES = ("resid_pre", "resid_mid", "resid_post", "attn", "mlp", "head", "q", "k", "v")


@dataclass(frozen=True, eq=False)
class SteeringVector(Result):
    """Direction in the activation space of one component.

    Attributes:
        place: The component where the vector was read and where it is added.
        values: The difference of the two means, not normalised.
        n_toward: Distinct prompts that the vector points toward.
        n_away: Distinct prompts that it points away from.
        prompts: sha256 (16 hex digits) of each prompt that the vector was computed from.
        provenance: The model that the vector was computed from.
    """

    schema: ClassVar[str] = VECTOR_SCHEMA
    meaning: ClassVar[str] = (
        "A steering vector shows in which direction two sets of prompts differ on average; it "
        "does not show that adding it changes what the model does."
    )

    place: Component
    values: Float[Tensor, " d_model"]
    n_toward: int
    n_away: int
    prompts: frozenset[str]
    provenance: Provenance

    def __repr__(self) -> str:
        return (
            f"SteeringVector({self.place}, length {self.values.norm().item():.3g}, "
            f"{count(self.n_toward, 'prompt')} minus {self.n_away})"
        )

    def to_dict(self) -> dict[str, object]:
        """Return plain values, for JSON."""
        return {
            "schema": VECTOR_SCHEMA,
            "place": str(self.place),
            "values": self.values.tolist(),
            "n_toward": self.n_toward,
            "n_away": self.n_away,
            "prompts": sorted(self.prompts),
            "provenance": asdict(self.provenance),
        }

    @classmethod
    def from_dict(cls, content: storage.JsonObject) -> "SteeringVector":
        """Return the result that `to_dict` turned into plain values."""
        return cls(
            place=components.parse(content["place"]),
            values=torch.tensor(content["values"], dtype=torch.float32),
            n_toward=content["n_toward"],
            n_away=content["n_away"],
            prompts=frozenset(content["prompts"]),
            provenance=Provenance(**content["provenance"]),
        )


@dataclass(frozen=True, eq=False)
class SteeringEffects(Result):
    """Change of a behaviour's score as a function of the steering coefficient.

    Attributes:
        coefficients: Factors by which the vector was multiplied.
        effect: Change of the score, mean over prompts, [coefficient].
        control: Change of the score under random directions of the same length, mean over those
            directions.
        control_largest: Largest absolute mean change that any one random direction caused.
        unrelated: Change of the score of the unrelated behaviour; None if there is none.
        start: Score without steering.
        unrelated_name: Name of the unrelated behaviour; empty if there is none.
        place: Name of the component where the vector was added.
        provenance: Model, behaviour and seed that the result was computed from.
    """

    schema: ClassVar[str] = EFFECTS_SCHEMA
    meaning: ClassVar[str] = (
        "A steering effect shows how adding a direction changes the score; it does not show "
        "that the model itself uses the direction."
    )

    coefficients: tuple[float, ...]
    effect: Average
    control: Average
    control_largest: Float[Tensor, " coefficient"]
    unrelated: Average | None
    start: Average
    unrelated_name: str
    place: str
    provenance: Provenance

    @property
    def n(self) -> int:
        """Number of distinct prompts."""
        return self.effect.n

    def __repr__(self) -> str:
        pairs = zip(self.coefficients, self.effect.values.tolist(), strict=True)
        shown = ", ".join(f"{coefficient:g}: {value:+.2f}" for coefficient, value in pairs)
        about = f"{self.provenance.behaviour!r} at {self.place}, {count(self.n, 'prompt')}"
        return f"SteeringEffects({about}; from {self.start.values.item():.2f}, {shown})"

    def to_frame(self) -> "pandas.DataFrame":
        """Return one pandas row per coefficient: effect, control, unrelated and their intervals."""
        import pandas

        unrelated = {} if self.unrelated is None else self.unrelated.columns("unrelated")
        columns = {**self.effect.columns("effect"), **self.control.columns("control"), **unrelated}
        columns["control_largest"] = self.control_largest.tolist()
        return pandas.DataFrame({"coefficient": list(self.coefficients), **columns})

    def plot(self) -> "plots.Figure":
        """Plot the change of the score over the coefficient."""
        series = {"steered": self.effect, "random directions": self.control}
        if self.unrelated is not None:
            series[f"{self.unrelated_name}, unrelated"] = self.unrelated
        return plots.curves(
            self.coefficients,
            series,
            title=f"{self.provenance.behaviour}: steered at {self.place}, n={self.n}",
            unit="change of the logit difference",
            across="coefficient",
        )

    def to_dict(self) -> dict[str, object]:
        """Return plain values, for JSON."""
        return {
            "schema": EFFECTS_SCHEMA,
            "unit": "change of the logit difference",
            "n": self.n,
            "coefficients": list(self.coefficients),
            **{name: getattr(self, name).to_dict() for name in ("effect", "control", "start")},
            "control_largest": self.control_largest.tolist(),
            "unrelated": None if self.unrelated is None else self.unrelated.to_dict(),
            "unrelated_name": self.unrelated_name,
            "place": self.place,
            "provenance": asdict(self.provenance),
        }

    @classmethod
    def from_dict(cls, content: storage.JsonObject) -> "SteeringEffects":
        """Return the result that `to_dict` turned into plain values."""
        other = content["unrelated"]
        return cls(
            coefficients=tuple(content["coefficients"]),
            effect=Average.from_dict(content["effect"]),
            control=Average.from_dict(content["control"]),
            control_largest=torch.tensor(content["control_largest"], dtype=torch.float32),
            unrelated=None if other is None else Average.from_dict(other),
            start=Average.from_dict(content["start"]),
            unrelated_name=content["unrelated_name"],
            place=content["place"],
            provenance=Provenance(**content["provenance"]),
        )


@torch.inference_mode()
def difference(
    model: HookedModel,
    toward: Int[Tensor, "one pos"],
    away: Int[Tensor, "other pos2"],
    *,
    place: Component | str,
    pos: int = -1,
) -> SteeringVector:
    """Return the mean activation on the prompts `toward` minus that on the prompts `away`.

    Costs two forward passes. The two sets may differ in number and length of prompts; position
    `pos` is read in both, and equal prompts of a set count once.

    Raises:
        ModelError: The model has no such component.
        BehaviourError: A set is empty or has no such position, or the component is not a vector.
        ContrastError: The two means are equal.

    Examples:
        >>> vector = steering.difference(model, ioi.clean, ioi.corrupt, place="L1.resid_pre")
        >>> vector.n_toward, vector.n_away, tuple(vector.values.shape)
        (64, 64, (128,))
    """
    place = components.parse(place) if isinstance(place, str) else place
    means = []
    for name, tokens in (("toward", toward), ("away", away)):
        n_pos = tokens.shape[1]
        if not len(tokens) or not -n_pos <= pos < n_pos:
            raise BehaviourError(
                f"{len(tokens)} prompts {name} of {n_pos} positions cannot be read at {pos}; give "
                "one or more, and a position that they have"
            )
        _check_place(model, place, n_pos)
        tokens = tokens.to(device_of(model)).unique(dim=0)
        _, cache = model.run_with_cache(tokens, names_filter=[place.hook])
        at = replace(place, pos=pos % n_pos)
        means.append(cache[place.hook][at.index].double().mean(dim=0))
    values = (means[0] - means[1]).float().cpu()
    if values.norm() <= 1e-6 * float(means[0].norm()):
        raise ContrastError(
            f"the mean at {place} is the same on both sets of prompts (difference "
            f"{values.norm().item():.2g}), so it points nowhere; take prompts that differ in what "
            "is looked for"
        )
    return SteeringVector(
        place,
        values,
        n_toward=len(toward.unique(dim=0)),
        n_away=len(away.unique(dim=0)),
        prompts=frozenset(_names(toward) + _names(away)),
        provenance=provenance(model),
    )


def steered(
    model: HookedModule,
    vector: SteeringVector,
    *,
    coefficient: float = 1.0,
    positions: tuple[int, ...] | None = None,
) -> AbstractContextManager[HookedModule]:
    """Add the vector to the model's activations inside a `with` block.

    Inside the block the model can be run or can generate text.

    Args:
        model: A hooked model.
        vector: The vector to add, at the component where it was read.
        coefficient: Factor by which the vector is multiplied.
        positions: Positions where it is added; None for all. Negative ones count from the end of
            the tokens that the model is given, so -1 steers every generated token.

    Raises:
        HookError: The model has no such component, or was not run inside the block.

    Examples:
        >>> vector = steering.difference(model, ioi.clean, ioi.corrupt, place="L1.resid_pre")
        >>> with steering.steered(model, vector, coefficient=4.0):
        ...     logits = model(ioi.corrupt)
        ...
        >>> torch.equal(logits, model(ioi.corrupt))
        False
    """
    return model.hooks([_hook(vector, coefficient, positions)])


@torch.inference_mode()
def curve(
    model: HookedModel,
    vector: SteeringVector,
    behaviour: Behaviour,
    *,
    coefficients: Sequence[float] = COEFFICIENTS,
    positions: tuple[int, ...] | None = None,
    unrelated: Behaviour | None = None,
    n_random: int = 8,
    seed: int = 0,
) -> SteeringEffects:
    """Measure how a behaviour's score on its clean prompts changes with the coefficient.

    Costs one forward pass per coefficient for the vector and for each of the `n_random` random
    directions. Warns with an `UninformativeWarning` if some of the prompts were also used to
    compute the vector, because an effect on those is weaker evidence.

    Raises:
        ModelError: The model has no such component.
        BehaviourError: There is no coefficient, no random direction, or a position outside the
            prompts.

    Examples:
        >>> vector = steering.difference(model, ioi.clean, ioi.corrupt, place="L1.resid_pre")
        >>> effects = steering.curve(model, vector, capital, coefficients=(0.0, 1.0), n_random=2)
        >>> effects.effect.values[0].item(), effects.n
        (0.0, 52)
    """
    if not coefficients or n_random < 1:
        raise BehaviourError(
            f"{len(coefficients)} coefficients and {n_random} random directions show nothing; give "
            "one of each or more"
        )
    _warn_of_shared(vector, behaviour)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(n_random, len(vector.values), generator=generator, dtype=torch.float32)
    drawn *= vector.values.norm() / drawn.norm(dim=1, keepdim=True)
    others = [replace(vector, values=direction) for direction in drawn]
    prompts = np.array(behaviour.cases)
    start, moved = _changes(model, behaviour, vector, coefficients, positions)
    control = torch.stack(
        [_changes(model, behaviour, one, coefficients, positions)[1].mean(dim=1) for one in others],
        dim=1,
    )
    aside = None
    if unrelated is not None:
        changes = _changes(model, unrelated, vector, coefficients, positions)[1]
        aside = over_prompts(changes.numpy(), np.array(unrelated.cases))
    return SteeringEffects(
        coefficients=tuple(float(one) for one in coefficients),
        effect=over_prompts(moved.numpy(), prompts),
        control=over_prompts(control.numpy(), torch.arange(n_random).numpy()),
        control_largest=control.abs().amax(dim=1).float(),
        unrelated=aside,
        start=over_prompts(start.numpy(), prompts),
        unrelated_name="" if unrelated is None else unrelated.name,
        place=str(vector.place),
        provenance=provenance(model, behaviour, seed=seed),
    )


def _changes(
    model: HookedModel,
    behaviour: Behaviour,
    vector: SteeringVector,
    coefficients: Sequence[float],
    positions: tuple[int, ...] | None,
) -> tuple[Float[Tensor, " prompt"], Float[Tensor, "coefficient prompt"]]:
    """Return the score without steering, and the change of the score under each coefficient."""
    _check_place(model, vector.place, behaviour.n_pos)
    wrong = [p for p in positions or () if not -behaviour.n_pos <= p < behaviour.n_pos]
    if wrong or positions == ():
        raise BehaviourError(
            f"position {wrong[0] if wrong else 'none'} was asked to be steered, and the prompts of "
            f"{behaviour.name!r} have {behaviour.n_pos}"
        )
    tokens = behaviour.clean.to(device_of(model))
    start = behaviour.score(model(tokens)).double().cpu()
    moved = []
    for coefficient in coefficients:
        hooks = [_hook(vector, float(coefficient), positions)]
        logits = model.run_with_hooks(tokens, fwd_hooks=hooks)
        moved.append(behaviour.score(logits).double().cpu() - start)
    return start, torch.stack(moved)


def _hook(
    vector: SteeringVector, coefficient: float, positions: tuple[int, ...] | None
) -> tuple[str, Hook]:
    index = replace(vector.place, pos=positions).index

    def add(value: Tensor, hook: object) -> Tensor:
        # Copied because the value may be a view of a tensor that is used after the pass.
        value = value.clone()
        value[index] += coefficient * vector.values.to(value)
        return value

    return vector.place.hook, add


def _check_place(model: HookedModel, place: Component, n_pos: int) -> None:
    if place.site not in SITES or place.pos is not None:
        raise BehaviourError(
            f"{place} is no vector to add; name a place like L1.resid_pre or L1H0, and its "
            "position apart"
        )
    engine.refuse_unknown(model, [[place]], n_pos)


def _names(tokens: Int[Tensor, "prompt pos"]) -> list[str]:
    rows = tokens.tolist()
    return [hashlib.sha256(str(row).encode()).hexdigest()[:16] for row in rows]


def _warn_of_shared(vector: SteeringVector, behaviour: Behaviour) -> None:
    shared = len(vector.prompts & set(_names(behaviour.clean)))
    if shared:
        warnings.warn(
            UninformativeWarning(
                f"{shared} of the prompts of {behaviour.name!r} made the steering vector; measure "
                "on others"
            ),
            stacklevel=3,
        )
