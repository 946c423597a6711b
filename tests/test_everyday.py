"""What a stranger types first: a version, short help, examples, and mistakes found at once."""

import shlex
import subprocess
import sys
from contextlib import suppress
from typing import Any

import pytest
import typer

from data_attribution.cli.app import app
from data_attribution.cli.examples import EXAMPLES
from data_attribution.errors import AttributionError
from interp import components
from interp.errors import InterpError, ModelError
from train.convert import gguf
from train.errors import TrainError


def command_of(name: str) -> Any:
    found: Any = typer.main.get_command(app)
    for word in name.split():
        found = found.commands[word]
    return found


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_of_every_help_can_be_typed(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    command = command_of(name)
    assert command.epilog.startswith(f"Example: openbook {name}")
    words = shlex.split(command.epilog)[2 + len(name.split()) :]
    # What it names is not here, which is said after it was parsed.
    with suppress(TrainError, InterpError, AttributionError):
        command.make_context(name, words)


def test_every_command_has_an_example():
    def names(group: Any, before: str = "") -> list[str]:
        found = []
        for name, one in group.commands.items():
            inner = getattr(one, "commands", None)
            found += names(one, f"{before}{name} ") if inner else [before + name]
        return found

    assert names(typer.main.get_command(app)) == [*EXAMPLES]


@pytest.mark.integration
def test_version_and_short_help(openbook):
    assert openbook("--version").out.startswith("openbook ")
    for words in ([], ["patch"], ["trace", "documents"]):
        short, long = openbook(*words, "-h"), openbook(*words, "--help")
        assert short.out == long.out
        assert "Usage: " in short.out
    assert "Example: openbook patch runs/planted ioi" in openbook("patch", "-h").out


MISTAKES = [
    (["patch", "nowhere", "ioi"], "neither a run (manifest.json) nor"),
    (["run", "show", "nowhere"], "no run at nowhere: no manifest.json there"),
    (["patch", ".", "mine.csv"], "mine.csv: there is no such file"),
    (["patch", ".", "ioi", "--metric", "logit_diff"], "'logit-diff' is not one of"),
    (["ablate", ".", "ioi", "--out", "here.txt"], "here.txt exists and is no result of openbook"),
]


@pytest.mark.integration
@pytest.mark.parametrize(("words", "said"), MISTAKES, ids=str)
def test_a_mistake_is_found_before_torch_is_imported(words, said, tmp_path):
    (tmp_path / "here.txt").write_text("mine")
    code = f"""
import sys
sys.argv = ["openbook", *{words!r}]
from data_attribution.cli.app import main
try:
    main()
except SystemExit as end:
    print(end.code, "torch" in sys.modules)
"""
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "2 False\n"
    assert said in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("given", "name"),
    [("a0.h2", "L0H2"), ("m3", "L3.mlp"), ("blocks.1.hook_mlp_out", "L1.mlp"),
     ("blocks.1.hook_resid_pre", "L1.resid_pre"), ("L0H2", "L0H2")],
)  # fmt: skip
def test_a_component_may_have_the_name_of_a_circuit_or_of_a_hook_point(given, name):
    assert str(components.parse(given)) == name


def test_a_hook_point_of_all_heads_is_no_component():
    with pytest.raises(ModelError, match=r"hook_q holds all of a layer; .* L0H0\.q"):
        components.parse("blocks.0.attn.hook_q")
    with pytest.raises(ModelError, match="names no place"):
        components.parse("blocks.0.hook_nothing")


@pytest.mark.integration
def test_ablate_takes_a_name_a_hook_point_and_over_takes_resid_pre(
    openbook, lookup_run, lookup_behaviour
):
    from interp import behaviours, models, patching

    asked = (lookup_run.path, lookup_behaviour)
    done = openbook("ablate", *asked, "--component", "blocks.0.attn.hook_z", "--component", "m0")
    assert done.code == 0, done.err
    assert "L0H0 + L0H1" in done.out
    assert "L0.mlp" in done.out
    model, behaviour = models.load(lookup_run), behaviours.read(lookup_behaviour)
    assert patching.ablate(model, behaviour, "L0H1").names == ("L0H1",)
    for over in ("resid_pre", "residual"):
        assert "L0.resid_pre@1" in openbook("patch", *asked, "--over", over).out


def test_the_missing_reader_of_gguf_is_named_before_the_download(monkeypatch, tmp_path):
    from train import convert

    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    with pytest.raises(TrainError, match=r"run `pip install -e '\.\[gguf\]'` in the clone"):
        convert.fetch_pretrained("smollm2", out=tmp_path / "data" / "smollm2")
    assert not (tmp_path / "data").exists()


def test_a_table_of_sources_prints_its_text_in_a_narrow_shell(monkeypatch):
    import pandas

    from data_attribution.attribution import Sources
    from tests.test_golden_files import GOLDEN

    table = Sources.load(GOLDEN / "results" / "sources.json").show(5)
    with pandas.option_context("display.width", 60, "display.max_columns", 0):
        assert "text" in repr(table).splitlines()[0]
        assert "..." not in repr(table).splitlines()[0]
