"""A mistake in a path or a name is found before torch is imported, which takes seconds."""

import json
import subprocess
import sys

import pytest


TRUTH = {
    "ioi": {"openings": ["when"], "closings": ["gave", "handed"]},
    "relations": {"capital": {}},
    "facts": [{"entity": "zemora"}],
}
# One process runs them all: torch must not be there after any of them.
RUN_EACH = """
import contextlib, io, json, sys
from data_attribution.cli import app

for words in json.loads(sys.argv[1]):
    sys.argv, said = ["openbook", *words], io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            code = app.main()
        except SystemExit as exit:
            code = exit.code
    print(code, "torch" in sys.modules, said.getvalue().strip().splitlines()[-1], flush=True)
"""
MISTAKES = {
    "patch nowhere ioi": "neither a run (manifest.json) nor a Hugging Face model",
    "forget nowhere": "no run at nowhere",
    "patch run ioii": "there is no behaviour 'ioii', did you mean 'ioi'",
    "patch run ioi:0-2": "there is no behaviour 'ioi:0-2', did you mean",
    "patch run mine.csv": "mine.csv: there is no such file",
    "patch run ioi --out run": "run: a folder",
    "patch run ioi --plot heads.gif": "its name must end in",
    "trace documents run fact:zemoro": "there is no behaviour 'fact:zemoro', did you mean",
    "counterfactual run capitals --without 1": "there is no behaviour 'capitals'",
    "erase run word-class nobody --layer 0": "there is no behaviour 'nobody'",
    "emergence run heads:nobody": "there is no behaviour 'nobody'",
    "emergence run copyin": "no analysis is called 'copyin', did you mean 'copying'",
    "emergence run copying:ioi": "no analysis is called 'copying:ioi', did you mean",
    "trace documents run ioi --method lexikal": "no evidence is called 'lexikal', did you mean",
    "trace sentence run some --method bm25:rank=8": "bm25 evidence has no option 'rank=8'",
    "trace head run previous-token:L0H0 --method gradient:kind=cosin": "not compared by 'cosin'",
    "report run ioi --method lexikal": "no evidence is called 'lexikal', did you mean",
    "report run ioii": "there is no behaviour 'ioii', did you mean 'ioi'",
    "report run ioi --unrelated nobody": "there is no behaviour 'nobody'",
    "patch runn ioi": "lies at runn, did you mean run?",
    "patch nowhere/run ioi": "this folder exists and holds other, run, store",
    "index count stor words": "there is no token store at stor; make one with",
    "counterfactual run ioi --without effects.json": "effects.json was written by `openbook patch`",
    "report run ioi --sources effects.json": "a file of `openbook trace documents --out` or",
    "report run ioi --proof effects.json": "a file of `openbook counterfactual --out` or",
    "faithfulness run ioi effects.json": "a file of `openbook circuit --out` is read here",
    "lens tuned run ioi effects.json": "a file of `openbook lens fit --out` is read here",
    "ablate run ioi --components proof.json": "was written by `openbook counterfactual`; a file of",
    "trace documents run ioi --method gradient:within=proof.json": "a file of `openbook patch",
    "generate run words": "--prompt takes the text to continue",
    "train planted nowhere --out other": "there is no token store at nowhere",
    "train planted store --out run": "run exists already; resume it",
    "probe run words.jsonl": "words.jsonl: there is no such file",
}


def outcomes(folder) -> list[str]:
    (folder / "run").mkdir()
    (folder / "store").mkdir()
    (folder / "other").mkdir()
    (folder / "effects.json").write_text('{"schema": "openbook.effects/1"}')
    proof = dict.fromkeys(("parent", "named", "removed", "effects"))
    (folder / "proof.json").write_text(json.dumps(proof))
    manifest = {"predicate": {"store_path": "../store"}}
    (folder / "run" / "manifest.json").write_text(json.dumps(manifest))
    (folder / "store" / "truth.json").write_text(json.dumps(TRUTH))
    (folder / "store" / "store.json").write_text("{}")
    asked = json.dumps([words.split() for words in MISTAKES])
    done = subprocess.run(
        [sys.executable, "-c", RUN_EACH, asked], cwd=folder, capture_output=True, text=True
    )
    assert not done.stderr, done.stderr
    return done.stdout.splitlines()


def test_mistakes_are_found_before_torch_is_imported(tmp_path):
    for (words, said), found in zip(MISTAKES.items(), outcomes(tmp_path), strict=True):
        code, torch, text = found.split(" ", 2)
        assert (words, code, torch) == (words, "2", "False")
        assert said in text


@pytest.mark.parametrize("name", ["ioi", "ioi:0-1", "capital", "fact:zemora", "ioi:names"])
def test_known_names_are_not_refused(tmp_path, name):
    from interp import behaviours

    (tmp_path / "truth.json").write_text(json.dumps(TRUTH))
    behaviours.refuse_unknown_name(name, tmp_path / "run", tmp_path)


def test_names_of_runs_whose_truth_is_not_at_hand_are_left_to_the_loading(tmp_path):
    from interp import behaviours

    behaviours.refuse_unknown_name("anything", tmp_path)
    (tmp_path / "truth.json").write_text('{"facts": []}')  # of a tuning set
    behaviours.refuse_unknown_name("anything", tmp_path, tmp_path)
