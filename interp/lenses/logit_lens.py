"""Logit lens: the output that the model would give if it stopped at a layer.

The residual stream entering each layer is put through the final norm and the unembedding
(nostalgebraist 2020, "interpreting GPT: the logit lens"). The last reading uses the stream that
leaves the last layer, so it is the model's own output. Early layers need not use the same basis as
the last one; `interp.lenses.tuned_lens` learns a translation.

Control: the same readings of an untrained model with the same architecture.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp import behaviours, plots
from interp.behaviours import Behaviour
from interp.components import HookedModel, device_of, read_weights
from interp.errors import BehaviourError, EffectsError
from interp.results import Provenance, Result, provenance
from train import storage
from train.errors import nearest
from train.model import GPT, init_gpt
from train.progress import Progress, count
from train.statistics import Average, over_prompts, shares


if TYPE_CHECKING:
    import pandas

__all__ = ["MEASURES", "Readings", "Translate", "depths", "logit", "positions_of", "read"]
__all__ += ["readings", "unembed"]

SCHEMA = "openbook.readings/1"
# Name of each measure, and its unit.
MEASURES = {
    "logit_difference": "logit of the answer minus logit of the foil",
    "log_probability": "log-probability of the answer, nats",
    "rank": "tokens ahead of the answer",
    "top1": "share of prompts with the answer first",
    "kl": "KL(model || reading), nats",
}
# Largest number of logits in memory: 2^25 fp32 values are 134 MB.
LOGITS_AT_ONCE = 1 << 25

# Maps a depth and its residual stream to the stream that is unembedded.
Translate = Callable[[int, Float[Tensor, "row d_model"]], Float[Tensor, "row d_model"]]


@dataclass(frozen=True, eq=False)
class Readings(Result):
    """Readings of a lens on a behaviour's clean prompts, by depth and position.

    Attributes:
        kind: "logit" or "tuned".
        places: Name of each depth: the stream entering each layer, then that leaving the last one.
        positions: Positions that were read, counted from 0.
        pos_labels: Their tokens in the first prompt; empty if the model has no tokenizer.
        measures: Mean over prompts of each of `MEASURES`, [depth pos].
        control: The same for an untrained model.
        provenance: Model, behaviour and software that they were computed with.
    """

    schema: ClassVar[str] = SCHEMA
    meaning: ClassVar[str] = (
        "A reading shows what the model would answer if it stopped at a layer; it does not "
        "show that later layers use it, nor that an early layer writes in the basis of the "
        "last."
    )

    kind: str
    places: tuple[str, ...]
    positions: tuple[int, ...]
    pos_labels: tuple[str, ...]
    measures: dict[str, Average]
    control: dict[str, Average]
    provenance: Provenance

    def __repr__(self) -> str:
        last = self.measures["log_probability"].values[:, -1].tolist()
        shown = ", ".join(
            f"{place} {value:.2f}" for place, value in zip(self.places, last, strict=True)
        )
        about = f"{self.provenance.behaviour!r}, {self.kind} lens, {count(self.n, 'prompt')}"
        return f"Readings({about}; log-probability of the answer: {shown})"

    @property
    def n(self) -> int:
        """Number of distinct prompts."""
        return self.measures["kl"].n

    @property
    def units(self) -> dict[str, str]:
        """Unit of each measure."""
        return MEASURES

    def at(self, place: str, measure: str, pos: int = -1) -> Average:
        """Return one mean with its interval; `pos` is one of `positions`, or -1 for the last one.

        Raises:
            EffectsError: There is no such depth, measure or position.
        """
        for asked, known in ((place, self.places), (measure, tuple(self.measures))):
            if asked not in known:
                raise EffectsError(f"no {asked!r} was read{nearest(asked, known)}")
        pos = self.positions[-1] if pos == -1 else pos
        if pos not in self.positions:
            raise EffectsError(f"position {pos} was not read; these were: {list(self.positions)}")
        return self.measures[measure].at(self.places.index(place), self.positions.index(pos))

    def to_frame(self) -> "pandas.DataFrame":
        """Return a pandas frame with a row per measure, depth and position.

        Its columns hold the value and the control, each with the ends of its interval.
        """
        import pandas

        rows = [(place, pos) for place in self.places for pos in self.positions]
        frames = [
            pandas.DataFrame(
                {
                    "measure": name,
                    "place": [place for place, _ in rows],
                    "pos": [pos for _, pos in rows],
                    **self.measures[name].columns("value"),
                    **self.control[name].columns("control"),
                }
            )
            for name in self.measures
        ]
        return pandas.concat(frames, ignore_index=True)

    def plot(self, measure: str = "logit_difference") -> "plots.Figure":
        """Plot a measure over depth with its control or, for several positions, a heat map.

        Raises:
            EffectsError: There is no such measure.
        """
        if measure not in self.measures:
            raise EffectsError(f"no {measure!r} was read{nearest(measure, self.measures)}")
        title = f"{self.provenance.behaviour}: {self.kind} lens, n={self.n}"
        found, control = self.measures[measure], self.control[measure]
        if len(self.positions) == 1:
            series = {self.kind: found.at(..., 0), "never trained": control.at(..., 0)}
            return plots.curves(self.places, series, title=title, unit=self.units[measure])
        labels = self.pos_labels or [""] * len(self.positions)
        columns = zip(self.positions, labels, strict=True)
        return plots.heat_map(
            [[round(value, 4) for value in row] for row in found.values.tolist()],
            list(self.places),
            [f"{pos} {label}".strip() for pos, label in columns],
            title=title,
            unit=self.units[measure],
            axes=("position", "place"),
        )

    def to_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {
            "schema": SCHEMA,
            "kind": self.kind,
            "places": list(self.places),
            "positions": list(self.positions),
            "pos_labels": list(self.pos_labels),
            "units": self.units,
            "n": self.n,
            "measures": {name: one.to_dict() for name, one in self.measures.items()},
            "control": {name: one.to_dict() for name, one in self.control.items()},
            "provenance": asdict(self.provenance),
        }

    @classmethod
    def from_dict(cls, content: storage.JsonObject) -> "Readings":
        """Return the result that `to_dict` turned into plain values."""
        measures, control = (
            {name: Average.from_dict(one) for name, one in content[side].items()}
            for side in ("measures", "control")
        )
        return cls(
            kind=content["kind"],
            places=tuple(content["places"]),
            positions=tuple(content["positions"]),
            pos_labels=tuple(content["pos_labels"]),
            measures=measures,
            control=control,
            provenance=Provenance(**content["provenance"]),
        )


def logit(
    model: HookedModel,
    behaviour: Behaviour,
    *,
    positions: Sequence[int] | None = (-1,),
    seed: int = 0,
    progress: Progress | None = None,
) -> Readings:
    """Read the clean prompts of a behaviour at every depth with the logit lens.

    Costs a forward pass of the model and one of the untrained control over the clean prompts, and
    an unembedding for each depth and position.

    Args:
        model: A hooked model, from `interp.models.load`.
        behaviour: Behaviour whose clean prompts are read, with its answers and foils.
        positions: Positions to read; negative ones count from the end. None: all.
        seed: Random seed for the weights of the control.
        progress: Called with the number of depths done.

    Raises:
        ModelError: The model is one of another library.
        CapabilityError: The model does not do the behaviour.
        BehaviourError: The prompts have no such position.

    Examples:
        >>> readings = lenses.logit(model, ioi)
        >>> readings.places
        ('L0.resid_pre', 'L1.resid_pre', 'L1.resid_post')
        >>> sorted(readings.measures)
        ['kl', 'log_probability', 'logit_difference', 'rank', 'top1']
    """
    model = read_weights(model, "the logit lens")
    behaviours.check(model, behaviour)
    untrained = init_gpt(model.cfg, seed).to(device_of(model)).eval()
    where = positions_of(behaviour, positions)
    return readings(
        model,
        behaviour,
        where,
        kind="logit",
        seed=seed,
        found=read(model, model, behaviour, where, progress=progress),
        control=read(untrained, untrained, behaviour, where),
    )


def readings(
    model: GPT,
    behaviour: Behaviour,
    positions: tuple[int, ...],
    *,
    kind: str,
    seed: int,
    found: dict[str, Average],
    control: dict[str, Average],
) -> Readings:
    """Assemble readings from the measures, and name their depths and positions."""
    tokens = behaviour.clean[0, list(positions)].tolist()
    return Readings(
        kind=kind,
        places=depths(model),
        positions=positions,
        pos_labels=tuple(model.tokenizer.tokens(tokens)) if model.tokenizer else (),
        measures=found,
        control=control,
        provenance=provenance(model, behaviour, seed=seed),
    )


def depths(model: GPT) -> tuple[str, ...]:
    """Name the depths: `L0.resid_pre`, `L1.resid_pre` and so on, then `L<last>.resid_post`."""
    n_layers = model.cfg.n_layers
    return (*(f"L{i}.resid_pre" for i in range(n_layers)), f"L{n_layers - 1}.resid_post")


def positions_of(behaviour: Behaviour, positions: Sequence[int] | None) -> tuple[int, ...]:
    """Return the positions counted from 0; None stands for all of them.

    Raises:
        BehaviourError: The prompts have no such position, or `positions` is empty.
    """
    n_pos = behaviour.n_pos
    asked = tuple(range(n_pos)) if positions is None else tuple(positions)
    wrong = [pos for pos in asked if not -n_pos <= pos < n_pos]
    if wrong or not asked:
        raise BehaviourError(
            f"position {wrong[0] if wrong else 'none'} was asked, and the prompts of "
            f"{behaviour.name!r} have {n_pos}, from 0 to {n_pos - 1}"
        )
    return tuple(pos % n_pos for pos in asked)


@torch.inference_mode()
def read(
    features: GPT,
    model: GPT,
    behaviour: Behaviour,
    positions: tuple[int, ...],
    *,
    translate: Translate | None = None,
    progress: Progress | None = None,
) -> dict[str, Average]:
    """Compute each of `MEASURES` by [depth pos] from the streams of `features`.

    They are unembedded by `model`, and the KL is against the output of `model`. The two are the
    same model except for the control of a tuned lens, whose streams come from an untrained model.
    """
    streams = _streams(features, behaviour, positions)
    final = streams[-1] if features is model else _streams(model, behaviour, positions)[-1]
    row_of = torch.arange(behaviour.n_prompts).repeat_interleave(len(positions))
    found = []
    for depth, stream in enumerate(streams):
        rows = (depth, stream, final, row_of)
        found.append(_measured(model, behaviour, rows, translate))
        if progress:
            progress("reading", depth + 1, len(streams))
    # [depth measure prompt pos] to [measure depth pos prompt]
    scores = np.stack(found).reshape(len(streams), len(MEASURES), -1, len(positions))
    scores = scores.transpose(1, 0, 3, 2)
    prompts = np.array(behaviour.cases)
    return {
        name: shares(one, prompts) if name == "top1" else over_prompts(one, prompts)
        for name, one in zip(MEASURES, scores, strict=True)
    }


def unembed(model: GPT, stream: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
    """Return the logits of a residual stream: final norm and unembedding of the model."""
    return model.to_logits(stream[None])[0]


def _streams(
    model: GPT, behaviour: Behaviour, positions: tuple[int, ...]
) -> list[Float[Tensor, "row d_model"]]:
    """Return the residual stream at every depth.

    Row prompt * len(positions) + i holds the i-th position of a prompt.
    """
    hooks = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers)]
    hooks.append(f"blocks.{model.cfg.n_layers - 1}.hook_resid_post")
    _, cache = model.run_with_cache(behaviour.clean.to(device_of(model)), names_filter=hooks)
    return [cache[hook][:, list(positions)].flatten(0, 1) for hook in hooks]


def _measured(
    model: GPT,
    behaviour: Behaviour,
    rows: tuple[int, Tensor, Tensor, Tensor],
    translate: Callable[[int, Tensor], Tensor] | None,
) -> Float[np.ndarray, "measure row"]:
    depth, stream, final, row_of = rows
    size = max(1, LOGITS_AT_ONCE // model.cfg.d_vocab)
    pieces = []
    for some, last, of in zip(*(one.split(size) for one in (stream, final, row_of)), strict=True):
        part = behaviour.of(of)
        columns, weights = (one.to(some.device) for one in part.weights()[:2])
        asked = weights.double().log()  # -inf where a token is no answer of the prompt
        logits = unembed(model, translate(depth, some) if translate else some).double()
        log_q, log_p = logits.log_softmax(-1), unembed(model, last).double().log_softmax(-1)
        own = logits[:, columns].masked_fill(weights == 0, float("-inf")).amax(-1, keepdim=True)
        rank = (logits > own).sum(-1).double()
        pieces.append(
            torch.stack(
                [
                    part.score(logits[:, None]),
                    (log_q[:, columns] + asked).logsumexp(-1),
                    rank,
                    (rank == 0).double(),
                    (log_p.exp() * (log_p - log_q)).sum(-1),
                ]
            )
        )
    return torch.cat(pieces, dim=1).cpu().numpy()
