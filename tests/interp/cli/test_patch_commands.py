"""`openbook patch`, `trace components` and `ablate`: what one writes, the next one reads."""

import json
import re

import pytest

from interp import behaviours, metrics, models, patching
from interp.cli.options import METRICS
from interp.cli.patch import effects_text
from interp.patching import Effects


@pytest.fixture
def asked(lookup_run, lookup_behaviour):
    return lookup_run.path, lookup_behaviour


def test_patch_prints_effects_with_intervals_baselines_and_provenance(openbook, asked, lookup_run):
    ended = openbook("patch", *asked, "--top", 1)
    assert ended.code == 0, ended.err
    head, baselines, best, chosen, left, run, meaning = ended.out.splitlines()
    assert head == "lookup: head, denoising, share of the clean-corrupt logit difference"
    assert baselines.startswith("baselines: clean ")
    assert baselines.endswith(
        "(logit difference in nats of log-odds, 12 prompts; all intervals are 95 % over prompts)"
    )
    assert best.startswith("L0H")
    assert "[" in best
    assert chosen.startswith("chosen on one half of the prompts, measured on the other 6: L0H")
    assert left == "and 1 place with smaller effects"
    assert run.startswith(f"run {lookup_run.id}, step 160")
    assert meaning == Effects.meaning


@pytest.mark.parametrize(
    "over",
    ["residual", "resid_mid", "resid_post", "mlps", "attention", "queries", "keys", "values",
     "patterns", "mlps:1"],
)  # fmt: skip
def test_every_sweep_has_a_word(openbook, asked, over):
    ended = openbook("patch", *asked, "--over", over, "--json")
    assert ended.code == 0, ended.err
    result = json.loads(ended.out)
    assert result["schema"] == "openbook.effects/1"
    assert result["n_prompts"] == 12


