"""A behaviour: something a model does, stated as prompts and answers so that it can be measured.

A behaviour has clean prompts, which are continued by `answer`, and corrupt prompts, which are
continued by `foil`. The two differ by *symmetric token replacement*: a token is exchanged for
another of its kind, so that both prompts are in distribution (Zhang & Nanda 2023,
https://arxiv.org/abs/2309.16042). Behaviours come from the truth table of a planted corpus
(`interp.behaviours.planted`), from a TOML file of templates (`interp.behaviours.templates`),
from pairs of texts (`interp.behaviours.paired_prompts`), or from a saved file (`read`).

A prompt may have several answers and several foils, each with a weight: years that are later, or
words that fit alike. Its score is then the weighted mean of the answers' logits minus that of the
foils'.

Row i of `clean` and row i of `corrupt` are equally long, so position p means the same in both.
"""

import hashlib
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from interp.components import HookedModel, device_of
from interp.errors import BehaviourError, CapabilityError, ModelError
from train import html_panel, storage
from train.progress import count
from train.statistics import wilson
from train.trainer import is_highest


__all__ = [
    "Behaviour",
    "Check",
    "check",
    "measure",
    "read",
    "refuse_other_words",
    "refuse_several",
    "tokenizer_or_none",
]

SHAPE = {
    "name": str,
    "clean": [[int]],
    "corrupt": [[int]],
    "answer": [int],
    "foil": [int],
    "subject": (None, [int]),
    "candidates": (None, [int]),
    "description": str,
    "tokenizer?": str,
    "answers?": [[[float]]],
    "foils?": [[[float]]],
    "groups?": [int],
}
# The second is of a behaviour with several answers or foils, the third of one with groups, which
# older readers would not see.
SCHEMA, SCHEMA_OF_SEVERAL = "openbook.behaviour/1", "openbook.behaviour/2"
SCHEMA_OF_GROUPS = "openbook.behaviour/3"
TENSORS = ("clean", "corrupt", "answer", "foil")
# Largest size of the logits of one forward pass. With GPT-2's vocabulary, the logits of 32 prompts
# of 64 tokens would take 412 MB.
LOGIT_BYTES = 64 << 20


