"""`openbook evaluate`: a table of models, and one line for what cannot be evaluated."""

import json

import pytest

from data_attribution.contamination import Evaluations
from tests.worlds.evaluation_files import drawn_model, evaluation_files
from tests.worlds.tuning import tiny_tuning_store
from train import trainer


pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return evaluation_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face folder with drawn weights and GPT-2's tokenizer."""
    from train import convert

    model, path = drawn_model(), tmp_path_factory.mktemp("hub") / "drawn"
    convert.export_huggingface(model, model.tokenizer, path)
    return path


def test_one_command_prints_the_table_and_json_holds_every_number(openbook, tiny_run, tmp_path):
    step, out = f"{tiny_run.path}@8", tmp_path / "table.json"
    ended = openbook("evaluate", tiny_run.path, step, "--on", "heldout", "--out", out)
    assert ended.code == 0
    assert "heldout 1: bits per byte" in ended.out
    assert "not told apart" in ended.out or "higher" in ended.out
    ended = openbook("evaluate", tiny_run.path, step, "--on", "heldout", "--json")
    content = json.loads(ended.out)
    row = content["rows"][0]
    assert (row["protocol"], row["measure"], row["model"]) == ("heldout", "bits per byte", "tiny")
    assert row["low"] < row["value"] < row["high"]
    kept = {key: one for key, one in json.loads(out.read_text()).items() if key != "digest"}
    assert {**kept, "meaning": Evaluations.meaning} == content


def test_a_hugging_face_folder_is_scored_and_its_overlap_is_unknown(openbook, folder, files):
    ended = openbook(
        "evaluate", folder, "--on", f"lambada={files['lambada']}",
        "--on", f"blimp={files['blimp']}", "--json",
    )  # fmt: skip
    assert ended.code == 0
    content = json.loads(ended.out)
    assert content["rows"][0]["overlap"] == "the training text of this model is not known"
    assert [(one["group"], one["n"]) for one in content["groups"]] == [
        ("anaphor_number_agreement", 3), ("wh_island", 3),
    ]  # fmt: skip


def test_stages_of_a_tuned_run_are_rows_of_their_own(openbook, tiny_run, tmp_path):
    examples = tiny_tuning_store("instructions", tiny_run.tokenizer, tmp_path / "instructions")
    tuned = trainer.tune(tiny_run, examples, "sft", out=tmp_path / "sft", steps=2, batch_size=2)
    on = f"heldout={tiny_run.store.path}"
    ended = openbook("evaluate", tuned.path, "--stages", "--on", on, "--json")
    assert ended.code == 0
    content = json.loads(ended.out)
    assert [one["model"] for one in content["rows"]] == ["tiny", "tiny", "sft", "sft"]
    assert [one["baseline"] for one in content["differences"]] == ["tiny", "tiny"]


@pytest.mark.parametrize(
    ("on", "message"),
    [
        ("lambada=nowhere.jsonl", "there is no file nowhere.jsonl"),
        ("lamda=x", "no protocol 'lamda', did you mean 'lambada'"),
        ("gsm8k=x", "give gsm8k=x,TRAIN"),
        ("sst2", "sst2 needs a file: give sst2=FILE"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(openbook, tiny_run, on, message):
    ended = openbook("evaluate", tiny_run.path, "--on", on)
    assert ended.code == 2
    assert ended.out == ""
    (line,) = ended.err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_file_of_another_protocol_is_one_line(openbook, tiny_run, files):
    ended = openbook("evaluate", tiny_run.path, "--on", f"lambada={files['sst2']}")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.count("\n") == 1
    assert "line 1 is not readable as JSON (Expecting value, at letter 1); an obj" in ended.err
