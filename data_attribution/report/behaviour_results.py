"""All results of one behaviour of a run: what its page shows.

Nothing is new here: prompts, patching, head scores, checkpoints, sources and retrained runs are
those of the commands that the page names. What an earlier command has saved (rows of checkpoints, a
ranking, retrained runs) is read and not computed again.
"""

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from data_attribution import attribution, counterfactuals, evaluation, tracing
from data_attribution.attribution import Sources
from data_attribution.counterfactuals import Forgetting
from data_attribution.errors import CounterfactualError, EvidenceError
from data_attribution.report.page import shell_path
from data_attribution.tracing import Exposure
from interp import behaviours, heads, patching, training_dynamics
from interp.behaviours import Behaviour, Check
from interp.errors import CapabilityError, ContrastError, InterpError
from interp.heads import HeadScores
from interp.patching import Effects
from interp.training_dynamics import Trajectory
from train import released, storage
from train.errors import TrainError, nearest
from train.model import GPT
from train.progress import Progress, count
from train.runs import LedgerRow, Run
from train.short_repr import short_repr
from train.statistics import Estimate, mean_interval


__all__ = ["BehaviourResults", "Example", "gather", "read_proof"]

EXAMPLES, CHECKPOINTS, CONTINUATIONS, UNRELATED = 4, 12, 5, 3
NUMBER = (None, float)
PROOF = {
    "parent": str,
    "named": [int],
    "removed": [int],
    "control": [[int]],
    "choices": ([({"kind": str}, None)], None),
    "mode": str,
    "together": str,
    "rows": [
        {
            "setting": str,
            "behaviour": str,
            "n": int,
            "recall": float,
            "recall low": NUMBER,
            "recall high": NUMBER,
            "log-prob": float,
        }
    ],
    "effects": [
        {
            "question": str,
            "unit": str,
            "related": bool,
            "before": float,
            "after": float,
            "controls": [float],
            "effect": float,
            "low": NUMBER,
            "high": NUMBER,
            "within noise": (None, bool),
            "n": int,
        }
    ],
}
# What files of earlier versions do not have.
EARLIER = {"choices": None, "mode": "blank", "together": "near"}
MOST_WEIGHTS = 150_000  # attention weights of all examples that a page holds


@dataclass(frozen=True)
class Example:
    """A prompt of the behaviour, and what the model does with it.

    Attributes:
        clean, corrupt: The tokens of the two prompts, as texts.
        sentence: The clean prompt as a text, without the end-of-text in front.
        answer, foil: The tokens that are compared, as texts.
        score: Logit of the answer minus logit of the foil, in nats.
        best: The most probable continuations, each with its probability.
        attention: Attention weights of the clean prompt; None if the model has no patterns. If
            there are very many, `query` has one entry: the last position.
    """

    clean: tuple[str, ...]
    corrupt: tuple[str, ...]
    sentence: str
    answer: str
    foil: str
    score: float
    best: tuple[tuple[str, float], ...]
    attention: Float[Tensor, "layer head query key"] | None

    __repr__ = short_repr


