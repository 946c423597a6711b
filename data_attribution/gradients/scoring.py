"""From gradients of documents and of prompts to one score a document.

A document whose loss pulls the weights to where a question scores higher speaks for the question:
its score is minus the product of its gradient with the question's. Of gradients of the loss, that
is what one more step of gradient descent on the document would add to the question's mean, by unit
of learning rate; in Adam's metric, one step of that optimizer. Of gradients of log-odds it is no
such change, for training never followed them: a score to rank by, and no effect to expect.

* product: as above. Long documents win and, by their loss, those that the model finds surprising,
  whatever is asked.
* cosine: by unit gradient of the document (TrackStar; Pezeshkpour et al. 2021). Which way it
  pulls, not how hard.

Intervals are over the question's prompts: what another draw of prompts would give.
"""

import numpy as np
from jaxtyping import Float64
from torch import Tensor

from data_attribution.errors import EvidenceError
from data_attribution.gradients.collecting import Features
from interp.results import averages
from interp.results.averages import Average


__all__ = ["averaged", "products"]

ROWS = 4096  # documents whose gradients are in memory as fp32


def products(
    asked: Features, given: Features, *, unit: bool = False
) -> Float64[np.ndarray, "document prompt"]:
    """How much each document speaks for each prompt.

    Args:
        asked: Of prompts.
        given: Of documents, under the same projections.
        unit: Divide by the length of the document's gradient and by that of the mean prompt's, so
            that the mean over prompts is a cosine. A document without gradient scores 0.

    Raises:
        EvidenceError: The two were projected differently.
    """
    ours, theirs = ((one.blocks, one.rank, one.seed) for one in (asked, given))
    if ours != theirs:
        raise EvidenceError(
            f"gradients of {len(asked.blocks)} sites at rank {asked.rank} (seed {asked.seed}) "
            f"cannot be compared with those of {len(given.blocks)} at rank {given.rank} (seed "
            f"{given.seed}); collect both with the same selection, rank and seed"
        )
    prompts = asked.values.astype(np.float32).T
    length = np.linalg.norm(prompts.mean(axis=1, dtype=np.float64)) if unit else 1.0
    found = np.empty((len(given.rows), len(asked.rows)))
    for first in range(0, len(found), ROWS):
        values = given.values[first : first + ROWS].astype(np.float32)
        part = -(values @ prompts).astype(np.float64)
        if unit:
            whole = length * np.linalg.norm(values, axis=1, keepdims=True)
            part = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
        found[first : first + ROWS] = part
    return found


def averaged(scores: Float64[np.ndarray, "document prompt"], tokens: Tensor) -> Average:
    """Mean over prompts with its 95 % interval; rows of one and the same prompt are one case.

    Args:
        tokens: The question's prompts.
    """
    return averages.over_prompts(scores, averages.prompts_of(tokens))
