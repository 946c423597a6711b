"""The command `openbook detect`: what attention heads attend to and copy."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from interp.cli.options import ModelOptions, PlotOutput, origin_row, provenance_line
from train.cli.options import option_groups


if TYPE_CHECKING:
    from torch import Tensor

    from interp.heads import Copying, HeadScores


Kind = Literal["induction", "previous token", "duplicate token", "copying", "name moving"]


# Tokens on which copying and name moving are scored. On GPT-2 each token costs 22 GFLOP, half of
# it for the untrained control.
COPIED = 128


@option_groups
def detect_command(
    source: ModelOptions,
    output: PlotOutput,
    sequences: Annotated[
        int, typer.Option(min=1, help="Number of random repeated sequences.")
    ] = 64,
    length: Annotated[int, typer.Option(min=2, help="Tokens in each of the two copies.")] = 24,
    seed: Annotated[
        int, typer.Option(min=0, help="Random seed of the tokens and of the untrained controls.")
    ] = 0,
    kind: Annotated[Kind, typer.Option(help="With --plot: score to draw.")] = "induction",
) -> None:
    """Score every head of RUN by what it attends to, and by what it writes about those tokens.

    In some architectures what a head writes is no fixed map of a token; the output says why, and
    shows what it attends to.
    """
    from interp.errors import ModelError
    from interp.heads import (
        KINDS,
        best_head,
        copying_loss,
        detector_scores,
        name_moving,
        ov_copying,
        repeated_tokens,
    )

    model, words = source.open()
    tokens = repeated_tokens(words, n=sequences, length=length, seed=seed)
    found = {one: detector_scores(model, tokens, one, seed=seed) for one in KINDS}
    drawn = tokens[:, 1:].flatten().tolist()
    some = list(dict.fromkeys(drawn))[:COPIED]
    refusal = ""
    try:
        found["copying"] = ov_copying(model, some, seed=seed)
        found["name moving"] = name_moving(model, some, seed=seed)
    except ModelError as error:
        if kind not in found:
            raise
        refusal = f"no scores of copying and name moving: {error}"
    scores = {one: found[one].values for one in ("induction", "previous token")}
    copying = copying_loss(model, tokens)
    result = {
        "provenance": origin_row(model.origin),
        **{f"{name} [layer head]": score.tolist() for name, score in scores.items()},
        "best": {name: list(best_head(score)) for name, score in scores.items()},
        "copying": {"first": copying.first, "second": copying.second, "top1": copying.top1},
        "n": copying.n,
        "scores": {one: score.to_dict() for one, score in found.items()},
        "refused": refusal or None,
    }
    output.draw(found[kind])
    best = {name: best_head(score) for name, score in scores.items()}
    parts = [_heads(scores), _copying(best, copying), _found(found), *filter(None, [refusal])]
    text = "\n".join([*parts, provenance_line(model.origin)])
    output.emit(result, text, meaning=found[kind].meaning)


def _heads(scores: "dict[str, Tensor]") -> str:
    induction, previous = scores["induction"], scores["previous token"]
    rows = [
        f"L{layer}H{head:<4}  {induction[layer, head]:9.3f}  {previous[layer, head]:14.3f}"
        for layer in range(induction.shape[0])
        for head in range(induction.shape[1])
    ]
    head = "head     induction  previous token  (mean attention, 0 to 1; --json has intervals)"
    return "\n".join([head, *rows])


def _found(found: "dict[str, HeadScores]") -> str:
    rows = ["best              score  95 %              untrained, at most    n"]
    units: dict[str, list[str]] = {}
    for kind, one in found.items():
        units.setdefault(f"{one.unit}, on {one.material}", []).append(kind)
        (name,) = one.top(1)
        bounds = one.interval(name)
        shown = "[{:6.3f}, {:6.3f}]".format(*bounds) if bounds else "no interval"
        least = "-" if one.highest_control is None else f"{one.highest_control:.3f}"
        rows.append(
            f"{kind:<15} {name:>5} {one[name]:6.3f}  {shown:<16}  {least:>8}  {one.n} {one.drawn}; "
            f"above: {', '.join(one.above_control[:6]) or 'none'}"
        )
    rows += [f"{', '.join(kinds)}: {unit}" for unit, kinds in units.items()]
    return "\n".join([*rows, "intervals hold for a head named beforehand, not for the best of all"])


def _copying(best: dict[str, tuple[str, float]], copying: "Copying") -> str:
    named = ", ".join(f"best {kind} {name} {score:.3f}" for kind, (name, score) in best.items())
    return (
        f"{named}\nloss on the first copy {copying.first:.3f}, on the second {copying.second:.3f} "
        f"nats a token ({copying.n} sequences)"
    )
