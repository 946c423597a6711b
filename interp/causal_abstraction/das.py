"""Distributed alignment search (DAS): the subspace of a component that holds a variable.

A component may hold a variable in a few directions and other information in the rest. DAS learns k
orthonormal directions R such that exchanging only the projection on them gives the answers that the
theory predicts (Geiger et al. 2023, https://arxiv.org/abs/2303.02536). The component's value on the
base prompt, `base`, is replaced by

    base + R R^T (source - base)

Such a search finds something almost anywhere. Its accuracy on unseen pairs is therefore reported
with four controls: random subspaces of the same rank, the same search on shuffled answers, the
whole component, and no intervention. Shuffled answers are a strict placebo: they still reward a
subspace whose exchange removes the base's own answer. Where a component holds little besides the
variable, the search partly finds the variable from shuffled answers too. The random subspaces are
chance: what a rotation of that rank reaches without a search.
"""

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from interp import components, plots
from interp.causal_abstraction import interventions
from interp.causal_abstraction.pairs import Pairs
from interp.components import Component, HookedModel, device_of
from interp.errors import BehaviourError, UninformativeWarning
from interp.patching import engine
from interp.results import Provenance, Result, provenance
from train import storage
from train.progress import Progress
from train.statistics import Average, n_prompts, shares


if TYPE_CHECKING:
    import pandas

__all__ = ["ARMS", "Alignment", "align"]

SCHEMA = "openbook.alignment/1"
ARMS = ("learned", "random", "shuffled", "whole", "unpatched")
# Names in tables. What random rotations of the same rank reach is the chance level of a search.
NAMES = {arm: arm for arm in ARMS} | {"random": "random rotation (chance)"}
# Number of pairs in a step of the search, and number of random subspaces that are averaged.
PAIRS_A_STEP, RANDOM = 64, 8
# Sites with a vector at each position.
SITES = ("resid_pre", "resid_mid", "resid_post", "attn", "mlp", "head", "q", "k", "v")


@dataclass(frozen=True, eq=False)
class Alignment(Result):
    """Interchange accuracy of a subspace on pairs that it was not learned from.

    Attributes:
        place: Name of the component.
        rank: Number of directions.
        accuracy: Share of test pairs that give the expected answer, for each of `ARMS`: the learned
            subspace; the mean of eight random ones of that rank; the subspace learned from shuffled
            answers; the whole component; no intervention.
        on_train: Accuracy of the learned subspace on the pairs that it was learned from.
        n_train: Number of training pairs.
        n_test: Number of test pairs; the intervals take distinct base prompts as cases.
        loss: Loss of the search in its last step, in nats.
        basis: Learned directions, as orthonormal columns.
        provenance: Model, behaviour and software that it was computed with.
    """

    schema: ClassVar[str] = SCHEMA
    meaning: ClassVar[str] = (
        "An alignment shows how far exchanging a subspace gives the answers of a theory on "
        "unseen pairs; it shows no variable beyond what its controls reach, and not that the "
        "model keeps it nowhere else."
    )

    place: str
    rank: int
    accuracy: dict[str, Average]
    on_train: float
    n_train: int
    n_test: int
    loss: float
    basis: Float[Tensor, "d_model rank"]
    provenance: Provenance

    @property
    def n(self) -> int:
        """Number of distinct base prompts among the test pairs."""
        return self.accuracy["learned"].n

    def __repr__(self) -> str:
        arms = ", ".join(f"{NAMES[arm]} {one.show(2)}" for arm, one in self.accuracy.items())
        return f"Alignment({self.place}, rank {self.rank}, {self.n_test} unseen pairs; {arms})"

    def to_frame(self) -> "pandas.DataFrame":
        """Return a pandas frame with a row per arm: accuracy and its interval."""
        import pandas

        rows = [
            {"arm": NAMES[arm], **one.columns("accuracy")} for arm, one in self.accuracy.items()
        ]
        return pandas.concat(map(pandas.DataFrame, rows), ignore_index=True)

    def plot(self) -> "plots.Figure":
        """Plot the accuracy of each arm as bars with intervals."""
        columns = [one.columns("accuracy") for one in self.accuracy.values()]
        value, low, high = (
            [round(one[name][0], 4) for one in columns if one[name][0] is not None]
            for name in ("accuracy", "accuracy_low", "accuracy_high")
        )
        return plots.bars(
            [NAMES[arm] for arm in self.accuracy],
            value,
            low or None,
            high or None,
            title=f"{self.provenance.behaviour}: rank {self.rank} of {self.place}, n={self.n}",
            unit="share of unseen pairs with the expected answer",
        )

    def to_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        names = ("place", "rank", "on_train", "n_train", "n_test", "loss")
        return {
            "schema": SCHEMA,
            "unit": "share of unseen pairs that give the expected answer",
            "n": self.n,
            **{name: getattr(self, name) for name in names},
            "accuracy": {arm: one.to_dict() for arm, one in self.accuracy.items()},
            "basis": self.basis.tolist(),
            "provenance": asdict(self.provenance),
        }

    @classmethod
    def from_dict(cls, content: storage.JsonObject) -> "Alignment":
        """Return the result that `to_dict` turned into plain values."""
        names = ("place", "rank", "on_train", "n_train", "n_test", "loss")
        found = content["accuracy"]
        return cls(
            **{name: content[name] for name in names},
            # Sealed JSON sorts its keys; this restores the order of the arms.
            accuracy={arm: Average.from_dict(found[arm]) for arm in ARMS},
            basis=torch.tensor(content["basis"], dtype=torch.float32),
            provenance=Provenance(**content["provenance"]),
        )


