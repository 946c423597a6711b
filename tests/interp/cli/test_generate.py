"""`openbook generate` continues a text, and `model.generate` takes one."""

import json

import pytest

from interp import models
from train import storage


pytestmark = pytest.mark.integration


def test_generate_prints_what_the_model_continues(openbook, lookup_run, tmp_path):
    model, out = models.load(lookup_run), tmp_path / "text.json"
    done = openbook("generate", lookup_run.path, "--prompt", "k3 is", "--tokens", 1, "--out", out)
    assert (done.code, done.err) == (0, "")
    assert done.out == "k3 is v3\n" == model.generate("k3 is", 1) + "\n"
    held = storage.read_sealed(out)
    assert (held["text"], held["prompt"], held["seed"]) == ("k3 is v3", "k3 is", 0)
    assert held["provenance"]["run_id"] == lookup_run.id
    drawn = [
        openbook(
            "generate", lookup_run.path, "--temperature", 3, "--tokens", 9, "--seed", seed, "--json"
        )
        for seed in (0, 0, 1)
    ]
    texts = [json.loads(one.out)["text"] for one in drawn]
    assert texts[0] == texts[1] != texts[2]
