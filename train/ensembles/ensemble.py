"""An ensemble: checkpoints whose probabilities are averaged.

The probability of a token is sum_i w_i p_i(token), with weights w that add up to 1. Averaging
probabilities instead of logits follows NanoGPT Slowrun, where the change gained 0.02 nats. Weights
of the networks themselves can be averaged too (`average_weights`), which makes one model; that is
of use for checkpoints of one run, not for runs that started at different weights.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from train import numerics
from train.data import TokenStore
from train.errors import StoreError, TrainError
from train.model import GPT
from train.runs import Origin, Run
from train.short_repr import short_repr


__all__ = ["Ensemble", "Member", "average_weights", "ensemble_of"]

TOLERANCE = 1e-9  # of the sum of weights


@dataclass(frozen=True)
class Member:
    """One checkpoint of an ensemble."""

    run: Run
    step: int

    __repr__ = short_repr

    def __str__(self) -> str:
        return f"{self.run.path}@{self.step}"

    def load(self) -> GPT:
        """Load the model, on the device that the run was trained on if this machine has one."""
        return self.run.load(self.step).to(numerics.on_this_machine(self.run.numerics).device)

    @property
    def origin(self) -> dict[str, str | int]:
        """Run, step and weights, as a saved result names them."""
        weights = self.run.saved_at(self.step).files["model.safetensors"]
        return {"run_id": self.run.id, "step": self.step, "checkpoint_sha256": weights}


@dataclass(frozen=True)
class Ensemble:
    """Members and the weights of their probabilities; `ensemble_of` checks that they fit.

    Examples:
        >>> ensemble = ensembles.ensemble_of([(run, 1000), run])
        >>> [member.step for member in ensemble.members], ensemble.weights
        ([1000, 2100], (0.5, 0.5))
        >>> tokens = ioi.clean[:1]
        >>> mean = ensemble.log_probabilities(tokens).exp()
        >>> each = [run.load(step)(tokens).softmax(-1) for step in (1000, 2100)]
        >>> bool(torch.allclose(mean, (each[0] + each[1]) / 2, atol=1e-6))
        True
    """

    members: tuple[Member, ...]
    weights: tuple[float, ...]

    __repr__ = short_repr

    @property
    def store(self) -> TokenStore:
        """The token store that all members were trained on."""
        return self.members[0].run.store

    @cached_property
    def models(self) -> list[GPT]:
        """The models of the members, loaded on first use and kept."""
        return [member.load() for member in self.members]

    @torch.inference_mode()
    def log_probabilities(
        self, tokens: Int64[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos vocab"]:
        """Return the logarithm of the members' weighted mean probability of every next token.

        An ensemble of one returns the log-probabilities of its member, bit for bit.
        """
        terms = [
            log_probabilities(member, model, tokens) + (math.log(weight) if weight else -math.inf)
            for member, model, weight in zip(self.members, self.models, self.weights, strict=True)
        ]
        return torch.stack(terms).logsumexp(dim=0)


def ensemble_of(
    checkpoints: Sequence[Run | tuple[Run, int]], *, weights: Sequence[float] | None = None
) -> Ensemble:
    """Return the ensemble of some runs, or of checkpoints of runs.

    Args:
        checkpoints: Runs, of which the last checkpoint counts, or pairs of a run and a step.
        weights: Weights of the members' probabilities, which add up to 1; default: equal ones.

    Raises:
        TrainError: There is no member, a checkpoint is a member twice, a run was not trained here
            or has no such checkpoint, or the weights do not fit.
        StoreError: The runs were trained on different stores, or with different vocabularies.

    Examples:
        >>> ensembles.ensemble_of([run], weights=[1.0]).members[0].step
        2100
    """
    pairs = [one if isinstance(one, tuple) else (one, None) for one in checkpoints]
    members = tuple(Member(run, run.saved_at(step).step) for run, step in pairs)
    if not members:
        raise TrainError("an ensemble was asked for without members; name at least 1 run")
    _check_members(members)
    shares = tuple(weights) if weights is not None else (1 / len(members),) * len(members)
    _check_weights(shares, len(members))
    return Ensemble(members, shares)


def average_weights(ensemble: Ensemble) -> GPT:
    """Return one model whose weights are the weighted mean of those of the members.

    The mean is computed in fp64, so the mean of one checkpoint is the checkpoint, bit for bit.

    Raises:
        TrainError: The members have different architectures.

    Examples:
        >>> mean = ensembles.average_weights(ensembles.ensemble_of([(run, 1000), run]))
        >>> mean.origin.run_id, mean.cfg == run.config
        ('mean of 2 checkpoints', True)
    """
    first = ensemble.members[0]
    for member in ensemble.members:
        if member.run.config != first.run.config:
            raise TrainError(
                f"{first} and {member} have different architectures, so their weights have no "
                "mean; average their probabilities"
            )
    mean = {key: torch.zeros_like(value, dtype=torch.float64) for key, value in
            first.run.load(first.step).state_dict().items()}  # fmt: skip
    for member, share in zip(ensemble.members, ensemble.weights, strict=True):
        for key, value in member.run.load(member.step).state_dict().items():
            mean[key] += share * value.double()
    model = first.run.load(first.step)
    model.load_state_dict(mean)
    digests = [str(member.origin["checkpoint_sha256"]) for member in ensemble.members]
    model.origin = Origin(
        run_id=f"mean of {len(digests)} checkpoints",
        step=max(member.step for member in ensemble.members),
        checkpoint_sha256=hashlib.sha256(repr((digests, ensemble.weights)).encode()).hexdigest(),
        knowledge=first.run.knowledge,
    )
    return model.to(numerics.on_this_machine(first.run.numerics).device)


def log_probabilities(
    member: Member, model: GPT, tokens: Int64[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos vocab"]:
    """Return the log-probabilities of a model, computed with the precision of the member's run."""
    how = numerics.on_this_machine(member.run.numerics)
    with numerics.applied(how), how.autocast():
        # In fp32, as in the training loss.
        return model(tokens.to(how.device)).float().log_softmax(dim=-1)


