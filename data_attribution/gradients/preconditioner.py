"""Metrics for comparing gradients: how much each direction in weight space counts.

The plain inner product of two gradients is what one step of gradient descent on one document would
change. There are two corrections, each symmetric, so that a cosine in the new metric makes sense as
well:

* `adam`: training did not descend along gradients but along m / sqrt(v). With v of the checkpoint's
  own optimizer, <q, d / sqrt(v)> is one step of *that* optimizer. The v of a matrix is replaced by
  the outer product of its row and column means (Adafactor, Shazeer & Stern 2018, eq. 4), as
  TrackStar does (Chang et al. 2024, https://arxiv.org/abs/2410.17413), because only a product of an
  output and an input factor can be applied before the projection. Each side gets v^(-1/4).
* `curvature`: the loss is steeper along some directions, and along these a document's pull is
  undone sooner by the other documents. Influence is <q, (C + damping)^-1 d> with C the Gauss-Newton
  matrix (Koh & Liang 2017; EK-FAC, Grosse et al. 2023, https://arxiv.org/abs/2308.03296). For
  cross-entropy that is the Fisher matrix, the second moment of gradients whose targets the model
  draws itself (Martens 2020, https://arxiv.org/abs/1412.1193); the targets of the corpus would give
  another matrix, the "empirical Fisher" (Kunstner et al. 2019, https://arxiv.org/abs/1905.12558).
  Here it is that of projected gradients, one block per site, as in LoGra (Choe et al. 2024,
  https://arxiv.org/abs/2405.13954), from one draw per target. Each side gets (C + damping)^(-1/2).

Neither is exact: both treat the last checkpoint as if it were the whole training.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from data_attribution.errors import EvidenceError
from data_attribution.gradients.features import Features
from data_attribution.gradients.projection import Sides
from data_attribution.gradients.weight_selection import Selection, Site
from train import runs
from train.runs import Run
from train.short_repr import short_repr


__all__ = [
    "DAMPING",
    "Curvature",
    "adam",
    "curvature",
    "factored",
    "missing_moments",
    "refuse_missing_moments",
    "refuse_muon",
]

DAMPING = 0.1

PARAMETER = {
    "embed": "embed",
    "pos_embed": "pos_embed",
    "qkv": "attn.qkv",
    "o": "attn.out",
    "gate": "mlp.gate",
    "up": "mlp.up",
    "down": "mlp.down",
}


@dataclass(frozen=True, eq=False)
class Curvature:
    """The inverse square root of a damped second moment, one block per site.

    Attributes:
        roots: Block of each site.
        n: Number of gradients it was estimated from.
        damping: Share of the mean eigenvalue that was added to all eigenvalues.
    """

    roots: dict[str, Float[np.ndarray, "part part"]]
    n: int
    damping: float

    __repr__ = short_repr

    def applied(self, features: Features) -> Features:
        """Return features whose inner products are those of the old ones in the inverse metric.

        Raises:
            EvidenceError: A site has no block here.
        """
        missing = set(features.sites) - set(self.roots)
        if missing:
            raise EvidenceError(
                f"the curvature of {sorted(missing)[0]!r} was not estimated; estimate it from "
                "gradients of the same selection"
            )
        values = np.empty_like(features.values)
        for name, start, stop in features.blocks:
            root = self.roots[name].astype(np.float32)
            values[:, start:stop] = features.values[:, start:stop].astype(np.float32) @ root
        return replace(features, values=values)


def curvature(sample: Features, *, damping: float = DAMPING) -> Curvature:
    """Return the inverse square root of the loss curvature, block by block.

    Costs, per site, a product of [document part] with itself and an eigendecomposition of [part
    part]: 0.02 s for 2,000 documents and 256 numbers.

    Args:
        sample: Gradients of documents like those that the run read, with targets that the model
            drew (`features.document_features(..., drawn=seed)`).
        damping: Share of the block's mean eigenvalue that is added to every eigenvalue. With fewer
            documents than a block has numbers, it alone decides about all directions that occur in
            none of them.

    Raises:
        EvidenceError: The damping is not above 0, or all gradients are zero.
    """
    if not damping > 0:
        raise EvidenceError(f"damping {damping:g} leaves the curvature singular; give more than 0")
    roots = {}
    for name in sample.sites:
        part = sample.of(name).astype(np.float64)
        moment = part.T @ part / len(part)
        mean = np.trace(moment) / len(moment)
        if not mean > 0:
            raise EvidenceError(
                f"the {len(part)} sampled gradients of {name!r} are all zero; is it used at all?"
            )
        eigenvalues, vectors = np.linalg.eigh(moment)
        scale = (eigenvalues.clip(min=0) + damping * mean) ** -0.5
        roots[name] = (vectors * scale) @ vectors.T
    return Curvature(roots, len(sample.rows), damping)


def adam(run: Run, selection: Selection, *, step: int | None = None) -> dict[str, Sides]:
    """Return the factors of every site that turn products of gradients into steps of Adam.

    Args:
        step: Step of a checkpoint that kept its optimizer; None: the last, which always did.

    Raises:
        EvidenceError: The checkpoint kept no optimizer, no step had been made yet, or the optimizer
            is Muon.
    """
    refuse_missing_moments(run, step=step)
    saved = run.saved_at(step)
    state = runs.read_tensors(run.path, saved, "optimizer.safetensors")
    tie, decay, eps = run.recipe.model.tie, run.recipe.beta2, run.recipe.eps
    return {
        site.name: factored(_moments(state, site, tie) / (1 - decay**saved.step), eps)
        for site in selection.sites
    }


def missing_moments(run: Run, *, step: int | None = None) -> str:
    """Return why a checkpoint holds no second moments of gradients; "" if it holds them.

    Args:
        step: Step of the checkpoint; None: the last.

    Examples:
        >>> gradients.missing_moments(run)
        'the checkpoint at step 2100 holds no second moments of gradients'
    """
    if run.recipe.optimizer != "adamw":
        return (
            f"the run was trained with {run.recipe.optimizer}, which keeps no second moments of "
            "gradients"
        )
    saved = run.saved_at(step)
    if saved.resumable and saved.step:
        return ""
    return f"the checkpoint at step {saved.step} holds no second moments of gradients"


def refuse_missing_moments(run: Run, *, step: int | None = None) -> None:
    """Raise an EvidenceError if a checkpoint holds no second moments of gradients.

    Examples:
        >>> from data_attribution.gradients import preconditioner
        >>> preconditioner.refuse_missing_moments(run)
        Traceback (most recent call last):
            ...
        data_attribution.errors.EvidenceError: the checkpoint at step 2100 holds no second moments \