@dataclass(frozen=True)
class BehaviourResults:
    """A behaviour of a run: how well, by which heads, from which documents, and whether proved.

    Attributes:
        named: The behaviour as a command names it.
        options: Options of the commands that draw its prompts, such as `--prompts 128`.
        traced: What the documents were ranked for, as a command names it; "" if `sources` tell.
        ranked_for: The behaviour they were ranked for, whose score is drawn over the readings.
        labels: What the truth table of a planted corpus says of documents about it: `states it` or
            `distractor`; empty for others.
        question: What the proof is about: a question of the retrained runs.
        check: Accuracy on all prompts.
        score: Mean logit difference on the clean prompts, in nats, with its interval.
        heads, mlps: Exact patch effects; None if they were refused.
        refusal: The reason why there are none.
        kinds: Induction and previous-token scores of all heads, by kind; empty if the vocabulary is
            too small for them.
        curves: Numbers over checkpoints, by name of the analysis (`score`, `detectors`, `heads`).
        sources: Ranked documents.
        exposures: What was read of each source and its copies, in the order of the sources.
        ledger: Rows of the training.
        proof: What retraining without documents showed; None if nothing was retrained. Plain values
            as `Counterfactual.to_dict` has them, or the removal of planted facts.
    """

    run: Run
    named: str
    options: str
    traced: str
    question: str
    behaviour: Behaviour
    ranked_for: Behaviour
    labels: Mapping[int, str]
    check: Check
    score: Estimate
    examples: tuple[Example, ...]
    heads: Effects | None
    mlps: Effects | None
    refusal: str
    kinds: Mapping[str, HeadScores]
    curves: Mapping[str, Trajectory]
    sources: Sources
    exposures: tuple[Exposure, ...]
    ledger: Sequence[LedgerRow] = field(default=())
    proof: storage.JsonObject | Forgetting | None = None

    __repr__ = short_repr

    def __str__(self) -> str:
        low, high = self.check.interval
        named = f"{self.behaviour.name}: right in {self.check.accuracy:.2f} [{low:.2f}, {high:.2f}]"
        heads = (
            ", ".join(f"{name} {self.heads[name]:.2f}" for name in self.heads.top(3))
            if (self.heads)
            else f"not patched: {self.refusal}"
        )
        documents = ", ".join(map(str, self.sources.documents[:5]))
        proof = "nothing retrained yet"
        if self.proof is not None:
            lacked = self.removed
            n = sum(not lacked.isdisjoint(one.group) for one in self.sources)
            proof = (
                f"retrained without {count(len(lacked), 'document')}, among them {n} of the "
                f"{len(self.sources)} listed"
            )
        return (
            f"{named} of {self.check.n}, by {self.score.value:.2f} nats\nheads: {heads}\n"
            f"documents: {documents} by {self.sources.method} evidence\nproof: {proof}"
        )

    @property
    def removed(self) -> frozenset[int]:
        """Return the documents that the proof's retraining lacked; none without a proof."""
        if self.proof is None:
            return frozenset()
        proof = self.proof
        return frozenset(proof.removed if isinstance(proof, Forgetting) else proof["removed"])

    @property
    def fact(self) -> str:
        """Return the planted fact that documents were ranked for, by its name; or nothing."""
        for fact in (self.run.store.truth or {}).get("facts", ()):
            if self.ranked_for.name == f"fact:{fact['entity']}":
                return fact["name"]
        return ""

    @property
    def bare_name(self) -> str:
        """Return the behaviour as no shell reads it."""
        return shlex.split(self.named)[0]

    def command(self, verb: str, tail: str = "", *, named: bool = True) -> str:
        """Return a command on the run, and on its behaviour if it is to be named."""
        parts = (self.named, tail, self.options) if named else (tail,)
        return " ".join(filter(None, ["openbook", verb, shell_path(self.run.path), *parts]))

    def summary(self) -> dict[str, object]:
        """Return the main numbers as plain values, for JSON."""
        best = self.heads.top(3) if self.heads else []
        return {
            "run": self.run.id,
            "behaviour": self.behaviour.name,
            "accuracy": self.check.accuracy,
            "accuracy interval": list(self.check.interval),
            "n": self.check.n,
            "logit difference": self.score.value,
            "heads": {name: self.heads[name] for name in best} if self.heads else {},
            "documents": list(self.sources.documents),
            "proof": self.proof is not None,
        }


