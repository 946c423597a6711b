"""Losses and gradients of SFT and DPO equal those of trl on the same batch.

trl lives in an environment of its own: set OPENBOOK_TRL_PYTHON to a Python that has trl 1.16, torch
and transformers (`python -m venv trl && trl/bin/pip install trl`). Without it this test is skipped;
`test_tuning.py` derives both losses independently and always runs.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.worlds.models import shaken
from tests.worlds.tuning import tiny_examples, tiny_tuning_store
from train import convert, trainer
from train.data import Batch, read_batch, tuning
from train.model import GPT
from train.runs import Run


pytestmark = pytest.mark.slow

ORACLE = Path(__file__).parents[2] / "trl_oracle.py"
PYTHON = os.environ.get("OPENBOOK_TRL_PYTHON", "")
SHORT = {"steps": 2, "batch_size": 8, "lr": 1e-2}


@pytest.fixture(scope="module")
def tuned(tiny_run, tmp_path_factory) -> dict[str, Run]:
    """The tiny run tuned on instructions and on preferences, by kind."""
    out = tmp_path_factory.mktemp("trl")
    found = {}
    for kind, objective in zip(tuning.KINDS, ("sft", "dpo"), strict=True):
        store = tiny_tuning_store(kind, tiny_run.tokenizer, out / kind)
        found[kind] = trainer.tune(tiny_run, store, objective, out=out / objective, **SHORT)
    return found


def rows(run: Run, batch: Batch, kind: str) -> list[dict[str, list[int]]]:
    """The examples of a batch as trl takes them: ids of prompt and answers, the end included."""
    examples = {example.row: example for example in tiny_examples(kind).read()}
    encode, eot = run.tokenizer.encode, run.store.eot
    found = []
    for start in batch.starts.tolist():
        example = examples[run.store.document(int(run.store.document_at(start + 1))).row]
        answers = {"response_ids": example.response, "chosen_ids": example.response}
        answers["rejected_ids"] = example.rejected or ""
        ids = {name: [*encode(text).tolist(), eot] for name, text in answers.items() if text}
        found.append({"prompt_ids": [eot, *encode(example.prompt).tolist()], **ids})
    return found


@pytest.mark.skipif(not PYTHON, reason="OPENBOOK_TRL_PYTHON names no Python that has trl")
def test_losses_and_gradients_equal_those_of_trl(tuned, tiny_run, tmp_path):
    model: GPT = shaken(tiny_run.config)
    convert.export_huggingface(model, None, tmp_path / "model")
    convert.export_huggingface(tiny_run.load(), None, tmp_path / "reference")
    batches = {kind: read_batch(run.store, run.order, 1) for kind, run in tuned.items()}
    content = {
        "beta": 0.1,
        "eot": tiny_run.store.eot,
        "pairs": rows(tuned["preferences"], batches["preferences"], "preferences"),
        "instructions": rows(tuned["instructions"], batches["instructions"], "instructions"),
    }
    (tmp_path / "batch.json").write_text(json.dumps(content))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    subprocess.run([PYTHON, ORACLE, tmp_path], check=True, env=environment, timeout=1200)
    theirs = load_file(tmp_path / "trl.safetensors")

    for kind, name in (("preferences", "dpo"), ("instructions", "sft")):
        loss = trainer.objective_of(tuned[kind])(model, batches[kind])
        assert loss.item() == pytest.approx(theirs[f"{name}.loss"].item(), abs=1e-5)
        model.zero_grad()
        loss.backward()
        # Our gradients in trl's names and layout: the exporter's, applied to the gradients.
        ours = GPT(tiny_run.config)
        with torch.no_grad():
            for one, other in zip(ours.parameters(), model.parameters(), strict=True):
                assert other.grad is not None
                one.copy_(other.grad)
        expected = dict(convert.to_huggingface(ours).named_parameters())
        compared = {
            key.removeprefix(f"{name}/"): one
            for key, one in theirs.items()
            if "/" in key and key.startswith(name)
        }
        assert compared.keys() == expected.keys()
        for key, one in expected.items():
            assert torch.allclose(one, compared[key], atol=1e-5), (name, key)