@dataclass(frozen=True, eq=False)
class Behaviour:
    """Clean and corrupt prompts with an answer and a foil for each pair.

    Attributes:
        name: Name of the behaviour, as given to `load`.
        clean: Prompts that `answer` continues.
        corrupt: Prompts that `foil` continues: the clean ones with some tokens replaced.
        answer: Token that continues the clean prompt.
        foil: Token that the answer is compared with.
        subject: Half-open span of positions of the noun the prompts are about; None if there is no
            such noun.
        candidates: Tokens among which the answer must have the highest logit to count as correct.
            If None, it only has to beat its foil.
        description: What the model must do, in words.
        tokenizer: sha256 of the tokenizer of these token ids; "" if unknown.
        answers: All answers of each prompt with their weights, if a prompt has several; otherwise
            (). `answer` is then one of the heaviest.
        foils: The same of the foils.
        groups: Group of each prompt, if prompts of a group say much the same, such as lines of one
            file: a group is then one case of every interval (`cases`). Otherwise ().

    Examples:
        >>> from interp.behaviours import Behaviour
        >>> clean, answer = torch.tensor([[0, 5, 9], [0, 6, 9]]), torch.tensor([7, 8])
        >>> Behaviour("mine", clean, clean.flip(0), answer, foil=answer.flip(0))
        Behaviour('mine', 2 prompts of 3 tokens)
    """

    name: str
    clean: Int[Tensor, "prompt pos"]
    corrupt: Int[Tensor, "prompt pos"]
    answer: Int[Tensor, " prompt"]
    foil: Int[Tensor, " prompt"]
    subject: tuple[int, int] | None = None
    candidates: tuple[int, ...] | None = None
    description: str = ""
    tokenizer: str = ""
    answers: tuple[Mapping[int, float], ...] = ()
    foils: tuple[Mapping[int, float], ...] = ()
    groups: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        asked = f"behaviour {self.name!r}"
        for part in TENSORS:
            object.__setattr__(self, part, _ids(getattr(self, part), f"{asked}: {part}"))
        if self.clean.ndim != 2 or self.answer.ndim != 1 or self.foil.ndim != 1:
            raise BehaviourError(
                f"{asked} needs prompts [prompt pos] and answers and foils [prompt]; found "
                f"{tuple(self.clean.shape)}, {tuple(self.answer.shape)}, {tuple(self.foil.shape)}"
            )
        if self.clean.shape != self.corrupt.shape or self.clean.numel() == 0:
            raise BehaviourError(
                f"{asked} has clean prompts of shape {tuple(self.clean.shape)} and corrupt ones of "
                f"{tuple(self.corrupt.shape)}; make them equally many and equally long"
            )
        if len(self.answer) != self.n_prompts or len(self.foil) != self.n_prompts:
            raise BehaviourError(
                f"{asked} has {self.n_prompts} prompts, {len(self.answer)} answers and "
                f"{len(self.foil)} foils; give one of each a prompt"
            )
        same = int((self.answer == self.foil).sum())
        if same:
            raise BehaviourError(
                f"{asked}: on {same} of {self.n_prompts} prompts the answer is its own foil"
            )
        same = int((self.clean == self.corrupt).all(dim=1).sum())
        if same:
            raise BehaviourError(
                f"{asked}: {same} of {self.n_prompts} corrupt prompts are equal to their clean "
                "ones, so nothing that happens between them can be measured"
            )
        self._check_span_and_candidates(asked)
        self._check_groups(asked)
        for part in ("answer", "foil"):
            _check_weights(getattr(self, f"{part}s"), getattr(self, part), f"{asked}: {part}s")
        both = [row for row in range(self.n_prompts) if self.has_several and self._overlap(row)]
        if both:
            raise BehaviourError(
                f"{asked}: on {len(both)} of {self.n_prompts} prompts an answer is also a foil, "
                f"the first is prompt {both[0]}"
            )

    def _overlap(self, row: int) -> set[int]:
        """Return the tokens that are both answers and foils of a prompt."""
        return {*self.weights_of("answer", row)} & {*self.weights_of("foil", row)}

    def _check_span_and_candidates(self, asked: str) -> None:
        if self.subject and not 0 <= self.subject[0] < self.subject[1] <= self.n_pos:
            raise BehaviourError(
                f"{asked} has its subject at {self.subject} of {self.n_pos} positions"
            )
        tokens = {*self.answer.tolist(), *(token for row in self.answers for token in row)}
        if self.candidates and not tokens <= set(self.candidates):
            raise BehaviourError(
                f"{asked} has {len(self.candidates)} candidates, and an answer that is none of them"
            )

    def _check_groups(self, asked: str) -> None:
        if self.groups and len(self.groups) != self.n_prompts:
            raise BehaviourError(
                f"{asked} has {self.n_prompts} prompts and {len(self.groups)} groups; give each "
                "prompt its group"
            )
        n_prompts, n_pairs = (
            max(self.distinct) + 1,
            len({*zip(self.distinct, self.cases, strict=True)}),
        )
        if n_pairs > n_prompts:
            raise BehaviourError(
                f"{asked}: {n_pairs - n_prompts} of {n_prompts} prompts stand in several groups; "
                "give rows of one prompt one group"
            )

    meaning: ClassVar[str] = (
        "A behaviour is a question with its prompts; it does not show that a model can do it, "
        "which `behaviours.check` measures."
    )

    def _repr_html_(self) -> str:
        facts = (
            ("description", self.description),
            ("n", max(self.distinct) + 1),
            ("tokens", self.n_pos),
            ("candidates", len(self.candidates) if self.candidates else "none"),
        )
        return html_panel.panel_of(self, facts=facts).html()

    def __repr__(self) -> str:
        distinct = max(self.distinct) + 1
        return (
            f"Behaviour({self.name!r}, {count(distinct, 'prompt')} of {count(self.n_pos, 'token')})"
        )

    @property
    def n_prompts(self) -> int:
        """Number of rows. A prompt with several foils has one row per foil."""
        return self.clean.shape[0]

    @property
    def n_pos(self) -> int:
        """Number of tokens of each prompt."""
        return self.clean.shape[1]

    @property
    def has_several(self) -> bool:
        """Return whether a prompt may have several answers or several foils."""
        return bool(self.answers or self.foils)

    def weights_of(self, part: str, row: int) -> Mapping[int, float]:
        """Return the tokens that are "answer" or "foil" of a prompt, with their weights."""
        several = self.answers if part == "answer" else self.foils
        return several[row] if several else {int(getattr(self, part)[row]): 1.0}

    def weights(
        self,
    ) -> tuple[
        Int[Tensor, " column"], Float[Tensor, "prompt column"], Float[Tensor, "prompt column"]
    ]:
        """Return the tokens that any prompt asks about, and the weights of answers and of foils.

        Weights are relative to the heaviest of the prompt, which has 1: a weighted sum of
        probabilities then lies between 0 and 1, and answers of equal weight are summed in full.
        """
        rows = range(self.n_prompts)
        sides = [[self.weights_of(part, row) for row in rows] for part in ("answer", "foil")]
        columns = sorted({token for side in sides for one in side for token in one})
        answers, foils = (
            torch.tensor(
                [[one.get(token, 0.0) for token in columns] for one in side], dtype=torch.float32
            )
            for side in sides
        )
        answers, foils = (one / one.amax(dim=1, keepdim=True) for one in (answers, foils))
        return torch.tensor(columns), answers, foils

    def contrast(self) -> tuple[Int[Tensor, " column"], Float[Tensor, "prompt column"]]:
        """Return tokens and coefficients whose weighted sum of logits is the score of a prompt.

        The coefficients of the answers of a prompt sum to 1 and those of its foils to -1, so that a
        constant added to all logits changes no score.
        """
        columns, answers, foils = self.weights()
        return columns, answers / answers.sum(1, True) - foils / foils.sum(1, True)

    def of(self, rows: Sequence[int] | Shaped[Tensor, " row"]) -> "Behaviour":
        """Select some of the prompts, by index or by a mask."""
        chosen = torch.arange(self.n_prompts)[torch.as_tensor(rows).cpu()]
        parts = {name: getattr(self, name)[chosen] for name in TENSORS}
        several: dict[str, Any] = {
            name: tuple(getattr(self, name)[row] for row in chosen.tolist())
            for name in ("answers", "foils", "groups")
            if getattr(self, name)
        }
        return replace(self, **parts, **several)

    @property
    def distinct(self) -> list[int]:
        """Index of each row's clean prompt among the distinct ones, in order of first appearance.

        Rows that repeat a prompt with other foils share an index.
        """
        return _numbered([tuple(row) for row in self.clean.tolist()])

    @property
    def cases(self) -> list[int]:
        """Index of each row's case, in order of first appearance: what an interval counts once.

        Rows of one group are one case; without groups, rows of one clean prompt are (`distinct`).
        """
        return _numbered(self.groups) if self.groups else self.distinct

    @property
    def case_name(self) -> str:
        """Return what a case is called in a text: "prompt", or "prompt group"."""
        return "prompt group" if self.groups else "prompt"

    def score(self, logits: Float[Tensor, "prompt pos vocab"]) -> Float[Tensor, " prompt"]:
        """Return the logit of the answer minus the logit of the foil, in nats of log-odds.

        Only the last position is read, so `logits` may hold that position alone. Of several answers
        or foils it is the weighted mean of their logits.
        """
        if self.has_several:
            columns, contrast = (one.to(logits.device) for one in self.contrast())
            return (logits[:, -1, columns] * contrast.to(logits.dtype)).sum(-1)
        row = torch.arange(len(logits), device=logits.device)
        answer, foil = self.answer.to(logits.device), self.foil.to(logits.device)
        return logits[row, -1, answer] - logits[row, -1, foil]

    def correct(self, logits: Float[Tensor, "prompt pos vocab"]) -> Bool[Tensor, " prompt"]:
        """Return which prompts are answered correctly at the last position.

        The answer has the highest logit among the candidates or, without candidates, a higher one
        than its foil. Of several answers, one has the highest logit, or their score is above 0.
        """
        if self.candidates is None:
            return self.score(logits) > 0
        return self.is_highest(logits[:, -1], self.candidates)

    def is_highest(
        self, logits: Float[Tensor, "prompt vocab"], candidates: Sequence[int] | None = None
    ) -> Bool[Tensor, " prompt"]:
        """Return on which prompts an answer has the highest logit, of all or of some tokens."""
        if not self.has_several:
            return is_highest(logits, self.answer.to(logits.device), candidates)
        allowed = torch.arange(logits.shape[1]) if candidates is None else torch.tensor(candidates)
        best = allowed[logits[:, allowed].argmax(dim=1).cpu()].tolist()
        hits = [token in self.weights_of("answer", row) for row, token in enumerate(best)]
        return torch.tensor(hits, device=logits.device)

    @property
    def sha256(self) -> str:
        """Digest of everything but the description and the tokenizer's digest."""
        unmeasured = ("description", "tokenizer")
        asked = {key: value for key, value in self.to_dict().items() if key not in unmeasured}
        return hashlib.sha256(storage.canonical_json(asked).encode()).hexdigest()

    def to_dict(self) -> dict[str, object]:
        """Return plain lists for JSON."""
        several: dict[str, object] = {
            name: [[[token, weight] for token, weight in row.items()] for row in given]
            for name, given in (("answers", self.answers), ("foils", self.foils))
            if given
        }
        schema = SCHEMA_OF_SEVERAL if several else SCHEMA
        if self.groups:
            schema, several["groups"] = SCHEMA_OF_GROUPS, list(self.groups)
        return {
            "schema": schema,
            "name": self.name,
            **{name: getattr(self, name).tolist() for name in TENSORS},
            "subject": list(self.subject) if self.subject else None,
            "candidates": list(self.candidates) if self.candidates else None,
            "description": self.description,
            "tokenizer": self.tokenizer,
            **several,
        }

    def save(self, path: str | Path) -> None:
        """Write sealed JSON that `load` and every later command accepts."""
        storage.write_json(Path(path), storage.seal(self.to_dict()))


