"""The command `openbook behaviours`: what a model can be asked."""

from typing import TYPE_CHECKING, Annotated

import typer

from interp.cli.options import PROMPTS, ModelOptions, Prompts, Seed
from interp.errors import InterpError
from train.cli.options import option_groups
from train.cli.output import Output
from train.errors import TrainError


if TYPE_CHECKING:
    from interp.behaviours import Behaviour, Check
    from train.data import Tokenizer


SHOWN_PROMPTS = 4


@option_groups
def behaviours_command(
    source: ModelOptions,
    output: Output,
    name: Annotated[
        str | None, typer.Argument(metavar="BEHAVIOUR", help="Behaviour whose prompts to show.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Also list single facts and templates, one row each.")
    ] = False,
    prompts: Prompts = PROMPTS,
    seed: Seed = 0,
) -> None:
    """List the behaviours of RUN and how well it performs each, or show the prompts of one."""
    from interp import behaviours

    model, words = source.open()
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
        output.emit(result, "\n".join([_checks(dict(rows)), *reasons]))
        return
    behaviour = behaviours.load(name, words, n_prompts=prompts, seed=seed)
    check = behaviours.measure(model, behaviour)
    result = {**_check_row(name, check), "behaviour": behaviour.to_dict()}
    text = f"{_checks({name: check})}\n\n{_prompts(behaviour, model.tokenizer)}"
    output.emit(result, text)


def _check_row(name: str, check: "Check") -> dict[str, object]:
    from dataclasses import asdict

    return {"name": name, **asdict(check)}


def _checks(checks: "dict[str, Check]") -> str:
    width = max([9, *map(len, checks)])
    head = (
        f"{'behaviour':<{width}}  accuracy        95 %       top-1        95 %       "
        "logit difference, nats    n"
    )
    rows = [
        f"{name:<{width}}  {one.accuracy:8.3f}  [{one.interval[0]:.3f}, {one.interval[1]:.3f}]"
        f"  {one.top1:5.3f}  {_wilson(one.top1, one.n)}  {one.score:22.3f}  {one.n:3}"
        for name, one in checks.items()
    ]
    return "\n".join([head, *rows])


def _wilson(share: float, n: int) -> str:
    from train.statistics import wilson

    return "[{:.3f}, {:.3f}]".format(*wilson(share, n))


def _prompts(behaviour: "Behaviour", tokenizer: "Tokenizer") -> str:
    lines = [behaviour.description] if behaviour.description else []
    for row in range(min(behaviour.n_prompts, SHOWN_PROMPTS)):
        for kind, answer_to in (("clean", "answer"), ("corrupt", "foil")):
            prompt = tokenizer.decode(getattr(behaviour, kind)[row].tolist())
            tokens = [tokenizer.decode([one]) for one in behaviour.weights_of(answer_to, row)]
            lines.append(f"{kind:<7}  {prompt} -> {' | '.join(tokens)}")
    left = behaviour.n_prompts - SHOWN_PROMPTS
    return "\n".join([*lines, f"and {left} more"] if left > 0 else lines)
