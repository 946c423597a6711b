"""Evaluation of lenses on tokens that they were not fitted to.

Three numbers per layer, in bits per token (Belrose et al. 2023, section 3). The reading is the
next-token distribution that the lens gives at that layer:

    kl              mean over tokens of KL(model || reading)
    cross_entropy   cross-entropy of the reading on the token that came next
    bias            KL(mean distribution of the model || mean distribution of the readings): the
                    error that does not depend on the token

Each is computed for the logit lens, the tuned lens, and a control: translators of the same size,
fitted on a model that was never trained. Intervals take windows as cases, because the tokens of one
window are not independent.
"""

from dataclasses import asdict, dataclass
from math import log
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp import plots
from interp.components import device_of
from interp.errors import ModelError
from interp.lenses import logit_lens, tuned_lens
from interp.lenses.logit_lens import LOGITS_AT_ONCE, Translate
from interp.lenses.tokens import LensTokens
from interp.lenses.tuned_lens import TunedLens
from interp.results import Provenance, Result, provenance
from train import storage
from train.model import GPT
from train.progress import Progress, count
from train.statistics import Average, ratio_of_averages


if TYPE_CHECKING:
    import pandas

__all__ = ["LENSES", "LensEvaluation", "evaluate_lens"]

SCHEMA = "openbook.lens_evaluation/1"
LENSES = ("logit", "tuned", "control")
# Number of groups of windows for which a mean distribution is kept: 64 of 50,257 tokens are 13 MB.
GROUPS = 64


@dataclass(frozen=True, eq=False)
class LensEvaluation(Result):
    """Evaluation of each of `LENSES` at each layer, in bits per token, on windows not fitted to.

    Attributes:
        kl: KL(model || reading), [lens layer].
        cross_entropy: Cross-entropy of the reading on the next token, [lens layer].
        bias: KL between the mean distributions, [lens layer]; its cases are groups of windows.
        gain: KL of the logit lens minus KL of the tuned lens, paired by window, [layer].
        model_bits: Cross-entropy of the model itself.
        n_tokens: Number of targets.
        region: "held-out", or "training" if the model may have been trained on these tokens.
        provenance: Model and software that it was computed with.
    """

    schema: ClassVar[str] = SCHEMA
    meaning: ClassVar[str] = (
        "A lens evaluation shows how near the readings of a lens come to the model's own "
        "output; it does not show that the model computes what a lens reads."
    )

    kl: Average
    cross_entropy: Average
    bias: Average
    gain: Average
    model_bits: Average
    n_tokens: int
    region: str
    provenance: Provenance

    @property
    def n(self) -> int:
        """Number of windows."""
        return self.kl.n

    def __repr__(self) -> str:
        logit, tuned, _ = (", ".join(f"{v:.2f}" for v in row) for row in self.kl.values.tolist())
        about = f"{count(self.n_tokens, f'{self.region} token')} in {count(self.n, 'window')}"
        return f"Evaluation({about}; bits to the model by layer: logit {logit}; tuned {tuned})"

    def to_frame(self) -> "pandas.DataFrame":
        """Return a pandas frame with a row per lens and layer: each measure with its interval."""
        import pandas

        n_layers = self.kl.values.shape[1]
        columns = {name: getattr(self, name) for name in ("kl", "cross_entropy", "bias")}
        return pandas.DataFrame(
            {
                "lens": [lens for lens in LENSES for _ in range(n_layers)],
                "layer": list(range(n_layers)) * len(LENSES),
                **{k: v for name, one in columns.items() for k, v in one.columns(name).items()},
            }
        )

    def plot(self) -> "plots.Figure":
        """Plot the KL by layer, one line per lens."""
        names = ("logit lens", "tuned lens", "never trained, translated")
        return plots.curves(
            [f"L{layer}" for layer in range(self.kl.values.shape[1])],
            {name: self.kl.at(index) for index, name in enumerate(names)},
            title=f"{count(self.n_tokens, f'{self.region} token')} in {count(self.n, 'window')}",
            unit="KL(model || reading), bits a token",
        )

    def to_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        names = ("kl", "cross_entropy", "bias", "gain", "model_bits")
        return {
            "schema": SCHEMA,
            "unit": "bits a token",
            "lenses": list(LENSES),
            "n": self.n,
            **{name: getattr(self, name).to_dict() for name in names},
            "n_tokens": self.n_tokens,
            "region": self.region,
            "provenance": asdict(self.provenance),
        }

    @classmethod
    def from_dict(cls, content: storage.JsonObject) -> "LensEvaluation":
        """Return the result that `to_dict` turned into plain values."""
        names = ("kl", "cross_entropy", "bias", "gain", "model_bits")
        return cls(
            *(Average.from_dict(content[name]) for name in names),
            n_tokens=content["n_tokens"],
            region=content["region"],
            provenance=Provenance(**content["provenance"]),
        )


