"""The command that makes the ranking of a page again, as a reader types it."""

import re
import shlex

from data_attribution.report.behaviour_results import BehaviourResults
from data_attribution.report.text import typed_text
from interp import behaviours, metrics
from interp.behaviours import Behaviour
from interp.errors import InterpError
from interp.metrics import LOGIT_DIFFERENCE
from train import storage
from train.errors import TrainError
from train.runs import Run


__all__ = ["command_of_ranking"]

LIMIT = 20  # documents that `openbook trace documents` lists unless --limit is given
SCORES = {"induction": "prefix-matching", "previous token": "previous-token"}
HEAD_SCORE = re.compile(rf"(?P<kind>{'|'.join(SCORES)}) score of (?P<head>L\d+H\d+)")


def command_of_ranking(found: BehaviourResults) -> str:
    """Return the command that made the ranking of a page.

    "" if the ranking does not tell, or if no option of the command says what was asked: documents
    that were ranked alone, copies that were not folded, or options of methods without a name.
    """
    about = found.sources.provenance
    asked = about.get("asked")
    if asked is None:  # of an earlier version
        if found.sources.query != found.behaviour.name:
            return ""
        method = f"--method {shlex.quote(found.sources.method)} --out sources.json"
        parts = (found.traced or found.named, method, found.options)
        return found.command("trace documents", " ".join(filter(None, parts)), named=False)
    if asked.get("candidates") or asked.get("unspelled") or not asked.get("fold", True):
        return ""
    metric = str(about.get("metric", LOGIT_DIFFERENCE))
    verb, target, options = _ranked_for(found, asked, metric)
    if not verb:
        return ""
    how = [f"--method {shlex.quote(asked['methods'])}"]
    how += [f"--limit {_number(asked['limit'])}"] if asked["limit"] != LIMIT else []
    options = re.sub(r"\s*--seed \d+", "", options)
    options += f" --seed {_number(asked['seed'])}" * bool(asked["seed"])
    text = asked.get("text", "") if verb == "trace sentence" else ""
    tail = typed_text(text, *how, "--out sources.json", options.strip(), word=target)
    return found.command(verb, tail, named=False)


def _number(value: int) -> str:
    return shlex.quote(str(value))


def _ranked_for(
    found: BehaviourResults, asked: storage.JsonObject, metric: str
) -> tuple[str, str, str]:
    """Return the command that traces what was asked, its target, and options of its prompts."""
    nothing = ("", "", "")
    if "query" in asked:
        head = HEAD_SCORE.fullmatch(asked["query"])
        if head is None or "behaviour" in asked or "text" in asked:
            return nothing
        return "trace head", f"{SCORES[head['kind']]}:{head['head']}", ""
    if "text" in asked:
        # `traced` names the file that a long text is read from.
        return "trace sentence", found.traced or shlex.quote(asked["text"]), ""
    name = metric.replace(" ", "-")
    if name not in metrics.METRICS:
        return nothing
    followed = "" if metric == LOGIT_DIFFERENCE else f"--metric {name} "
    if "behaviour" not in asked:
        return nothing
    if asked["behaviour"] == found.behaviour.sha256:
        return "trace documents", found.named, f"{followed}{found.options}".strip()
    other = _loaded(found.sources.query, found.run, asked["seed"])
    if other is None or other.sha256 != asked["behaviour"]:
        return nothing
    return "trace documents", shlex.quote(found.sources.query), followed.strip()


def _loaded(name: str, run: Run, seed: int) -> Behaviour | None:
    """Return a behaviour by name, with the prompts that a command draws; None if there is none."""
    try:
        return behaviours.load(name, run, seed=seed)
    except (InterpError, TrainError):
        return None