def test_positions_metrics_and_plots_are_options(openbook, asked, tmp_path):
    ended = openbook(
        "patch", *asked, "--positions", "1,-1", "--metric", "probability", "--metric",
        "logit-difference", "--json", "--plot", tmp_path / "heads.html",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    result = json.loads(ended.out)
    assert (result["metric"], result["also"][0]["metric"]) == ("probability", "logit difference")
    assert {name.partition("@")[2] for name in result["places"]} == {"1", "2"}
    assert (tmp_path / "heads.html").read_text().count("<html") == 1


def test_paths_lead_from_every_head_to_the_logits(openbook, asked, lookup_run, tmp_path):
    ended = openbook("paths", *asked, "--mlps", "recomputed", "--out", tmp_path / "paths.json")
    assert ended.code == 0, ended.err
    found = Effects.load(tmp_path / "paths.json")
    expected = patching.senders(
        models.load(lookup_run), behaviours.read(asked[1]), mlps="recomputed"
    )
    assert found.to_dict() == expected.to_dict()
    assert ", paths: logits, MLPs recomputed, denoising" in ended.out.splitlines()[0]


def test_estimates_come_with_how_wrong_they_are(openbook, asked, tmp_path):
    ended = openbook(
        "estimate", *asked, "--over", "residual", "--verify", 2,
        "--out", tmp_path / "estimate.json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert "verified exactly: 2 of 3 places on 12 prompts" in ended.out
    assert "largest exact effect among 1 other drawn at random: " in ended.out
    assert openbook("ablate", *asked, "--components", tmp_path / "estimate.json").code == 0


def test_what_patch_writes_ablate_reads(openbook, asked, tmp_path):
    assert openbook("patch", *asked, "--out", tmp_path / "heads.json").code == 0
    ended = openbook("ablate", *asked, "--components", tmp_path / "heads.json", "--take", 1)
    assert ended.code == 0, ended.err
    assert ended.out.startswith("lookup: mean ablation, change of the logit difference in nats")
    assert len([line for line in ended.out.splitlines() if line.startswith("L0H")]) == 1
    shown = re.findall(r"positive on \d\.\d\d \[\d\.\d\d, \d\.\d\d\]", ended.out)
    assert len(shown) == 2
    assert "nats of log-odds, positive on" in ended.out


def test_ablate_takes_sets_and_every_component_without_one(openbook, asked):
    every = json.loads(openbook("ablate", *asked, "--json").out)
    assert (
        "chosen on one half of the prompts, measured on the other" in openbook("ablate", *asked).out
    )
    assert every["names"] == ["L0H0", "L0H1", "L0.mlp"]
    both = openbook(
        "ablate", *asked, "--component", "L0H0", "--component", "L0.mlp", "--together",
        "--standin", "zero", "--json",
    )  # fmt: skip
    assert json.loads(both.out)["names"] == ["L0H0 + L0.mlp"]
    all_at_once = json.loads(openbook("ablate", *asked, "--together", "--json").out)
    assert all_at_once["names"] == ["L0H0 + L0H1 + L0.mlp"]
    first = json.loads(openbook("ablate", *asked, "--take", 2, "--json").out)
    assert first["names"] == ["L0H0", "L0H1"]


def test_a_number_of_draws_is_part_of_the_stand_in(openbook, asked, lookup_run):
    ended = openbook("ablate", *asked, "--standin", "resample:3", "--json")
    expected = patching.ablate(
        models.load(lookup_run), behaviours.read(asked[1]), standin="resample", draws=3
    )
    assert json.loads(ended.out) == {**expected.to_dict(), "meaning": expected.meaning}


def test_trace_components_prints_three_maps(openbook, asked, tmp_path):
    ended = openbook("trace", "components", *asked, "--top", 1, "--out", tmp_path / "trace.json")
    assert ended.code == 0, ended.err
    assert [part.split(",")[0] for part in ended.out.split("\n\n")] == [
        "lookup: resid_post",
        "lookup: mlp",
        "lookup: attn",
    ]
    assert json.loads((tmp_path / "trace.json").read_text())["damage"] == "replaced"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("patch", "--over", "mlps:2"), "a window of 2 layers was asked of a model that has 1"),
        (("patch", "--positions", "last"), "--positions is 'each', 'together' or numbers"),
        (("patch", "--positions", "1,99"), "position 99 was asked of prompts of 3 tokens"),
        (("paths", "--to", "L0H0"), "L0H0 is no receiver"),
        (("paths", "--to", "L0H0.q"), "no path leads there"),
        (("trace", "components", "--noise", "3"), "names no subject"),
        (("trace", "components", "--draws", "3"), "names no subject"),
        (("trace", "components", "--window", "3"), "a window of 3 layers was asked of a model"),
        (("ablate", "--component", "L0H7"), "L0H7 is head 7 of a model that has 2"),
        (("ablate", "--components", "L0H1"), "to name a component use --component L0H1"),
        (("ablate", "--component", "L0.mpl"), "no place is called 'mpl', did you mean 'mlp'"),
        (("estimate", "--method", "atp-star"), "GradDrop leaves nothing of a model of one layer"),
    ],
)
def test_what_cannot_be_done_is_one_line(openbook, asked, arguments, said):
    words = [
        word
        for word in arguments
        if word in ("patch", "paths", "trace", "components", "ablate", "estimate")
    ]
    ended = openbook(*words, *asked, *arguments[len(words) :])
    assert ended.code == 2
    assert said in ended.err
    assert len(ended.err.strip().splitlines()) == 1


@pytest.mark.parametrize("name", METRICS)
def test_the_baselines_of_every_named_metric_have_its_unit(asked, lookup_run, name):
    behaviour = behaviours.read(asked[1])
    metric = metrics.named(name, behaviour)
    assert metrics.UNITS[metric.name] == metric.unit
    effects = patching.mlps(lookup_run.load(), behaviour, metric=name)
    unit = "" if metric.unit == "probability" else f" in {metric.unit}"
    assert f"({metric.name}{unit}, 12 prompts" in effects_text(effects, 1)
