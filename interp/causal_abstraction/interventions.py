"""Interchange interventions: a test of whether a component holds a variable of a theory.

The model runs a base prompt with one component replaced by its value on a source prompt. The theory
predicts the answer when its variable takes the source's value (Geiger et al. 2021,
https://arxiv.org/abs/2106.02997). The share of pairs on which the model gives that answer is the
interchange accuracy.

There are two controls: the same prompts without any intervention, and with the value of another
source, for which the theory predicts another answer. A component whose exchange merely destroys the
base's answer does no better than the second control. `interp.causal_abstraction.das` looks for the
variable in a subspace of a component.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp import components, plots
from interp.causal_abstraction.pairs import Pairs
from interp.components import Component, HookedModel, device_of
from interp.errors import BehaviourError, CapabilityError, EffectsError, UninformativeWarning
from interp.metrics import Metric
from interp.patching import engine
from interp.results import Provenance, Result, TopNames, provenance
from train import storage
from train.errors import nearest
from train.progress import Progress, count
from train.statistics import Average, n_prompts, shares


if TYPE_CHECKING:
    import pandas

__all__ = ["Interchanges", "check", "interchange", "wins"]

SCHEMA = "openbook.interchanges/1"


@dataclass(frozen=True, eq=False)
class Interchanges(Result):
    """Interchange accuracy of each component, with its controls.

    Attributes:
        places: Names of the components, in the order given.
        accuracy: Share of pairs that give the expected answer, [place].
        shuffled: The same with the value of another source, which predicts another answer.
        unpatched: The same without intervention.
        capability: Share of base and source prompts that the intact model answers correctly.
        n_pairs: Number of pairs; the intervals take distinct base prompts as cases.
        provenance: Model, behaviour and software that it was computed with.
    """

    schema: ClassVar[str] = SCHEMA
    meaning: ClassVar[str] = (
        "An interchange shows how often exchanging a component's value gives the answer of a "
        "theory; it does not show that the component holds nothing else, nor that the theory "
        "is the only one that fits."
    )

    places: tuple[str, ...]
    accuracy: Average
    shuffled: Average
    unpatched: Average
    capability: Average
    n_pairs: int
    provenance: Provenance

    @property
    def n(self) -> int:
        """Number of distinct base prompts."""
        return self.accuracy.n

    def __getitem__(self, place: str) -> float:
        if place not in self.places:
            raise EffectsError(f"no {place!r} was interchanged{nearest(place, self.places)}")
        return self.accuracy.values[self.places.index(place)].item()

    def __repr__(self) -> str:
        best = ", ".join(f"{place} {self[place]:.2f}" for place in self.top(3))
        sizes = f"{count(len(self.places), 'place')}, {count(self.n_pairs, 'pair')}"
        about = f"{self.provenance.behaviour!r}, {sizes}"
        return f"Interchanges({about}; without {self.unpatched.values.item():.2f}, highest {best})"

    def top(self, k: int) -> TopNames:
        """Return the names of the k components with the highest accuracy, highest first."""
        order = self.accuracy.values.argsort(descending=True, stable=True)[:k]
        names = [self.places[i] for i in order.tolist()]
        return TopNames(names, {name: self[name] for name in names})

    def to_frame(self) -> "pandas.DataFrame":
        """Return a pandas frame with a row per component: accuracy and control with intervals."""
        import pandas

        columns = {**self.accuracy.columns("accuracy"), **self.shuffled.columns("shuffled")}
        return pandas.DataFrame({"place": list(self.places), **columns})

    def plot(self) -> "plots.Figure":
        """Plot accuracy and control as bars with intervals."""
        return plots.columns(
            self.places,
            {"interchanged": self.accuracy, "another source": self.shuffled},
            title=f"{self.provenance.behaviour}: interchange accuracy, n={self.n}",
            unit="share of pairs with the expected answer",
        )

    def to_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        parts = ("accuracy", "shuffled", "unpatched", "capability")
        return {
            "schema": SCHEMA,
            "unit": "share of pairs that give the expected answer",
            "n": self.n,
            "n_pairs": self.n_pairs,
            "places": list(self.places),
            **{name: getattr(self, name).to_dict() for name in parts},
            "provenance": asdict(self.provenance),
        }

    @classmethod
    def from_dict(cls, content: storage.JsonObject) -> "Interchanges":
        """Return the result that `to_dict` turned into plain values."""
        parts = ("accuracy", "shuffled", "unpatched", "capability")
        return cls(
            tuple(content["places"]),
            *(Average.from_dict(content[name]) for name in parts),
            n_pairs=content["n_pairs"],
            provenance=Provenance(**content["provenance"]),
        )


def check(model: HookedModel, pairs: Pairs, *, threshold: float = 0.5) -> Average:
    """Measure the share of base and source prompts, together, that the model answers correctly.

    Raises:
        CapabilityError: The share is not above `threshold`. A theory of how a model does something
            cannot be tested on a model that does not do it.
    """
    right = torch.cat(
        [
            wins(model, replace(pairs, expected=pairs.original, original=pairs.expected)),
            wins(
                model,
                replace(
                    pairs, base=pairs.source, expected=pairs.of_source, original=pairs.original
                ),
            ),
        ]
    )
    tokens = torch.cat([pairs.base, pairs.source])
    found = shares(right.double().numpy(), n_prompts(tokens))
    if not found.values > threshold:
        raise CapabilityError(
            f"the model answers {found.show(2)} of the prompts of {pairs.name!r} as it should, and "
            f"more than {threshold:.2f} is needed; take a later checkpoint or another behaviour"
        )
    return found


@torch.inference_mode()
def wins(
    model: HookedModel, pairs: Pairs, hooks: Sequence[tuple[str, Callable[..., Tensor | None]]] = ()
) -> Bool[Tensor, " pair"]:
    """Return which base prompts give the expected answer when they are run with hooks."""
    tokens = pairs.base.to(device_of(model))
    logits = model.run_with_hooks(tokens, fwd_hooks=list(hooks)) if hooks else model(tokens)
    row = torch.arange(len(pairs), device=tokens.device)
    return _won(pairs, logits[:, -1], row).cpu()


@torch.inference_mode()
def interchange(
    model: HookedModel,
    pairs: Pairs,
    places: Sequence[Component | str] | Component | str,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Interchanges:
    """Measure the interchange accuracy of each component, with the patch engine.

    Args:
        model: A hooked model, from `interp.models.load`.
        pairs: From `interp.causal_abstraction.pairs`, or built by hand.
        places: Components or their names, as `interp.components.parse` reads them. Name a position
            if the variable should be at that position only.
        seed: Random seed for the other sources of the control.
        progress: Called with the number of components done.

    Raises:
        CapabilityError: The intact model does not answer the prompts correctly.
        ModelError: The model or the prompts have no such component.
        BehaviourError: No component was given.

    Examples:
        >>> pairs = causal_abstraction.swaps(ioi)
        >>> found = causal_abstraction.interchange(model, pairs, ["L0H1", "L1H1"])
        >>> found.to_frame()["place"].tolist()
        ['L0H1', 'L1H1']
    """
    asked = components.parse_all(places)
    if not asked:
        raise BehaviourError("no place was given to interchange; name one like L1.resid_pre@4")
    engine.refuse_unknown(model, [[place] for place in asked], pairs.n_pos)
    capability = check(model, pairs)
    other = _other_sources(pairs, seed)
    found, moved = _patched(model, pairs, pairs.source, asked, progress)
    control, _ = _patched(model, pairs, other, asked, progress)
    _warn_of_equal(asked, moved)
    prompts = n_prompts(pairs.base)
    accuracy, shuffled = (shares(one.numpy(), prompts) for one in (found, control))
    return Interchanges(
        tuple(map(str, asked)),
        accuracy=accuracy,
        shuffled=shuffled,
        unpatched=shares(wins(model, pairs).double().numpy(), prompts),
        capability=capability,
        n_pairs=len(pairs),
        provenance=replace(provenance(model, None, seed=seed), behaviour=pairs.name),
    )


def _patched(
    model: HookedModel,
    pairs: Pairs,
    source: Int[Tensor, "pair pos"],
    places: list[Component],
    progress: Progress | None,
) -> tuple[Float[Tensor, "place pair"], Float[Tensor, " place"]]:
    """Patch each component; return 1 where the expected answer wins, and how far the value moved.

    How far it moved is the largest absolute difference between the values patched in and those they
    replaced.
    """
    device = device_of(model)
    hooks = list(dict.fromkeys(place.hook for place in places))
    _, cache = model.run_with_cache(source.to(device), names_filter=hooks)
    metric = Metric(
        "expected answer", "1 when it wins", lambda read, row: _won(pairs, read[:, 0], row).float()
    )
    values = {hook: cache[hook] for hook in hooks}
    patches = [[place] for place in places]
    found = engine.scores(
        model, pairs.base.to(device), patches, values, [metric], progress=progress
    )
    return found.scores[0].double().cpu(), found.moved.cpu()


def _warn_of_equal(places: list[Component], moved: Float[Tensor, " place"]) -> None:
    same = [str(place) for place, far in zip(places, moved.tolist(), strict=True) if far == 0]
    if same:
        warnings.warn(
            UninformativeWarning(
                f"base and source hold the same at {len(same)} of {len(places)} places, {same[0]} "
                "among them: interchanging it changes nothing, whatever it means"
            ),
            stacklevel=3,
        )


def _won(
    pairs: Pairs, logits: Float[Tensor, "row vocab"], row: Int[Tensor, " row"]
) -> Bool[Tensor, " row"]:
    """Return where the expected answer beats every other candidate; a tie does not count.

    Without candidates it has to beat the base's own answer only.
    """
    expected, original = (
        one.to(logits.device)[row][:, None] for one in (pairs.expected, pairs.original)
    )
    own = logits.gather(1, expected)
    if pairs.candidates is None:
        return (own > logits.gather(1, original))[:, 0]
    columns = torch.tensor(pairs.candidates, device=logits.device)
    rivals = logits[:, columns].masked_fill(columns == expected, -torch.inf)
    return own[:, 0] > rivals.amax(dim=1)


def _other_sources(pairs: Pairs, seed: int) -> Int[Tensor, "pair pos"]:
    """Draw for each pair the source of another pair, with another answer if there is one."""
    draw = np.random.Generator(np.random.Philox(key=seed))
    answers = pairs.of_source.numpy()
    chosen = []
    for row in range(len(pairs)):
        others = np.flatnonzero(answers != answers[row])
        chosen.append(int(draw.choice(others)) if len(others) else (row + 1) % len(pairs))
    return pairs.source[chosen]