def check_same_store(first: Member, member: Member) -> None:
    """Raise an error if a member was not trained here on the store of the first."""
    if member.run.knowledge != "full":
        raise TrainError(
            f"{member} was trained elsewhere, and an ensemble is measured on what its runs held "
            "out; name runs that were trained here"
        )
    for key, what in (("fingerprint", "store"), ("tokenizer_sha256", "vocabulary")):
        mine, other = (one.run.predicate["data"][key] for one in (first, member))
        if mine != other:
            raise StoreError(
                f"{first} was trained on the {what} {mine[:12]}... and {member} on "
                f"{other[:12]}...; runs that are compared need the same"
            )


def _check_members(members: tuple[Member, ...]) -> None:
    seen = set[tuple[str, int]]()
    for member in members:
        if (key := (member.run.id, member.step)) in seen:
            raise TrainError(
                f"step {member.step} of run {member.run.id} is a member twice ({member}); name "
                "every checkpoint once"
            )
        seen.add(key)
        check_same_store(members[0], member)
        if member.run.store.tuning:
            raise StoreError(
                f"{member} was tuned on {member.run.store.tuning}, whose examples an ensemble does "
                "not tell apart; average runs that were trained on text"
            )


def _check_weights(weights: tuple[float, ...], n_members: int) -> None:
    fit = len(weights) == n_members and all(weight >= 0 for weight in weights)
    if not fit or abs(sum(weights) - 1) > TOLERANCE:
        raise TrainError(
            f"weights of {n_members} members are {n_members} numbers from 0 on that add up to 1; "
            f"there are {len(weights)} with the sum {sum(weights):.6g}"
        )