of gradients; those at no step do; name no method, or take gradient:kind=curvature, which needs none
    """
    refuse_muon(run)
    if missing := missing_moments(run, step=step):
        kept = [one.step for one in run.saved if one.resumable and one.step]
        raise EvidenceError(
            f"{missing}; those at {', '.join(map(str, kept)) or 'no step'} do; name no method, or "
            "take gradient:kind=curvature, which needs none"
        )


def refuse_muon(run: Run) -> None:
    """Raise an EvidenceError if the run was trained with Muon, which keeps no second moments.

    Examples:
        >>> from data_attribution.gradients import preconditioner
        >>> preconditioner.refuse_muon(run)
    """
    if run.recipe.optimizer != "adamw":
        raise EvidenceError(
            f"the run {run.path} was trained with {run.recipe.optimizer}, which keeps no second "
            "moments of gradients; compare by 'curvature', 'cosine' or 'dot', as in "
            "gradient:kind=curvature, and store gradients of the metric 'plain'"
        )


def factored(moments: Float[Tensor, "out in"], eps: float) -> Sides:
    """Return two vectors whose outer product is moments^(-1/4), exact for moments of rank one.

    Where a row or column has no moment at all, sqrt(moment) counts as `eps`, as in Adam.
    """
    moments = moments.double()
    root = moments.mean().sqrt().clamp(min=eps)
    rows, columns = moments.mean(dim=1) / root, moments.mean(dim=0) / root
    return (rows.clamp(min=eps) ** -0.25).float(), (columns.clamp(min=eps) ** -0.25).float()


def _moments(state: dict[str, Tensor], site: Site, tie: bool) -> Float[Tensor, "out in"]:
    """Return Adam's second moments of a site, with those of the bias as the last column."""
    if site.matrix in ("embed", "pos_embed", "unembed"):
        name = "embed" if site.matrix == "unembed" and tie else site.matrix
        table = state[f"{name}.weight.exp_avg_sq"]
        whole = table if site.matrix == "unembed" else table.T
        return whole[slice(*site.rows), slice(*site.columns)]
    name = f"blocks.{site.layer}.{PARAMETER[site.matrix]}"
    weight = state[f"{name}.weight.exp_avg_sq"][slice(*site.rows), slice(*site.columns)]
    if not site.bias:
        return weight
    bias = state[f"{name}.bias.exp_avg_sq"][slice(*site.rows)]
    return torch.cat([weight, bias[:, None]], dim=1)
