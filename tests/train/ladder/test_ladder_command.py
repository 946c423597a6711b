"""`openbook ladder` says its cost, trains, prints a table, and refuses in one line."""

import json

import pytest

from tests.worlds.commands import Ended, refused
from train.ladder import LadderTable


pytestmark = pytest.mark.integration
SMALL = (
    "--set", "model.n_ctx=16", "--set", "model.n_layers=1", "--set", "model.d_model=16",
    "--set", "model.n_heads=2", "--set", "model.d_head=8", "--set", "batch_size=2",
    "--set", "model.sinks=none", "--set", "model.n_sinks=0", "--set", "model.bias=false",
)  # fmt: skip
HOW = ("--threads", 1, "--precision", "fp32", "--seeds", 2, "--steps", 2)


def test_a_ladder_says_its_cost_trains_and_goes_on(openbook, tiny_store, tmp_path):
    out, plot = tmp_path / "ladder", tmp_path / "ladder.html"
    command = ("ladder", "gpt2-nano", "modern-nano", tiny_store.path, "--out", out, *SMALL, *HOW)
    told = openbook(*command, "--plot", plot)
    assert told.code == 0
    assert told.err.startswith("6 members, 12 trainings: 768 tokens, about ")
    assert "| **One after another, to modern-nano**" in told.out
    assert "as many parameters as gpt2-nano" in told.out
    assert "change in held-out loss (nats)" in plot.read_text(encoding="utf-8")
    again = openbook(*command, "--json")
    assert again.err == "12 trainings, 12 are there already: nothing to train\n"
    shown = json.loads(again.out)
    kinds = [row["kind"] for row in shown["rows"]]
    assert kinds == ["start", *["alone"] * 3, *["cumulative"] * 3]
    last = shown["rows"][-1]["change"]
    assert last["low"] < last["value"] < last["high"]
    assert last["n"] == 2
    file = json.loads((out / "table.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in file.items() if key != "digest"}
    assert {**kept, "meaning": LadderTable.meaning} == shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("retro-nan", "modern-nano"), "no architecture is called 'retro-nan', did you mean"),
        (("retro-nano", "retro-nano"), "have the same parts; choose two that differ"),
        (("retro", "modern-nano"), "windows of 1024 tokens and modern-nano of 64"),
        (("gpt2-nano", "slowrun-nano", *SMALL), "loop_layers=1 from loop_first=2 on need n_layers"),
        (("gpt2-nano", "modern-nano", "--set", "model.mlp=rel"), "no mlp is called 'rel'"),
        (("retro-nano", "modern-nano", "--recipe", "tex"), "no recipe is called 'tex'"),
        (("retro-nano", "modern-nano", "--steps", 3, "--set", "steps=4"), "both set steps"),
        (("retro-nano", "modern-nano", "--device", "gpu"), "device is 'auto', 'cpu', 'cuda' or"),
        (("gpt2-nano", "retro-nano", "--set", "model.d_mlp=4"), "equal parameters are impossible"),
    ],
)
def test_bad_input_is_refused_in_one_line(openbook, tiny_store, tmp_path, words, said):
    start, end, *others = words
    told = openbook("ladder", start, end, tiny_store.path, "--out", tmp_path / "new", *others)
    refused(told, 2, said)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_is_no_ladder_and_a_store_that_is_none_are_refused(
    openbook, tiny_store, tiny_run, tmp_path
):
    def asked(store, out) -> Ended:
        return openbook("ladder", "retro-nano", "modern-nano", store, "--out", out)

    refused(asked(tiny_store.path, tiny_run.path), 2, "exists already and holds no ladder")
    refused(asked(tmp_path / "none", tmp_path / "new"), 2, "there is no token store at")
    (tmp_path / "file").write_text("text")
    assert asked(tiny_store.path, tmp_path / "file").code == 2
