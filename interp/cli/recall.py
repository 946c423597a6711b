"""The command `openbook recall`: planted facts by how often they were stated."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interp.cli.options import Step, origin_row, provenance_line
from train.cli.options import Json, Out, StorePath
from train.cli.output import emit


if TYPE_CHECKING:
    from interp.training_dynamics import Level, Recall


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
    result = {"provenance": origin_row(model.origin), **found.to_dict()}
    emit(result, f"{_recall(found)}\n{provenance_line(model.origin)}", as_json=as_json, out=out)


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
