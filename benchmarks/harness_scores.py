"""Scores of lm-evaluation-harness on local files, for `evaluation_harness.py`.

It runs in an environment of its own that has lm-eval: `python harness_scores.py REQUEST`. REQUEST
is a JSON file with `model` (a Hugging Face folder), `tasks` (a limit for each, or null), `files`
(paths by the names in `READERS`, `gsm8k_train` and `blimp`), `threads` and `out`. The metrics and
the answers to every item are written to `out`. Tasks are the harness' own; `custom_dataset` gives
them the local files.
"""

import gzip
import json
import sys
import time
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]
from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]
from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]


Rows = list[dict[str, Any]]
# The split that each task takes its documents from; gsm8k takes its examples from "train".
SPLITS = {"lambada_openai": "test", "wikitext": "test", "sst2": "validation", "gsm8k": "test"}

# Of each item: the model's answers, and what the metrics are computed from.
KEPT = (
    "doc_id", "filter", "resps", "acc", "exact_match", "word_perplexity", "byte_perplexity",
)  # fmt: skip


def text(path: str) -> str:
    content = Path(path).read_bytes()
    return (gzip.decompress(content) if path.endswith(".gz") else content).decode("utf-8")


def objects(content: str) -> Rows:
    return [json.loads(line) for line in content.split("\n") if line.strip()]


def pages(content: str) -> Rows:
    """Articles, as the data set `EleutherAI/wikitext_document_level` cuts them."""
    found, page = [], []
    for line in content.split("\n"):
        heading = line.replace("= = =", "===").replace("= =", "==").strip()
        if heading.startswith("= ") and heading.endswith(" ="):
            if "\n".join(page).strip():
                found.append("\n".join(page))
            page = []
        page.append(line)
    return [{"page": one} for one in [*found, "\n".join(page)]]


def sentences(content: str) -> Rows:
    lines = [line.split("\t") for line in content.split("\n") if line]
    return [{"sentence": sentence, "label": int(label)} for sentence, label in lines]


READERS: dict[str, tuple[str, Callable[[str], Rows]]] = {
    "lambada_openai": ("lambada", objects),
    "wikitext": ("wikitext", pages),
    "sst2": ("sst2", sentences),
    "gsm8k": ("gsm8k", objects),
}


def configured(task: str, splits: dict[str, Rows]) -> dict[str, Any]:
    """The harness' own task, on these rows."""
    sets = DatasetDict({name: Dataset.from_list(rows) for name, rows in splits.items()})
    return {"task": task, "custom_dataset": lambda **_: sets}


def configurations(task: str, files: dict[str, str]) -> list[dict[str, Any]]:
    if task == "blimp":
        with zipfile.ZipFile(files["blimp"]) as archive:
            paradigms = {
                Path(name).stem: archive.read(name).decode("utf-8")
                for name in archive.namelist()
                if name.endswith(".jsonl") and not name.startswith("__MACOSX")
            }
        return [
            configured(f"blimp_{name}", {"train": objects(content)})
            for name, content in paradigms.items()
        ]
    key, read = READERS[task]
    rows = read(text(files[key]))
    # The tasks name a train split too; only gsm8k takes anything from it.
    train = objects(text(files["gsm8k_train"])) if task == "gsm8k" else rows[:1]
    return [configured(task, {SPLITS[task]: rows, "train": train, "validation": rows})]


def main(request: dict[str, Any]) -> None:
    torch.set_num_threads(request["threads"])
    folder = request["model"]
    model = HFLM(pretrained=folder, tokenizer=folder, device="cpu", dtype="float32", batch_size=32)
    manager, found = TaskManager(), {}
    for task, limit in request["tasks"].items():
        begin = time.process_time()
        result = simple_evaluate(
            model=model,
            # Only inside a group does the harness complete a task's own configuration with ours.
            tasks=[{"group": "local files", "task": configurations(task, request["files"])}],
            task_manager=manager,
            limit=limit,
            bootstrap_iters=0,
        )
        found[task] = {
            "seconds": time.process_time() - begin,
            "results": result["results"],
            "versions": result["versions"],
            "items": {
                name: [{key: row[key] for key in KEPT if key in row} for row in rows]
                for name, rows in result["samples"].items()
            },
        }
        content = {"lm-eval": version("lm_eval"), "tasks": found}
        Path(request["out"]).write_text(json.dumps(content, default=float))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
