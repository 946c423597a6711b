"""The commands `openbook behaviours`, `recall` and `detect`, and the options that commands share.

RUN is the folder of a run or a local Hugging Face folder. The latter has knowledge level
`weights-only`; the level is printed with every result. Each command parses its arguments, calls
one library function and prints the result.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from interp.errors import InterpError
from interp.plots import drawable
from train.cli.app import Json, Out, StorePath, answer
from train.errors import TrainError


if TYPE_CHECKING:
    from interp.behaviours import Behaviour, Check
    from interp.heads import Copying, HeadScores
    from interp.training_dynamics import Level, Recall
    from train.runs import Origin

Source = Annotated[
    Path, typer.Argument(metavar="RUN", help="Folder of a run, or a local Hugging Face folder.")
]
Named = Annotated[
    str,
    typer.Argument(
        metavar="BEHAVIOUR",
        help="Name of a behaviour (`openbook behaviours RUN` lists them), a .toml file of prompt "
        "templates, or a saved .json file.",
    ),
]
Step = Annotated[
    int | None, typer.Option(min=0, help="Step of the checkpoint to load; default: the last.")
]
Prompts = Annotated[int, typer.Option(min=1, help="Maximum number of prompts.")]
Seed = Annotated[
    int, typer.Option(min=0, help="Random seed for sampling prompts and everything else sampled.")
]
Kind = Literal["induction", "previous token", "duplicate token", "copying", "name moving"]
PROMPTS = 64
# Tokens on which copying and name moving are scored. On GPT-2 each token costs 22 GFLOP, half of
# it for the untrained control.
COPIED = 128
SHOWN_PROMPTS = 4


def behaviours_command(
    source: Source,
    name: Annotated[
        str | None, typer.Argument(metavar="[BEHAVIOUR]", help="Behaviour whose prompts to show.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Also list single facts and templates, one row each.")
    ] = False,
    step: Step = None,
    prompts: Prompts = PROMPTS,
    seed: Seed = 0,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """List the behaviours of RUN and how well it performs each, or show the prompts of one."""
    from interp import behaviours, models

    model, words = models.open(source, step=step, store=store)
    if name is None:
        # Parts of a behaviour and single facts are named whole:part, and there are many.
        known = [one for one in behaviours.names(words) if every or ":" not in one]
        rows, impossible = [], []
        for one in known:
            try:
                behaviour = behaviours.load(one, words, n_prompts=prompts, seed=seed)
                rows.append((one, behaviours.measure(model, behaviour)))
            except (InterpError, TrainError) as error:
                impossible.append({"name": one, "reason": str(error)})
        result = {"behaviours": [_check_row(*row) for row in rows], "impossible": impossible}
        reasons = [f"{one['name']}: {one['reason']}" for one in impossible]
        answer(result, "\n".join([_checks(dict(rows)), *reasons]), as_json=as_json, out=out)
        return
    behaviour = behaviours.load(name, words, n_prompts=prompts, seed=seed)
    check = behaviours.measure(model, behaviour)
    result = {**_check_row(name, check), "behaviour": behaviour.to_dict()}
    text = f"{_checks({name: check})}\n\n{_prompts(behaviour, model.tokenizer)}"
    answer(result, text, as_json=as_json, out=out)


def recall_command(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a planted run.")],
    step: Step = None,
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Print how many planted facts RUN recalls, grouped by how many documents state them."""
    from interp import behaviours, models, training_dynamics

    model, words = models.open(path, step=step, store=store)
    truth = behaviours.planted_truth(words)
    found = training_dynamics.recall_by_exposure(model, truth, model.tokenizer)
    result = {"provenance": _origin(model.origin), **found.to_dict()}
    answer(result, f"{_recall(found)}\n{provenance_line(model.origin)}", as_json=as_json, out=out)


