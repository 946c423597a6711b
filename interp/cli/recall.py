"""The command `openbook recall`: planted facts by how often they were stated."""

from typing import TYPE_CHECKING

from interp.cli.options import ModelOptions, origin_row, provenance_line
from train.cli.options import option_groups
from train.cli.output import Output


if TYPE_CHECKING:
    from interp.training_dynamics import Level, Recall


@option_groups
def recall_command(source: ModelOptions, output: Output) -> None:
    """Print how many facts a planted RUN recalls, grouped by how many documents state them."""
    from interp import behaviours, training_dynamics

    model, words = source.open()
    truth = behaviours.planted_truth(words)
    found = training_dynamics.recall_by_exposure(model, truth, model.tokenizer)
    result = {"provenance": origin_row(model.origin), **found.to_dict()}
    text = f"{_recall(found)}\n{provenance_line(model.origin)}"
    output.emit(result, text, meaning=found.meaning)


def _recall(found: "Recall") -> str:
    head = "documents  facts    seen        95 %       held-out form        95 %       guessing"
    late = [_level(found.late, "late ")] if found.late else []
    return "\n".join([head, *map(_level, found.levels), *late])


def _level(level: "Level", when: str = "") -> str:
    seen, other = (
        "    -                  "
        if one.recall is None
        else f"{one.recall:5.3f}  [{one.low:.3f}, {one.high:.3f}]"
        for one in (level.seen, level.paraphrase)
    )
    documents = when + str(level.exposures)
    return f"{documents:>9}  {level.n:5}   {seen}          {other}        {level.baseline:5.3f}"