def align(
    model: HookedModel,
    train: Pairs,
    test: Pairs,
    *,
    place: Component | str,
    rank: int,
    steps: int = 200,
    lr: float = 0.02,
    seed: int = 0,
    progress: Progress | None = None,
) -> Alignment:
    """Learn a subspace on the pairs of `train`, and measure it and its controls on those of `test`.

    Costs two searches, each of `steps` forward and backward passes over 64 pairs.

    Args:
        model: A hooked model, from `interp.models.load`.
        train: Pairs to learn from. Make `train` and `test` from the two `halves` of a behaviour.
        test: Pairs to measure on.
        place: Component with one vector per position: `L1.resid_pre@4` or `L1H0`, but not a
            pattern or a neuron.
        rank: Number of directions, below the width of the component.
        steps: Number of Adam steps.
        lr: Initial learning rate; it falls linearly to 0.
        seed: Random seed for initial directions, batches, shuffled answers and random subspaces.
        progress: Called with the number of steps done.

    Raises:
        CapabilityError: The intact model does not answer the test prompts correctly.
        ModelError: The model or the prompts have no such component.
        BehaviourError: The component is not a vector, the rank or number of steps does not fit, or
            a test pair is also a training pair.
    """
    place = components.parse(place) if isinstance(place, str) else place
    if place.site not in SITES:
        raise BehaviourError(f"{place} holds no vector with directions; name one like L1.resid_pre")
    for pairs in (train, test):
        engine.refuse_unknown(model, [[place]], pairs.n_pos)
    _check_unseen(train, test)
    interventions.check(model, test)
    here, there = AlignmentSite(model, place, train), AlignmentSite(model, place, test)
    if not 0 < rank < here.width or steps < 1:
        raise BehaviourError(
            f"rank {rank} and {steps} steps were asked at {place}, which has {here.width} "
            f"directions; give a rank from 1 to {here.width - 1}, and a step or more"
        )
    generator = torch.Generator().manual_seed(seed)
    how = _Search(rank, steps, lr, generator)
    learned, loss = how.run(here, train.expected, progress)
    mixed = train.expected[torch.randperm(len(train), generator=generator)]
    placebo, _ = how.run(here, mixed, None)
    random = [_orthonormal(_draw(generator, here.width, rank)) for _ in range(RANDOM)]
    bases = {"learned": [learned], "random": random, "shuffled": [placebo], "whole": [None]}
    right = {arm: torch.stack([there.wins(one) for one in some]) for arm, some in bases.items()}
    right["unpatched"] = interventions.wins(model, test)[None]
    prompts = n_prompts(test.base)
    return Alignment(
        place=str(place),
        rank=rank,
        accuracy={arm: shares(right[arm].double().mean(dim=0).numpy(), prompts) for arm in ARMS},
        on_train=here.wins(learned).double().mean().item(),
        n_train=len(train),
        n_test=len(test),
        loss=loss,
        basis=learned.cpu(),
        provenance=replace(provenance(model, None, seed=seed), behaviour=test.name),
    )


