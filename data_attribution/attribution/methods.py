"""Methods of attribution: each object ranks documents and holds the options that it reads.

    Lexical()    shared words, weighted by what the behaviour is about (`data_attribution.lexical`)
    BM25()       shared words with plain BM25: the baseline
    Gradient()   gradients of documents compared with the query's (`data_attribution.gradients`)
    Replay()     exact influence, by differentiating training (`data_attribution.metagradients`)

`parse("lexical+gradient:rank=8")` returns the same objects, with the options in the name, and
`parse("fused")` those of `DEFAULT` that can answer the query; `spelled` is the inverse.
`default_methods(run)` returns those of `DEFAULT`, with gradients that the run can compare.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from data_attribution import gradients, lexical, metagradients
from data_attribution.attribution import method_names
from data_attribution.attribution.method_names import FUSED
from data_attribution.errors import EvidenceError
from data_attribution.gradients import GradientOptions
from data_attribution.metagradients import ReplayOptions
from data_attribution.ranking import Ranking
from data_attribution.request import Request
from interp.patching import Effects
from train.runs import ReadableRun, Run
from train.short_repr import short_repr


__all__ = [
    "BM25",
    "DEFAULT",
    "FUSED",
    "NAMED",
    "Gradient",
    "Lexical",
    "Method",
    "Replay",
    "default_methods",
    "parse",
    "spelled",
    "unspelled",
]


@runtime_checkable
class Method(Protocol):
    """A way to rank documents.

    Attributes:
        name: Name in tables, in provenance and on the command line.
        grade: Grade of its evidence, one of `sources.GRADES`.
        needs_weights: True if it follows the weights of a run, False if it searches for words.
    """

    name: ClassVar[str]
    grade: ClassVar[str]
    needs_weights: ClassVar[bool]

    def rank_documents(self, requests: Sequence[Request]) -> list[Ranking]:
        """Rank the documents for each request, best first.

        The requests are to one run with one seed, so that a method can do once what they have in
        common. Each ranking is that of its request alone.
        """
        ...


@dataclass(frozen=True)
class Lexical:
    """Method by shared words: maximal spans of a text, weighted BM25 over a behaviour's prompts.

    Examples:
        >>> methods = [attribution.Lexical()]
        >>> attribution.documents(run, fact, methods=methods, limit=2).documents
        (28867, 2456)
    """

    name: ClassVar[str] = "lexical"
    grade: ClassVar[str] = "lexical"
    needs_weights: ClassVar[bool] = False

    def rank_documents(self, requests: Sequence[Request]) -> list[Ranking]:
        """Rank by words, weighted by what the target is about."""
        return [lexical.rank_lexically(request) for request in requests]


@dataclass(frozen=True)
class BM25:
    """Method by plain BM25.

    Examples:
        >>> methods = [attribution.BM25()]
        >>> attribution.documents(run, fact, methods=methods, limit=2).documents
        (221, 26744)
    """

    name: ClassVar[str] = "bm25"
    grade: ClassVar[str] = "lexical"
    needs_weights: ClassVar[bool] = False

    def rank_documents(self, requests: Sequence[Request]) -> list[Ranking]:
        """Rank by words, with the same weight for every token."""
        return [lexical.rank_by_bm25(request) for request in requests]


@dataclass(frozen=True)
class Gradient:
    """Method by gradients: how far a gradient step on a document would raise the query.

    Attributes:
        kind, log_odds, steps, rank, damping, candidates: See `gradients.GradientOptions`.
        within: Components through which gradients count, by name, or the effects of a sweep, of
            which the `gradients.TOP_WEIGHTS` best are used; None: all.

    Examples:
        >>> methods = [attribution.Gradient(kind="cosine", within=["L0.mlp"])]
        >>> some = np.arange(28800, 28900)
        >>> sources = attribution.documents(run, fact, methods=methods, candidates=some, limit=2)
        >>> sources.items[0].text, sources.items[0].grade
        ('runethi is governed from koreskul .', 'gradient')
    """

    kind: str = gradients.DEFAULT.kind
    log_odds: float | None = gradients.DEFAULT.log_odds
    steps: tuple[int, ...] = gradients.DEFAULT.steps
    rank: int = gradients.DEFAULT.rank
    damping: float = gradients.DEFAULT.damping
    candidates: int = gradients.DEFAULT.candidates
    within: Effects | Sequence[str] | None = None

    name: ClassVar[str] = "gradient"
    grade: ClassVar[str] = "gradient"
    needs_weights: ClassVar[bool] = True

    __repr__ = short_repr

    def __post_init__(self) -> None:
        _ = self.options  # raises EvidenceError for options that do not fit

    @property
    def options(self) -> GradientOptions:
        """Return how gradients are compared; the seed of their projections is that of a request."""
        return GradientOptions(
            self.kind,
            self.log_odds,
            self.steps,
            self.rank,
            damping=self.damping,
            candidates=self.candidates,
        )

    @property
    def components(self) -> tuple[str, ...] | None:
        """Return the names of the components that count; None: all."""
        if self.within is None:
            return None
        chosen = self.within
        if isinstance(chosen, Effects):
            chosen = chosen.top(gradients.TOP_WEIGHTS)
        return (chosen,) if isinstance(chosen, str) else tuple(map(str, chosen))

    def rank_documents(self, requests: Sequence[Request]) -> list[Ranking]:
        """Rank by gradients, collected once for the candidates of all requests."""
        return gradients.rank_by_gradients(requests, within=self.components, how=self.options)


@dataclass(frozen=True)
class Replay:
    """Method by exact influence: the derivative of the answer by a document's weight in the loss.

    Attributes:
        steps, room, scratch: See `metagradients.ReplayOptions`.

    Examples:
        >>> replay = attribution.Replay(steps=100)
        >>> replay.grade, replay.needs_weights, replay.options.steps
        ('replay', True, 100)
    """

    steps: int | None = None
    room: int = metagradients.WHOLE.room
    scratch: Path | None = None

    name: ClassVar[str] = "replay"
    grade: ClassVar[str] = "replay"
    needs_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _ = self.options  # raises EvidenceError for less than one step

    @property
    def options(self) -> ReplayOptions:
        """Return which steps are replayed, and where their states are stored."""
        return ReplayOptions(self.steps, self.room, self.scratch)

    def rank_documents(self, requests: Sequence[Request]) -> list[Ranking]:
        """Rank by differentiating through the last steps of training, once for all requests."""
        return metagradients.rank_by_replay(requests, window=self.options)


NAMED: dict[str, Method] = {
    "lexical": Lexical(),
    "bm25": BM25(),
    "gradient": Gradient(),
    "replay": Replay(),
}
DEFAULT = ("lexical", "gradient")
WITHOUT_EFFECT = ("room",)  # options that change the use of memory and no ranking
# Without Adam's second moments: fused with words, curvature found the most statements of the three
# kinds that need none (`benchmarks/attribution_recall.py --kind`).
WITHOUT_MOMENTS = "curvature"
OF_PREFERENCES = "cosine"  # the curvature of preferences is not estimated


def parse(name: str, *, words: bool = True, weights: bool = True) -> tuple[Method, ...]:
    """Return the methods that a name stands for: "replay", "lexical+gradient:rank=8", "fused".

    Args:
        name: Names of methods, joined by +. Options stand behind the name of the method that reads
            them: "gradient:kind=cosine,rank=8", "replay:steps=100". `within` may be repeated, or
            name a file of effects.
        words: True if the target has words; without them, `fused` leaves word-based methods out.
        weights: True if the run has weights; without them, `fused` leaves out methods that need
            them.

    Raises:
        EvidenceError: There is no such method or option, or no method of `fused` can answer.

    Examples:
        >>> attribution.parse("lexical+replay:steps=100")
        (Lexical(), Replay(steps=100, room=4294967296, scratch=None))
        >>> [method.name for method in attribution.parse("fused")]
        ['lexical', 'gradient']
    """
    methods: list[Method] = []
    for method, options in method_names.read_names(name):
        if method == FUSED:
            methods += _fusible(words, weights)
        else:
            methods.append(_with_options(NAMED[method], options) if options else NAMED[method])
    return tuple({id(one): one for one in methods}.values())  # "fused+lexical" has lexical once


def spelled(methods: Sequence[Method]) -> str:
    """Return the name that `parse` reads as these methods.

    Options that no name can carry, such as `log_odds`, are left out; `unspelled` returns them.

    Examples:
        >>> attribution.spelled([attribution.Lexical(), attribution.Gradient(kind="cosine")])
        'lexical+gradient:kind=cosine'
    """
    return "+".join(map(_spelled, methods))


def _spelled(method: Method) -> str:
    plain = NAMED.get(method.name)
    options = []
    for name in method_names.READERS.get(method.name, {}):
        value = getattr(method, name)
        if name == "within" and isinstance(method, Gradient):
            options += [f"within={one}" for one in method.components or ()]
        elif value != getattr(plain, name):
            options.append(f"{name}={value}")
    return f"{method.name}:{','.join(options)}" if options else method.name


def unspelled(methods: Sequence[Method]) -> list[str]:
    """Return what `spelled` leaves out: "METHOD.OPTION=VALUE", or "METHOD" for one of the user's.

    Options that have their default are not among them, nor are those that change no ranking.

    Examples:
        >>> from data_attribution.attribution.methods import unspelled
        >>> unspelled([attribution.Lexical(), attribution.Gradient(log_odds=None, rank=8)])
        ['gradient.log_odds=None']
    """
    found = []
    for method in methods:
        plain = NAMED.get(method.name)
        if plain is None or type(method) is not type(plain) or not is_dataclass(method):
            found.append(method.name)
            continue
        spoken = {*method_names.READERS.get(method.name, {}), *WITHOUT_EFFECT}
        found += [
            f"{method.name}.{one.name}={getattr(method, one.name)!r}"
            for one in fields(method)
            if one.name not in spoken and getattr(method, one.name) != getattr(plain, one.name)
        ]
    return found


def default_methods(
    run: Run | ReadableRun, *, words: bool = True
) -> tuple[tuple[Method, ...], str]:
    """Return the methods that are used where none is named, and why they are not those of `fused`.

    Those of `fused` compare gradients as the run's optimizer scales them. Where the last checkpoint
    has no second moments of gradients, they are compared in the metric of the loss's curvature
    instead, or by cosine if the run was tuned on preferences.

    Args:
        words: True if the target has words.

    Returns:
        The methods, and the reason; "" if they are those of `fused`.

    Raises:
        EvidenceError: No method of `fused` can answer.

    Examples:
        >>> methods, reason = attribution.default_methods(run)
        >>> attribution.spelled(methods)
        'lexical+gradient:kind=curvature'
        >>> reason
        'the checkpoint at step 2100 holds no second moments of gradients'
    """
    methods = _fusible(words, isinstance(run, Run))
    if not isinstance(run, Run) or not (reason := gradients.missing_moments(run)):
        return tuple(methods), ""
    kind = OF_PREFERENCES if run.store.tuning == "preferences" else WITHOUT_MOMENTS
    chosen = [Gradient(kind=kind) if isinstance(one, Gradient) else one for one in methods]
    return tuple(chosen), reason


def _with_options(method: Method, options: Mapping[str, list[Any]]) -> Method:
    """Return the method with options; of one that is given twice, the last value counts."""
    values = {name: given[-1] for name, given in options.items()}
    if "within" in options:
        values["within"] = _components(options["within"])
    # Methods are dataclasses: an option that is not given keeps its default.
    return replace(method, **values)  # type: ignore[type-var]


def _components(names: list[str]) -> Effects | list[str]:
    """Return names of components unchanged, and the effects in a file."""
    if len(names) > 1 or not names[0].endswith(".json"):
        return names
    if not Path(names[0]).is_file():
        raise EvidenceError(f"there is no file {names[0]}; write one with `openbook patch --out`")
    return Effects.load(names[0])


def _fusible(words: bool, weights: bool) -> list[Method]:
    """Return the methods of `DEFAULT` that can answer."""
    methods = [NAMED[name] for name in DEFAULT]
    fusible = [one for one in methods if (weights if one.needs_weights else words)]
    if not fusible:
        raise EvidenceError("a question has no words, and gradients need the weights of a run")
    return fusible
