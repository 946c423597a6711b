"""Does `openbook evaluate` give the numbers of lm-evaluation-harness on the same files and model?

    OPENBOOK_LM_EVAL_PYTHON=lm-eval/bin/python python benchmarks/evaluation_harness.py \\
        --data FOLDER --out FOLDER [--model FOLDER] [--on lambada sst2 ...] [--limit N]

lm-eval 0.4.13 lives in an environment of its own, which `OPENBOOK_LM_EVAL_PYTHON` names; it needs
no network. `--data` is a folder with the files of `FILES`. Without `--model`, a small model of
Python's standard library is trained first (byte pairs of 1,024, contexts of 320), so that its
training text is known; `--model drawn` has the shape of GPT-2 small and drawn weights.

Compared are every score, the log-probability of every answer, the verdict on every item and every
generated text. Asked: verdicts, texts and the words and bytes of every page are equal, scores and
log-probabilities agree to a relative 1e-5. CPU seconds of both sides, tokenizing and the search for
overlap included, are printed; nothing is asked of them.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch

from data_attribution import contamination, token_index
from interp.model_evaluation import Overlap, Score, protocols
from train import convert, numerics, progress, runs, trainer
from train.data import build_store, gpt2_tokenizer, open_corpus
from train.model import GPTConfig, init_gpt
from train.recipes import GPT2_124M, Recipe
from train.statistics import Estimate


TOLERANCE = 1e-5
FILES = {
    "lambada": "lambada_test.jsonl.gz",
    "sst2": "sst2_dev.tsv.gz",
    "wikitext": "wikitext2_test.txt.gz",
    "gsm8k": "gsm8k_test.jsonl.gz",
    "gsm8k_train": "gsm8k_train.jsonl.gz",
    "blimp": "blimp.zip",
}
TASKS = {
    "lambada": "lambada_openai",
    "sst2": "sst2",
    "wikitext": "wikitext",
    "gsm8k": "gsm8k",
    "blimp": "blimp",
}
METRICS = {
    ("lambada", "accuracy"): "acc,none",
    ("lambada", "perplexity per word"): "perplexity,none",
    ("sst2", "accuracy"): "acc,none",
    ("wikitext", "bits per byte"): "bits_per_byte,none",
    ("wikitext", "perplexity per word"): "word_perplexity,none",
    ("gsm8k", "strict match"): "exact_match,strict-match",
    ("gsm8k", "flexible extract"): "exact_match,flexible-extract",
    ("blimp", "accuracy"): "acc,none",
}
RECIPE = Recipe(
    name="evaluated",
    model=GPTConfig(n_layers=2, n_heads=2, d_model=64, n_ctx=320, d_vocab=1024),
    batch_size=8,
    steps=400,
    lr=3e-3,
    min_lr=3e-4,
    warmup_steps=40,
    checkpoint_every=400,
)


@dataclass(frozen=True)
class Row:
    """A measure on both sides.

    Attributes:
        overlap: Items that overlap with the training text, as text.
        unequal: Items with another verdict, text, or number of words or bytes.
        answers: Largest relative difference of the log-probability of an answer; 0 if there are no
            log-probabilities.
    """

    protocol: str
    measure: str
    n: int
    ours: Estimate
    overlap: str
    harness: float
    unequal: int
    answers: float

    @property
    def difference(self) -> float:
        """Relative difference of the scores."""
        return relative(np.array([self.ours.value]), np.array([self.harness]))


@dataclass(frozen=True)
class Answers:
    """What our side computed: a score, and what its verdicts rest on."""

    score: Score
    log_probabilities: list[float]
    texts: list[str]
    seconds: float


def main() -> int:
    """Score the model on both sides, compare, print; 1 if anything differs."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the evaluation files")
    parser.add_argument("--out", type=Path, required=True, help="folder for model and results")
    parser.add_argument("--model", help="run, Hugging Face folder, or drawn; default: train one")
    parser.add_argument("--on", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--limit", type=int, help="items of each file, or pairs of each paradigm")
    parser.add_argument("--gsm8k-items", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    python = os.environ.get("OPENBOOK_LM_EVAL_PYTHON")
    if not python:
        parser.error("OPENBOOK_LM_EVAL_PYTHON must name a python that has lm-eval 0.4.13")
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    model, twin = opened(arguments.model, arguments.out)
    files = {name: str(arguments.data / file) for name, file in FILES.items()}
    limits = {
        name: arguments.gsm8k_items if name == "gsm8k" else arguments.limit for name in arguments.on
    }
    out = arguments.out / "harness.json"
    request = {
        "model": str(twin),
        "tasks": {TASKS[name]: limit for name, limit in limits.items()},
        "files": files,
        "threads": arguments.threads,
        "out": str(out),
    }
    theirs = harness(python, request, arguments.out / "request.json")
    rows = []
    print(f"{machine.described('torch')}, {arguments.threads} threads; {model}", flush=True)
    print(f"lm-eval {theirs['lm-eval']}")
    for name, limit in limits.items():
        ours, task = answered(model, name, files, limit), theirs["tasks"][TASKS[name]]
        rows += compared(ours, task)
        versions = {value for key, value in task["versions"].items() if key != "local files"}
        print(f"{name} {ours.score.version} ({', '.join(map(str, versions))} there): CPU seconds "
              f"{ours.seconds:.1f}, of the harness {task['seconds']:.1f}", flush=True)  # fmt: skip
    return report(rows)


def opened(name: str | None, out: Path) -> tuple[Path, Path]:
    """Return the model that we open, and the Hugging Face folder that the harness opens."""
    if name == "drawn":
        path = out / "drawn"
        if not path.exists():
            convert.export_huggingface(init_gpt(GPT2_124M.model, 0), gpt2_tokenizer(), path)
        return path, path
    path = trained(out) if name is None else Path(name)
    if not (path / runs.MANIFEST).is_file():
        return path, path
    twin = out / f"{path.name}-huggingface"
    if not twin.exists():
        convert.export_run(runs.open(path), out=twin)
    return path, twin


def trained(out: Path) -> Path:
    """Train the small model if it is not there; its store gets a token index."""
    path = out / "run"
    if not path.exists():
        with progress.bar("training") as advance:
            store = build_store(open_corpus("stdlib"), out=out / "store", vocab_size=1024)
            token_index.build(store)
            how = numerics.choose(threads=1, precision="fp32")
            trainer.train(RECIPE, store, out=path, numerics=how, progress=advance)
    return path


def harness(python: str, request: dict[str, Any], file: Path) -> dict[str, Any]:
    """Return what `harness_scores.py` writes."""
    file.write_text(json.dumps(request))
    script = Path(__file__).with_name("harness_scores.py")
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run([python, script, file], check=True, env=os.environ | offline)
    return json.loads(Path(request["out"]).read_text())


@contextmanager
def recorded(name: str, results: list[Any]) -> Iterator[None]:
    """Keep what a function returns to the protocols."""
    function = getattr(protocols, name)

    def recording(*values: Any, **options: Any) -> Any:
        result = function(*values, **options)
        results.extend(result)
        return result

    setattr(protocols, name, recording)
    try:
        yield
    finally:
        setattr(protocols, name, function)


def answered(model: Path, name: str, files: dict[str, str], limit: int | None) -> Answers:
    """Score our model on one file, as `openbook evaluate` does."""
    given = f"{files[name]},{files['gsm8k_train']}" if name == "gsm8k" else files[name]
    rows: list[Any] = []
    texts: list[str] = []
    begin = time.process_time()
    with recorded("score_rows", rows), recorded("greedy_texts", texts):
        table = contamination.evaluate_models([model], [f"{name}={given}"], limit=limit)
    seconds = time.process_time() - begin
    values = [float(row.log_probabilities.sum()) for row in rows]
    return Answers(table.scores[0], values, texts, seconds)


# --- comparison ----------------------------------------------------------------------------------


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the largest difference, relative to their value if that is over 1."""
    return float((np.abs(ours - theirs) / np.maximum(1, np.abs(theirs))).max())


def compared(ours: Answers, theirs: dict[str, Any]) -> Iterator[Row]:
    """Compare every measure of a score with the harness' results and items."""
    score, items = ours.score, theirs["items"]
    # Paradigms of BLiMP are tasks there, in another order.
    paradigms = dict.fromkeys(score.groups) or dict.fromkeys([TASKS[score.protocol]])
    tasks = [f"blimp_{name}" if score.groups else name for name in paradigms]
    samples = [row for task in tasks for row in sorted(items[task], key=lambda row: row["doc_id"])]
    overlap = "unknown"
    if isinstance(score.overlap, Overlap):
        overlap = f"{score.overlap.flagged.sum()} ({score.overlap.share.value:.1%})"
    for measure in score.measures:
        metric = METRICS[score.protocol, measure.name]
        kept = [row for row in samples if metric.partition(",")[2] == row["filter"]]
        unequal, answers = differences(ours, measure.name, kept)
        # The harness averages over paradigms, which have equally many pairs.
        value = float(np.mean([theirs["results"][task][metric] for task in tasks]))
        yield Row(
            score.protocol, measure.name, measure.n, measure.estimate, overlap, value, unequal,
            answers,
        )  # fmt: skip


def differences(ours: Answers, name: str, samples: list[dict[str, Any]]) -> tuple[int, float]:
    """Return the number of unequal items, and the largest difference of a log-probability."""
    measure, protocol = ours.score.measure(name), ours.score.protocol
    if len(samples) != measure.n:
        return abs(len(samples) - measure.n), float("inf")
    if protocol == "gsm8k":
        verdicts = np.array([row["exact_match"] for row in samples])
        same = [row["resps"][0][0] == text for row, text in zip(samples, ours.texts, strict=True)]
        return int((~np.array(same) | (verdicts != measure.part)).sum()), 0.0
    # One list per answer, of which the harness keeps the only repetition.
    values = [np.ravel(answer[0])[0] for row in samples for answer in row["resps"]]
    if protocol == "wikitext":
        answers = relative(-measure.part, np.array(values))
        field = "word_perplexity" if "word" in name else "byte_perplexity"
        sizes = np.array([row[field][1] for row in samples])
        return int((sizes != measure.whole).sum()), answers
    answers = relative(np.array(ours.log_probabilities), np.array(values))
    if measure.unit != "share":
        return 0, answers
    return int((np.array([row["acc"] for row in samples]) != measure.part).sum()), answers


def report(rows: list[Row]) -> int:
    """Print the table; 1 if a score, an answer or a verdict differs."""
    heads = ("measure", "n", "overlap", "ours", "harness", "scores", "answers", "unequal items")
    print(f"\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    failures = 0
    for row in rows:
        low, high = row.ours.low, row.ours.high
        interval = "" if low is None or high is None else f" [{low:.5g}, {high:.5g}]"
        print(
            f"| {row.protocol}: {row.measure} | {row.n:,} | {row.overlap} | "
            f"{row.ours.value:.8g}{interval} | {row.harness:.8g} | {row.difference:.1e} | "
            f"{row.answers:.1e} | {row.unequal} |"
        )
        equal = row.difference <= TOLERANCE and row.answers <= TOLERANCE and row.unequal == 0
        failures += not equal
    print(f"\nasked: at most {TOLERANCE:g}, and no unequal item; {failures} rows fail")
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