class AlignmentSite:
    """Component with its values on the source prompts, to be exchanged on the base prompts."""

    def __init__(self, model: HookedModel, place: Component, pairs: Pairs) -> None:
        self.model, self.place, self.pairs = model, place, pairs
        self.device = device_of(model)
        with torch.no_grad():
            _, cache = model.run_with_cache(pairs.source.to(self.device), names_filter=[place.hook])
        self.there = cache[place.hook][place.index]
        self.width = self.there.shape[-1]

    def hook(
        self, basis: Float[Tensor, "d_model rank"] | None, rows: Int[Tensor, " row"] | None = None
    ) -> tuple[str, Callable[[Tensor, object], Tensor]]:
        """Return a hook that exchanges the projection on a basis; None: the whole value.

        `rows` are the pairs that are run; None: all.
        """
        there = self.there if rows is None else self.there[rows]

        def exchange(value: Tensor, hook: object) -> Tensor:
            here = value[self.place.index]
            change = there.to(here) - here
            if basis is not None:
                change = change @ basis @ basis.T
            value = value.clone()
            value[self.place.index] = here + change
            return value

        return self.place.hook, exchange

    def wins(self, basis: Float[Tensor, "d_model rank"] | None) -> Bool[Tensor, " pair"]:
        """Return which pairs give the expected answer when the projection is exchanged."""
        return interventions.wins(self.model, self.pairs, [self.hook(basis)])

    def loss(
        self,
        basis: Float[Tensor, "d_model rank"],
        expected: Int[Tensor, " pair"],
        rows: Int[Tensor, " row"],
    ) -> Float[Tensor, ""]:
        """Return the mean cross-entropy of the expected answer over the whole vocabulary."""
        tokens = self.pairs.base[rows].to(self.device)
        hooks = [self.hook(basis, rows.to(self.device))]
        logits = self.model.run_with_hooks(tokens, fwd_hooks=hooks)[:, -1]
        return functional.cross_entropy(logits.float(), expected[rows].to(self.device))


@dataclass(frozen=True, eq=False)
class _Search:
    rank: int
    steps: int
    lr: float
    generator: torch.Generator

    @torch.inference_mode(False)
    @torch.enable_grad()
    def run(
        self, site: AlignmentSite, expected: Int[Tensor, " pair"], progress: Progress | None
    ) -> tuple[Float[Tensor, "d_model rank"], float]:
        """Learn a basis with Adam; return it and the last loss."""
        raw = _draw(self.generator, site.width, self.rank).to(site.device).requires_grad_()
        optimizer = torch.optim.Adam([raw], lr=self.lr)
        loss = torch.zeros((), dtype=torch.float32)
        for step in range(self.steps):
            rows = torch.randperm(len(expected), generator=self.generator)[:PAIRS_A_STEP]
            loss = site.loss(_orthonormal(raw), expected, rows)
            # The gradient is taken for this leaf only, not for the weights of the model.
            (raw.grad,) = torch.autograd.grad(loss, [raw])
            optimizer.param_groups[0]["lr"] = self.lr * (1 - step / self.steps)
            optimizer.step()
            if progress:
                progress("aligning", step + 1, self.steps)
        return _orthonormal(raw).detach(), loss.item()


def _draw(generator: torch.Generator, width: int, rank: int) -> Float[Tensor, "d_model rank"]:
    # Columns have a length near 1, so that a learning rate means the same at every width.
    return torch.randn(width, rank, generator=generator, dtype=torch.float32) / width**0.5


def _orthonormal(raw: Float[Tensor, "d_model rank"]) -> Float[Tensor, "d_model rank"]:
    return torch.linalg.qr(raw)[0]


def _check_unseen(train: Pairs, test: Pairs) -> None:
    def keys(pairs: Pairs) -> list[tuple]:
        rows = zip(pairs.base.tolist(), pairs.source.tolist(), strict=True)
        return [(tuple(base), tuple(source)) for base, source in rows]

    learned = set(keys(train))
    both = sum(key in learned for key in keys(test))
    if both:
        raise BehaviourError(
            f"{both} of {len(test)} test pairs of {test.name!r} are training pairs; take pairs of "
            "the two causal_abstraction.halves of a behaviour"
        )
    bases = {base for base, _ in learned}
    seen = sum(base in bases for base, _ in keys(test))
    if seen:
        warnings.warn(
            UninformativeWarning(
                f"{seen} of {len(test)} test pairs of {test.name!r} have a base prompt that was "
                "learned from; the accuracy is not all on unseen prompts"
            ),
            stacklevel=3,
        )