def _numbered(keys: Sequence[Hashable]) -> list[int]:
    """Return the index of each key among the different ones, in order of first appearance."""
    seen: dict[Hashable, int] = {}
    return [seen.setdefault(key, len(seen)) for key in keys]


def _ids(given: object, what: str) -> Int[Tensor, "*axes"]:
    """Return token ids as int64, the type torch indexes with, from any integer type.

    Raises:
        BehaviourError: It is no tensor of integers.
    """
    if not isinstance(given, Tensor) or given.is_floating_point() or given.dtype == torch.bool:
        kind = given.dtype if isinstance(given, Tensor) else type(given).__name__
        raise BehaviourError(f"{what} must be a tensor of token ids, not {kind}")
    return given.long()


def _check_weights(
    given: tuple[Mapping[int, float], ...], heaviest: Int[Tensor, " prompt"], what: str
) -> None:
    """Raise unless there are weights for every prompt, positive ones, or none at all."""
    if given and len(given) != len(heaviest):
        raise BehaviourError(
            f"{what} of {len(given)} prompts were given, and there are {len(heaviest)}"
        )
    for row, weights in enumerate(given):
        good = all(type(token) is int and token >= 0 for token in weights)
        good &= all(0 < weight < math.inf for weight in weights.values())
        if not good or weights.get(int(heaviest[row])) != max(weights.values(), default=None):
            raise BehaviourError(
                f"{what} of prompt {row} must be tokens with weights above 0, the first of the "
                f"heaviest being {int(heaviest[row])}, and are {dict(weights)!r:.80}"
            )


