"""Random projections that reduce a gradient to few numbers without ever forming it.

The gradient of a weight is a sum of outer products, output gradient times activation, one per
position. P_out and P_in project the two factors, so that P_out G P_in^T, `rank` by `rank`, costs a
sum over positions of outer products of vectors of length `rank` (LoGra, Choe et al. 2024,
https://arxiv.org/abs/2405.13954). Inner products between gradients are preserved in expectation.

Entries are +-1 / sqrt(rank), drawn from a Philox stream that is keyed by the seed, the name of the
site and the side: the same bits on every machine, whatever else is selected. A side that is no
wider than the rank is not projected.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from data_attribution.errors import EvidenceError
from data_attribution.gradients.weight_selection import Selection, Site
from train.short_repr import short_repr


__all__ = ["RANK", "Projection", "Sides", "projections", "shape", "signs"]

RANK = 16

# Multipliers of the two factors before they are projected: (outputs, inputs with the bias last). A
# vector multiplies entry by entry, a square matrix as a matrix.
Sides = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Projection:
    """The two projection matrices of a site; None leaves a side unprojected."""

    out: Float[Tensor, "p out"] | None
    inside: Float[Tensor, "q in"] | None

    __repr__ = short_repr


def shape(site: Site, rank: int) -> tuple[int, int]:
    """Return the rows and columns of the projected gradient."""
    return min(rank, site.height), min(rank, site.width)


def projections(
    selection: Selection,
    *,
    rank: int = RANK,
    seed: int = 0,
    sides: Mapping[str, Sides] | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Projection]:
    """Return the projection of every site, by name.

    Args:
        sides: Multipliers of both factors of a site before projection, for gradients in another
            metric.

    Raises:
        EvidenceError: The rank is below 1, or a multiplier does not fit its site.
    """
    if rank < 1:
        raise EvidenceError(f"a projection of rank {rank} keeps nothing; give 1 or more")
    made = {}
    for site in selection.sites:
        out, inside = (sides or {}).get(site.name, (None, None))
        made[site.name] = Projection(
            _side(site, "out", site.height, rank, seed, out, device),
            _side(site, "in", site.width, rank, seed, inside, device),
        )
    return made


def signs(seed: int, site: str, side: str, rank: int, width: int) -> Float[Tensor, "rank width"]:
    """Return a matrix of +-1 / sqrt(rank).

    The columns are drawn one after another, so a wider side begins with the same columns.
    """
    key = int.from_bytes(hashlib.sha256(f"{seed}/{site}/{side}/{rank}".encode()).digest()[:16])
    words = np.random.Philox(key=key).random_raw(-(-rank * width // 64)).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")[: rank * width]
    drawn = torch.from_numpy(bits.reshape(width, rank).T.astype(np.float32))
    return ((2 * drawn - 1) / rank**0.5).contiguous()


def _side(
    site: Site,
    side: str,
    width: int,
    rank: int,
    seed: int,
    before: Tensor | None,
    device: torch.device | str,
) -> Tensor | None:
    kept = None if width <= rank else signs(seed, site.name, side, rank, width)
    if before is None:
        return None if kept is None else kept.to(device)
    if before.shape not in ((width,), (width, width)):
        raise EvidenceError(
            f"{site.name}: what multiplies side {side!r} has shape {tuple(before.shape)}; it must "
            f"be {width} or {width} x {width}"
        )
    before = before.to(torch.float32)
    kept = torch.eye(width, dtype=torch.float32) if kept is None else kept
    return (kept * before if before.ndim == 1 else kept @ before).contiguous().to(device)
