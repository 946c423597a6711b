"""Loading of behaviours by name: planted ones, those of Python code, templates, or files."""

from dataclasses import replace
from pathlib import Path

from interp.behaviours import code, paired_prompts, planted, templates
from interp.behaviours.behaviour import Behaviour, read, refuse_other_words, tokenizer_or_none
from interp.behaviours.encoding import store_of, tokenizer_of
from interp.behaviours.planted_facts import tuned_fact
from interp.behaviours.planted_names import names_in
from interp.errors import BehaviourError
from train.errors import nearest


__all__ = ["PACKAGED", "load", "names"]

PACKAGED = Path(__file__).parent


def load(name: str | Path, source: object, *, n_prompts: int = 64, seed: int = 0) -> Behaviour:
    """Load a behaviour by name, in the tokens of a model or run.

    Args:
        name: One of `names(source)`, or the path of a file: templates or paired rows (.toml),
            paired rows (.csv, .tsv, .jsonl; see `from_table`), or a saved behaviour (.json).
        source: A run, a token store, or a model with a tokenizer. If it has the truth table of a
            planted corpus, the prompts come from that table.
        n_prompts: Maximum number of prompts. A relation with few facts gives fewer.
        seed: Random seed for sampling prompts.

    Raises:
        BehaviourError: There is no such behaviour, or it cannot be stated in the vocabulary of the
            model.

    Examples:
        >>> ioi = behaviours.load("ioi", run)
        >>> ioi
        Behaviour('ioi', 64 prompts of 15 tokens)
        >>> model.to_string(ioi.clean[0])
        '<eot> when zoran and yvonne went to the beach , yvonne gave a key to'
        >>> model.to_string(ioi.answer[:1]), model.to_string(ioi.foil[:1])
        ('zoran', 'yvonne')
    """
    path, name = Path(name), str(name)
    drawn = {"n_prompts": n_prompts, "seed": seed}
    if path.suffix == ".json":
        behaviour = read(path)
        refuse_other_words(behaviour, source)
        return behaviour
    if path.suffix in paired_prompts.FILES:
        behaviour = paired_prompts.load(path, source, **drawn)
    elif path.suffix == ".toml":
        behaviour = templates.load(path, source, **drawn)
    elif planted.truth_of(source):
        behaviour = planted.load(name, source, **drawn)
    elif (tuned := _tuning_truth(source)) and name in _fact_names(tuned):
        behaviour = tuned_fact(name, tuned, tokenizer_of(source))
    elif name in code.CODE_BEHAVIOURS:
        behaviour = code.load(name, source, **drawn)
    elif name in names(source):
        behaviour = templates.load(PACKAGED / f"{name}.toml", source, **drawn)
    else:
        raise BehaviourError(f"there is no behaviour {name!r}{nearest(name, names(source))}")
    return replace(behaviour, tokenizer=getattr(tokenizer_or_none(source), "sha256", ""))


def names(source: object) -> list[str]:
    """List the behaviours that `load` can build for a model or run.

    Examples:
        >>> behaviours.names(run)[:6]
        ['ioi', 'induction', 'capital', 'maker', 'trade', 'ioi:names']
    """
    truth = planted.truth_of(source)
    if truth:
        return names_in(truth)
    tuned = _tuning_truth(source)
    if tuned:
        return _fact_names(tuned)
    return sorted([*code.names(source), *(path.stem for path in PACKAGED.glob("*.toml"))])


def _tuning_truth(source: object) -> dict | None:
    """Return the truth table of the planted tuning set of a run or store, or None."""
    return getattr(store_of(source), "tuning_truth", None)


def _fact_names(truth: dict) -> list[str]:
    return [fact["name"] for fact in truth["facts"]]