@torch.inference_mode()
def evaluate_lens(
    model: GPT, lens: TunedLens, windows: LensTokens, *, progress: Progress | None = None
) -> LensEvaluation:
    """Evaluate the logit lens, the tuned lens and the control on the windows left out of the fit.

    Costs one forward pass of the model and one of the untrained control over these windows, and
    three unembeddings per layer.

    Args:
        model: The hooked model that the lens was fitted to.
        lens: From `fit_tuned_lens` or `load_tuned_lens`.
        windows: The windows that `fit_tuned_lens` was given.
        progress: Called with the number of windows done.

    Raises:
        ModelError: The lens was fitted to other weights or to other windows.
    """
    tuned_lens.of_this(model, lens)
    fit = lens.fit
    asked = (windows.fingerprint, windows.region, windows.n_fit)
    if asked != (fit.store_fingerprint, fit.region, fit.windows):
        raise ModelError(
            f"the lens was fitted to {fit.windows} {fit.region} windows of store "
            f"{fit.store_fingerprint[:12]}, and these keep {windows.n_fit} {windows.region} ones "
            f"of {windows.fingerprint[:12]} for that; give the windows it was fitted with"
        )
    untrained = tuned_lens.untrained(model, fit.seed)
    rows = list(windows.to_test)
    tally = LensTally(model, len(rows))
    for done, row in enumerate(rows):
        inputs, counted = windows.batch([row], device_of(model))
        next_tokens = windows.next_tokens[row].to(inputs.device)[counted[0]]
        own = tuned_lens.streams(model, inputs, counted)
        control = tuned_lens.streams(untrained, inputs, counted)
        tally.add(done, own, control, next_tokens, (None, lens.translators, lens.control))
        if progress:
            progress("testing", done + 1, len(rows))
    return tally.evaluation(fit.region, provenance(model, None, seed=fit.seed))


class LensTally:
    """Running sums: KL and cross-entropy by window, probabilities by group of windows."""

    def __init__(self, model: GPT, n_windows: int) -> None:
        n_layers, self.model = model.cfg.n_layers, model
        self.n_groups = min(GROUPS, n_windows)
        self.group_of = np.arange(n_windows) * self.n_groups // n_windows
        shape = (len(LENSES), n_layers, n_windows)
        self.kl, self.cross, self.own = np.zeros(shape), np.zeros(shape), np.zeros(n_windows)
        self.tokens = np.zeros(n_windows)
        like = {"dtype": torch.float32, "device": device_of(model)}
        vocab = model.cfg.d_vocab
        self.model_mean = torch.zeros(self.n_groups, vocab, **like)
        self.means = torch.zeros(len(LENSES), n_layers, self.n_groups, vocab, **like)

    def add(
        self,
        window: int,
        own: list[Tensor],
        control: list[Tensor],
        next_tokens: Tensor,
        translates: tuple[Translate | None, ...],
    ) -> None:
        size, group = max(1, LOGITS_AT_ONCE // self.model.cfg.d_vocab), self.group_of[window]
        for some in torch.arange(len(next_tokens), device=next_tokens.device).split(size):
            target = next_tokens[some, None]
            log_p = self._log_chances(own[-1][some])
            self.own[window] -= log_p.gather(1, target).double().sum().item()
            self.tokens[window] += len(some)
            self.model_mean[group] += log_p.exp().sum(dim=0)
            for lens, (streams, translate) in enumerate(
                zip((own, own, control), translates, strict=True)
            ):
                for layer in range(self.kl.shape[1]):
                    stream = streams[layer][some]
                    log_q = self._log_chances(translate(layer, stream) if translate else stream)
                    kl = (log_p.exp() * (log_p - log_q)).double().sum().item()
                    self.kl[lens, layer, window] += kl
                    paid = -log_q.gather(1, target).double().sum().item()
                    self.cross[lens, layer, window] += paid
                    self.means[lens, layer, group] += log_q.exp().sum(dim=0)

    def _log_chances(self, stream: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
        return logit_lens.unembed(self.model, stream).float().log_softmax(-1)

    def evaluation(self, region: str, about: Provenance) -> LensEvaluation:
        def mean(sums: np.ndarray) -> Average:
            return ratio_of_averages(sums / log(2), self.tokens)

        return LensEvaluation(
            kl=mean(self.kl),
            cross_entropy=mean(self.cross),
            bias=self.bias(),
            gain=mean(self.kl[0] - self.kl[1]),
            model_bits=mean(self.own),
            n_tokens=int(self.tokens.sum()),
            region=region,
            provenance=about,
        )

    def bias(self) -> Average:
        """Return the KL between the mean distributions, in bits, corrected for sampling noise.

        Two means estimated from samples differ even if the true ones are equal, so the plain KL is
        too high: when groups of windows were resampled, it lay below its own interval. The
        jackknife's pseudo-values n KL - (n - 1) KL_without_i (Tukey 1958) remove this bias to first
        order, and their mean gets an interval like any other mean.
        """
        n = self.n_groups
        # Weights of the groups: the first row keeps all of them, row i leaves out group i - 1.
        kept = np.concatenate([np.ones((1, n)), 1 - np.eye(n)])
        pseudo = np.zeros((*self.kl.shape[:2], n))
        for lens, layer in np.ndindex(self.kl.shape[:2]):
            p, q = (
                kept @ sums.double().cpu().numpy()
                for sums in (self.model_mean, self.means[lens, layer])
            )
            p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
            # fp32 probabilities can round to 0; adding 1e-30 makes 0 log 0 equal 0.
            kl = (p * (np.log2(p + 1e-30) - np.log2(q + 1e-30))).sum(axis=1)
            pseudo[lens, layer] = n * kl[0] - (n - 1) * kl[1:]
        return ratio_of_averages(pseudo, np.ones(n))