@dataclass(frozen=True)
class Check:
    """Measurement of how well a model does a behaviour on its clean prompts.

    Attributes:
        accuracy: Share of prompts where the answer has the highest logit among the candidates, or,
            without candidates, a higher one than its foil.
        top1: Share of prompts where the answer has the highest logit of the whole vocabulary.
        score: Mean logit difference between answer and foil.
        n: Number of distinct clean prompts, or of their groups (`Behaviour.cases`).
        interval: 95 % Wilson interval of the accuracy, for n cases.
    """

    accuracy: float
    top1: float
    score: float
    n: int
    interval: tuple[float, float]

    meaning: ClassVar[str] = (
        "A check shows how often a model gives the answers of these prompts; it does not show how "
        "it finds them, nor that it would give them on other prompts."
    )

    def _repr_html_(self) -> str:
        accuracy = html_panel.interval(self.accuracy, *self.interval)
        facts = (("accuracy", accuracy), ("top1", self.top1), ("score", self.score), ("n", self.n))
        return html_panel.panel_of(self, facts=facts).html()


@torch.inference_mode()
def measure(model: HookedModel, behaviour: Behaviour) -> Check:
    """Measure how well the model does the behaviour, in one forward pass over the clean prompts.

    Raises:
        BehaviourError: The token ids belong to another tokenizer than the model's.
        ModelError: The logits of a prompt depend on the prompts beside it (published retention).

    Examples:
        >>> behaviours.measure(model, ioi).accuracy
        1.0
        >>> behaviours.measure(run.load(0), ioi).accuracy < 0.7
        True
    """
    refuse_other_words(behaviour, model)
    if getattr(model.cfg, "attention", "") == "retention-published":
        raise ModelError(
            "in its published form retention makes the weights of all rows together, so a prompt "
            "has other logits beside other prompts, and no number about it can be given"
        )
    device = device_of(model)
    # The pass computes logits at every position and only the last is read, so the prompts are
    # split to bound the memory.
    width = 4 * behaviour.n_pos * getattr(model.cfg, "d_vocab", 1)
    pieces = behaviour.clean.to(device).split(max(LOGIT_BYTES // width, 1))
    logits = torch.cat([model(piece)[:, -1:].clone() for piece in pieces])
    score = behaviour.score(logits)
    accuracy = behaviour.correct(logits).float().mean().item()
    top1 = behaviour.is_highest(logits[:, -1]).float().mean().item()
    # A prompt with several foils is one case, not several independent ones, and so is a group.
    n = max(behaviour.cases) + 1
    return Check(accuracy, top1, score.mean().item(), n, wilson(accuracy, n))


def check(model: HookedModel, behaviour: Behaviour, *, threshold: float = 0.5) -> Check:
    """Measure the behaviour and raise if the model does not do it.

    Raises:
        CapabilityError: The accuracy is not above `threshold`, or the score is NaN or infinite.
        BehaviourError: The token ids belong to another tokenizer than the model's.

    Examples:
        >>> found = behaviours.check(model, ioi)
        >>> found.accuracy, found.n
        (1.0, 64)
    """
    found = measure(model, behaviour)
    if not found.accuracy > threshold or not math.isfinite(found.score):
        low, high = found.interval
        raise CapabilityError(
            f"the model does not do {behaviour.name!r}: accuracy {found.accuracy:.2f} "
            f"[{low:.2f}, {high:.2f}] on {count(found.n, 'prompt')}, mean logit difference "
            f"{found.score:.3g}, and more than {threshold:.2f} is needed; take a later checkpoint "
            "or another behaviour"
        )
    return found


def refuse_other_words(behaviour: Behaviour, source: object) -> None:
    """Raise if a behaviour was made for another tokenizer than that of a model or run.

    Token ids of another vocabulary would run without an error and give a meaningless number.

    Raises:
        BehaviourError: A token id lies outside the vocabulary, or the tokenizers differ.
    """
    cfg = getattr(source, "config", None) or getattr(source, "cfg", None)
    vocab = getattr(cfg, "d_vocab", None) or getattr(source, "vocab_size", None)
    tensors = (behaviour.clean, behaviour.corrupt, behaviour.answer, behaviour.foil)
    several = {token for row in (*behaviour.answers, *behaviour.foils) for token in row}
    largest = max(*(int(one.max()) for one in tensors), *several, 0)
    if vocab and largest >= vocab:
        raise BehaviourError(
            f"behaviour {behaviour.name!r} holds token {largest}, and the vocabulary of the model "
            f"has {vocab}; it was made for another tokenizer"
        )
    sha256 = getattr(tokenizer_or_none(source), "sha256", "")
    if behaviour.tokenizer and sha256 and behaviour.tokenizer != sha256:
        raise BehaviourError(
            f"behaviour {behaviour.name!r} is made of tokens of tokenizer "
            f"{behaviour.tokenizer[:12]}, the model's is {sha256[:12]}; load it for this model"
        )


def refuse_several(behaviour: Behaviour, what: str) -> None:
    """Raise a BehaviourError if a prompt may have several answers, where one is needed.

    Examples:
        >>> behaviours.refuse_several(ioi, "this analysis")
    """
    if behaviour.has_several:
        raise BehaviourError(
            f"{what} reads one answer and one foil of each prompt, and behaviour "
            f"{behaviour.name!r} has several; give it one of each"
        )


def tokenizer_or_none(source: object) -> object:
    """Return the tokenizer of a model, a run or a token store, or None if it has none."""
    return getattr(source, "tokenizer", None) or getattr(
        getattr(source, "store", None), "tokenizer", None
    )


def read(path: str | Path) -> Behaviour:
    """Read a behaviour that `Behaviour.save` wrote.

    Raises:
        DamagedError: The file does not match its seal.
        BehaviourError: The file is sealed but holds no behaviour, or its prompts differ in length.

    Examples:
        >>> ioi.save(folder / "ioi.json")
        >>> behaviours.read(folder / "ioi.json")
        Behaviour('ioi', 64 prompts of 15 tokens)
    """
    content = storage.read_sealed(Path(path))
    if content.get("schema") not in (SCHEMA, SCHEMA_OF_SEVERAL, SCHEMA_OF_GROUPS):
        raise BehaviourError(
            f"{path}: holds {storage.held_kind(content)}, a behaviour is {SCHEMA!r}, as "
            "Behaviour.save writes it; rows of prompts may stand in a .jsonl, .csv or .tsv file"
        )
    storage.check_shape(content, SHAPE, path)
    for key in ("clean", "corrupt"):
        lengths = sorted({len(row) for row in content[key]})
        if len(lengths) > 1:
            raise BehaviourError(
                f"{path}: its {key} prompts have lengths {lengths}; make them equally long"
            )
    tensors = {key: torch.tensor(content[key]) for key in TENSORS}
    with storage.reading(path):
        several: dict[str, Any] = {
            key: tuple({int(token): float(weight) for token, weight in row} for row in content[key])
            for key in ("answers", "foils")
            if key in content
        }
        return Behaviour(
            name=content["name"],
            **tensors,
            subject=tuple(content["subject"]) if content["subject"] else None,
            candidates=tuple(content["candidates"]) if content["candidates"] else None,
            description=content["description"],
            tokenizer=content.get("tokenizer", ""),
            groups=tuple(content.get("groups", ())),
            **several,
        )