def gather(
    run: Run,
    behaviour: Behaviour,
    *,
    named: str = "",
    options: str = "",
    traced: str = "",
    ranked_for: Behaviour | None = None,
    question: str = "",
    by_head: Effects | None = None,
    sources: Sources | None = None,
    methods: str = "lexical",
    limit: int = 20,
    proof: storage.JsonObject | Forgetting | None = None,
    unrelated: Sequence[Behaviour] = (),
    steps: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> BehaviourResults:
    """Measure everything that the page of a behaviour shows.

    Costs two sweeps over layers (heads and MLPs), the same over heads at each of `steps`, and a
    ranking. Retrains nothing.

    Args:
        named: The behaviour as a command names it, such as a file; default: its name.
        options: Options of the commands that draw its prompts, such as `--prompts 128`.
        traced: What `sources` were ranked for, as a command names it; default: what they tell.
        ranked_for: The behaviour that `sources` were ranked for, if it is another one, such as a
            single fact of a relation; the timeline shows its score.
        question: What the proof is about, if it is not the behaviour: a question of `proof`.
        by_head: Effects of all heads on the behaviour, if they were measured before.
        sources: A ranking that was made before; default: the `limit` first by `methods`.
        proof: A result of `counterfactuals.without` as plain values, or of `forget_facts`; default:
            what `counterfactuals.found` finds in the folder of the run, measured on the behaviour
            and on `unrelated`, or what came with a released run.
        unrelated: Behaviours that should stay; default: up to three others that the model does.
        steps: Checkpoints, as for `training_dynamics.over_training`; default: at most twelve.

    Raises:
        CounterfactualError: The proof is of another run, or does not answer the question.
        EvidenceError: The ranking is of another run, no document has evidence, or the method cannot
            answer.
        IndexMissing: The run's token store has no index.
    """
    tell = progress or (lambda what, done, total: None)
    if sources is not None:
        _refuse_other_ranking(sources, run)
    if proof is not None:
        _refuse_other(proof, run, question or behaviour.name)
    model = run.load()
    tell("measuring the prompts", 0, None)
    check, score = behaviours.measure(model, behaviour), _score(model, behaviour)
    try:
        by_head = by_head or patching.heads(model, behaviour, progress=progress)
        by_layer = patching.mlps(model, behaviour, progress=progress)
        refusal = ""
    except (CapabilityError, ContrastError) as error:
        by_head = by_layer = None
        refusal = str(error)
    ranked_for = ranked_for or behaviour
    curves = _curves(run, behaviour, ranked_for, steps, seed, progress)
    sources = sources or attribution.documents(
        run, behaviour, methods=methods, limit=limit, seed=seed, progress=progress
    )
    tell("counting what was read", 0, None)
    exposures = tuple(tracing.exposure_of_documents(run, one.group) for one in sources)
    if proof is None:
        tell("measuring retrained runs", 0, None)
        proof = _found_proof(model, run, behaviour, sources, unrelated, seed)
    return BehaviourResults(
        run=run,
        named=named or shlex.quote(behaviour.name),
        options=options,
        traced=traced,
        question=question or behaviour.name,
        behaviour=behaviour,
        ranked_for=ranked_for,
        labels=evaluation.planted_labels(run, ranked_for.name),
        check=check,
        score=score,
        examples=_examples(model, behaviour),
        heads=by_head,
        mlps=by_layer,
        refusal=refusal,
        kinds=_kinds(model, run, seed),
        curves=curves,
        sources=sources,
        exposures=exposures,
        ledger=run.ledger,
        proof=proof,
    )


def read_proof(path: str | Path) -> storage.JsonObject | Forgetting:
    """Read what `openbook counterfactual --out` or `openbook forget --out` wrote.

    Raises:
        DamagedError: The file is changed or holds something else.
    """
    content = storage.read_sealed(Path(path))
    if "facts" in content and "groups" in content:
        with storage.reading(Path(path)):
            return Forgetting.from_dict(
                {key: one for key, one in content.items() if key != "digest"}
            )
    storage.check_shape({**EARLIER, **content}, PROOF, path)
    return content


def _refuse_other_ranking(sources: Sources, run: Run) -> None:
    """Raise unless documents were ranked in this run, whose texts and steps the page shows."""
    ranked = sources.provenance.get("run", run.id)
    if ranked != run.id:
        raise EvidenceError(
            f"the documents were ranked in run {ranked}, and the page is of run {run.id}; rank "
            "them in this one with `openbook trace documents`"
        )


def _refuse_other(proof: storage.JsonObject | Forgetting, run: Run, question: str) -> None:
    """Raise unless a proof is one of this run and answers the question."""
    parent = proof.parent if isinstance(proof, Forgetting) else proof["parent"]
    if parent != run.id:
        raise CounterfactualError(
            f"the proof is of run {parent}, and the page is of run {run.id}; retrain this one"
        )
    if isinstance(proof, Forgetting):
        return
    asked = [one["question"] for one in proof["effects"]]
    if question not in asked:
        raise CounterfactualError(
            f"{question!r} was not asked of the retrained run{nearest(question, asked)}"
        )


@torch.inference_mode()
def _score(model: GPT, behaviour: Behaviour) -> Estimate:
    """Return the mean logit difference, with its interval over cases."""
    logits = torch.cat([model(some)[:, -1:] for some in behaviour.clean.split(16)])
    scores, prompts = behaviour.score(logits).double().numpy(), np.array(behaviour.cases)
    by_prompt = np.bincount(prompts, weights=scores) / np.bincount(prompts)
    low, high = mean_interval(by_prompt) or (None, None)
    return Estimate(float(by_prompt.mean()), low, high)


@torch.inference_mode()
def _examples(model: GPT, behaviour: Behaviour) -> tuple[Example, ...]:
    """Return the first distinct prompts."""
    seen = behaviour.distinct
    rows = [seen.index(k) for k in range(min(EXAMPLES, max(seen) + 1))]
    tokenizer = model.tokenizer
    clean = behaviour.clean[rows]
    logits = model(clean)[:, -1:]
    scores = behaviour.of(rows).score(logits).tolist()
    best = logits[:, -1].float().softmax(dim=-1).topk(min(CONTINUATIONS, logits.shape[-1]))
    patterns = _patterns(model, clean)
    found = []
    for place, row in enumerate(rows):
        ids = behaviour.clean[row].tolist()
        found.append(
            Example(
                clean=tuple(tokenizer.tokens(ids)),
                corrupt=tuple(tokenizer.tokens(behaviour.corrupt[row].tolist())),
                sentence=tokenizer.without_eot(tokenizer.decode(ids)),
                answer=tokenizer.decode(behaviour.answer[row : row + 1].tolist()),
                foil=tokenizer.decode(behaviour.foil[row : row + 1].tolist()),
                score=scores[place],
                best=tuple(
                    (tokenizer.decode([token]), share)
                    for token, share in zip(
                        best.indices[place].tolist(), best.values[place].tolist(), strict=True
                    )
                ),
                attention=None if patterns is None else patterns[place],
            )
        )
    return tuple(found)


def _patterns(model: GPT, tokens: Tensor) -> Float[Tensor, "prompt layer head query key"] | None:
    """Return the attention patterns; only of the last query if there are very many weights."""
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    _, cache = model.run_with_cache(tokens, names_filter=names)
    if not all(name in cache for name in names):
        return None
    found = torch.stack([cache[name].float() for name in names], dim=1)
    return found[..., -1:, :] if found.numel() > 2 * MOST_WEIGHTS else found


def _kinds(model: GPT, run: Run, seed: int) -> dict[str, HeadScores]:
    """Return induction and previous-token scores; none if the words are too few to repeat."""
    try:
        length = min(24, (run.config.n_ctx - 1) // 2)
        tokens = heads.repeated_tokens(run, length=length, seed=seed)
        return {
            kind: heads.detector_scores(model, tokens, kind)
            for kind in ("induction", "previous token")
        }
    except InterpError:
        return {}


def _curves(
    run: Run,
    behaviour: Behaviour,
    ranked_for: Behaviour,
    steps: str | None,
    seed: int,
    progress: Progress | None,
) -> dict[str, Trajectory]:
    """Return the numbers over checkpoints; rows that an earlier call has stored are read."""
    chosen = steps or ("all" if len(run.steps) <= CHECKPOINTS else f"log:{CHECKPOINTS}")
    analyses = {
        "score": training_dynamics.score_analysis(ranked_for),
        "heads": training_dynamics.heads_analysis(behaviour, seed=seed),
    }
    with suppress(InterpError, TrainError):  # too few words to repeat
        analyses["detectors"] = training_dynamics.analysis("detectors", run, seed=seed)
    return {
        name: training_dynamics.over_training(run, one, steps=chosen, progress=progress)
        for name, one in analyses.items()
    }


def _found_proof(
    model: GPT,
    run: Run,
    behaviour: Behaviour,
    sources: Sources,
    unrelated: Sequence[Behaviour],
    seed: int,
) -> storage.JsonObject | Forgetting | None:
    """Return what retraining without the first source showed, here or where the run comes from."""
    if retrained := counterfactuals.found(run, sources):
        others = unrelated or _others(model, run, behaviour, seed)
        without, *controls = retrained
        return counterfactuals.compare(
            run, without, controls, behaviour, unrelated=others
        ).to_dict()
    if run.predicate.get("released"):
        shipped = Forgetting.from_dict(released.measured("planted", "forgetting"))
        if shipped.parent == run.id and {*sources.documents[:1]} & {*shipped.removed}:
            return shipped
    return None


def _others(model: GPT, run: Run, behaviour: Behaviour, seed: int) -> list[Behaviour]:
    """Return behaviours that share no prompt with this one and that the model does."""
    prompts, found = {tuple(row) for row in behaviour.clean.tolist()}, []
    for name in behaviours.names(run):
        if ":" in name or name == behaviour.name or len(found) == UNRELATED:
            continue
        try:
            other = behaviours.load(name, run, seed=seed)
            does = behaviours.measure(model, other).interval[0] > 0.5
        except (InterpError, TrainError):
            continue
        if does and not other.has_several and prompts.isdisjoint(map(tuple, other.clean.tolist())):
            found.append(other)
    return found