def detect_command(
    source: Source,
    step: Step = None,
    sequences: Annotated[
        int, typer.Option(min=1, help="Number of random repeated sequences.")
    ] = 64,
    length: Annotated[int, typer.Option(min=2, help="Tokens in each of the two copies.")] = 24,
    seed: Annotated[
        int, typer.Option(min=0, help="Random seed of the tokens and of the untrained controls.")
    ] = 0,
    plot: Annotated[
        Path | None,
        typer.Option(callback=drawable, help="Write a figure to this .html or .png file."),
    ] = None,
    kind: Annotated[Kind, typer.Option(help="With --plot: score to draw.")] = "induction",
    store: StorePath = None,
    as_json: Json = False,
    out: Out = None,
) -> None:
    """Score every head of RUN by what it attends to, and by what it writes about those tokens."""
    from interp import models
    from interp.heads import (
        KINDS,
        best_head,
        copying_loss,
        detector_scores,
        name_moving,
        ov_copying,
        repeated_tokens,
    )

    model, words = models.open(source, step=step, store=store)
    tokens = repeated_tokens(words, n=sequences, length=length, seed=seed)
    found = {one: detector_scores(model, tokens, one, seed=seed) for one in KINDS}
    drawn = tokens[:, 1:].flatten().tolist()
    some = list(dict.fromkeys(drawn))[:COPIED]
    found["copying"] = ov_copying(model, some, seed=seed)
    found["name moving"] = name_moving(model, some, seed=seed)
    scores = {one: found[one].values for one in ("induction", "previous token")}
    copying = copying_loss(model, tokens)
    result = {
        "provenance": _origin(model.origin),
        **{f"{name} [layer head]": score.tolist() for name, score in scores.items()},
        "best": {name: list(best_head(score)) for name, score in scores.items()},
        "copying": {"first": copying.first, "second": copying.second, "top1": copying.top1},
        "n": copying.n,
        "scores": {one: score.to_dict() for one, score in found.items()},
    }
    if plot:
        from interp import plots

        plots.write(found[kind].plot(), plot)
    best = {name: best_head(score) for name, score in scores.items()}
    parts = [_heads(scores), _copying(best, copying), _found(found)]
    text = "\n".join([*parts, provenance_line(model.origin)])
    answer(result, text, as_json=as_json, out=out)


# --- text output ---------------------------------------------------------------------------------


def _check_row(name: str, check: "Check") -> dict[str, Any]:
    from dataclasses import asdict

    return {"name": name, **asdict(check)}


def _checks(checks: "dict[str, Check]") -> str:
    width = max([9, *map(len, checks)])
    head = f"{'behaviour':<{width}}  accuracy        95 %       top-1  logit difference    n"
    rows = [
        f"{name:<{width}}  {one.accuracy:8.3f}  [{one.interval[0]:.3f}, {one.interval[1]:.3f}]"
        f"  {one.top1:5.3f}  {one.score:16.3f}  {one.n:3}"
        for name, one in checks.items()
    ]
    return "\n".join([head, *rows])


def _prompts(behaviour: "Behaviour", tokenizer: Any) -> str:
    lines = [behaviour.description] if behaviour.description else []
    for row in range(min(behaviour.n_prompts, SHOWN_PROMPTS)):
        for kind, answer_to in (("clean", "answer"), ("corrupt", "foil")):
            prompt = tokenizer.decode(getattr(behaviour, kind)[row].tolist())
            token = tokenizer.decode([int(getattr(behaviour, answer_to)[row])])
            lines.append(f"{kind:<7}  {prompt} -> {token}")
    left = behaviour.n_prompts - SHOWN_PROMPTS
    return "\n".join([*lines, f"and {left} more"] if left > 0 else lines)


def _recall(found: "Recall") -> str:
    head = "exposures  facts    seen        95 %       held-out form        95 %       guessing"
    late = [_level(found.late, "late ")] if found.late else []
    return "\n".join([head, *map(_level, found.levels), *late])


def _level(level: "Level", when: str = "") -> str:
    seen, other = (
        "    -                  "
        if one.recall is None
        else f"{one.recall:5.3f}  [{one.low:.3f}, {one.high:.3f}]"
        for one in (level.seen, level.paraphrase)
    )
    exposures = when + str(level.exposures)
    return f"{exposures:>9}  {level.n:5}   {seen}          {other}        {level.baseline:5.3f}"


def _heads(scores: dict[str, Any]) -> str:
    induction, previous = scores["induction"], scores["previous token"]
    rows = [
        f"L{layer}H{head:<4}  {induction[layer, head]:9.3f}  {previous[layer, head]:14.3f}"
        for layer in range(induction.shape[0])
        for head in range(induction.shape[1])
    ]
    return "\n".join(["head     induction  previous token", *rows])


def _found(found: "dict[str, HeadScores]") -> str:
    rows = ["best              score  95 %              untrained, at most    n"]
    for kind, one in found.items():
        (name,) = one.top(1)
        bounds = one.interval(name)
        shown = "[{:6.3f}, {:6.3f}]".format(*bounds) if bounds else "no interval"
        least = "-" if one.highest_control is None else f"{one.highest_control:.3f}"
        rows.append(
            f"{kind:<15} {name:>5} {one[name]:6.3f}  {shown:<16}  {least:>8}  {one.n} {one.drawn}; "
            f"above: {', '.join(one.above_control[:6]) or 'none'}"
        )
    return "\n".join(rows)


def _copying(best: dict[str, tuple[str, float]], copying: "Copying") -> str:
    named = ", ".join(f"best {kind} {name} {score:.3f}" for kind, (name, score) in best.items())
    return (
        f"{named}\nloss on the first copy {copying.first:.3f}, on the second {copying.second:.3f} "
        f"nats a token ({copying.n} sequences)"
    )


def _origin(origin: "Origin") -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(origin)


def provenance_line(origin: Any) -> str:
    return (
        f"run {origin.run_id}, step {origin.step}, checkpoint {origin.checkpoint_sha256[:12]}, "
        f"knowledge {origin.knowledge}"
    )
