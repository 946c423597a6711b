"""A run that is watched is the run that is not: the same bits, and a log of what grew in it."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import typer

from interp.heads import copying_loss, induction_heads, previous_token_heads
from train import runs, storage, trainer
from train.cli.train import train_command
from train.errors import DamagedError, TrainError
from train.model import GPT, GPTConfig, init_gpt
from train.runs import MonitorTask, manifest, monitor_log
from train.trainer import loop


pytestmark = pytest.mark.integration


class Killed(BaseException):
    """As if the process had ended: nothing of ours catches it."""


@pytest.fixture(scope="module")
def watches(tiny_store) -> list[MonitorTask]:
    """What any store can be watched for, and which of two words follows three others."""
    draw = np.random.default_rng(0)
    prompts = torch.from_numpy(draw.integers(50, size=(6, 3)))
    asked = MonitorTask("words", "answers", prompts, torch.arange(6), torch.arange(6) + 1)
    return [*trainer.store_tasks(tiny_store, 16), asked]


@pytest.fixture
def often(monkeypatch):
    """Looks between the checkpoints (0, 1, 2, 4, 8, 16, 24) too, whatever they cost."""
    monkeypatch.setattr(monitor_log, "PLANNED_SHARE", 5.0)


@pytest.fixture(scope="module")
def watched(tiny_run, tiny_store, watches, tmp_path_factory):
    """The tiny run again, looked at as it grows."""
    out = tmp_path_factory.mktemp("runs") / "watched"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monitor_log, "PLANNED_SHARE", 5.0)
        how = tiny_run.numerics
        return loop.train(tiny_run.recipe, tiny_store, out=out, numerics=how, watch=watches)


def seen(run) -> list[tuple]:
    """What a log says but how long it took."""
    return [(one.step, one.tokens, one.scores) for one in run.watched.looks]


# --- not one bit ---------------------------------------------------------------------------------


def test_watching_changes_no_weight_no_row_and_no_name_of_the_run(watched, tiny_run):
    assert watched.id == tiny_run.id
    for one, other in zip(watched.saved, tiny_run.saved, strict=True):
        assert one == other
    assert all(a.agrees(b) for a, b in zip(watched.ledger, tiny_run.ledger, strict=True))
    assert tiny_run.watched is None


def test_a_watched_run_is_verified_and_replayed_like_any(watched):
    assert trainer.verify(watched).level == "bit-exact"
    assert loop.replay(watched, 3, 20).exact


def test_a_look_leaves_mode_hooks_gradients_and_random_state_as_they_were(watches):
    model = init_gpt(GPTConfig(n_layers=2, n_heads=2, d_model=16, n_ctx=16, d_vocab=200), seed=0)
    before = [one.clone() for one in model.parameters()]
    state = torch.get_rng_state()
    for training in (True, False):
        model.train(training)
        trainer.measure_tasks(model, watches)
        assert model.training == training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(one.grad is None for one in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not any(point.fwd or point.bwd for point in model.hook_dict.values())


# --- the log -------------------------------------------------------------------------------------


def test_every_planned_step_is_looked_at_once_and_some_lie_between_checkpoints(watched):
    planned = watched.watched.steps
    assert tuple(one.step for one in watched.watched.looks) == planned
    assert set(planned) - set(watched.steps)
    assert {0, 24} <= set(planned)


def test_a_look_at_a_checkpoint_is_what_the_checkpoint_gives(watched):
    log = watched.watched
    at = {one.step: one for one in log.looks}
    for step in set(watched.steps) & set(at):
        found = trainer.measure_tasks(watched.load(step), log.watches)
        assert set(found) == set(at[step].scores)
        for name, score in found.items():
            assert at[step].scores[name].value == pytest.approx(score.value, rel=1e-5, abs=1e-6)
            assert at[step].scores[name].n == score.n
    last = watched.ledger[-1]
    assert at[24].tokens == last.tokens
    assert at[0].tokens == 0


def test_the_first_line_keeps_the_watches_themselves(watched, watches):
    for kept, given in zip(watched.watched.watches, watches, strict=True):
        assert kept.to_dict() == given.to_dict()


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("stop", [0, 1, 5, 8, 13, 23])
def test_a_run_killed_anywhere_goes_on_watched_and_each_look_stands_there_once(
    watched, tiny_store, watches, tmp_path, stop
):
    def progress(what, done, total):
        if done > stop:
            raise Killed

    out, how = tmp_path / "r", watched.numerics
    with pytest.raises(Killed):
        loop.train(
            watched.recipe, tiny_store, out=out, numerics=how, watch=watches, progress=progress
        )
    # Half a line, as a kill inside a write leaves it.
    with (out / monitor_log.MONITOR_LOG).open("ab") as file:
        file.write(b'{"step": 99, "sco')
    resumed = loop.resume(out)
    assert seen(resumed) == seen(watched)
    assert resumed.saved == watched.saved
    assert trainer.verify(resumed).level == "bit-exact"


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("place", ["begin", "look", "save"])
def test_a_run_killed_at_its_very_beginning_loses_no_look(
    watched, tiny_store, watches, tmp_path, monkeypatch, place
):
    owner, name = {
        "begin": (manifest, "begin_manifest"),
        "look": (storage.ChainWriter, "append"),
        "save": (loop, "save"),
    }[place]
    whole, calls = getattr(owner, name), []

    def kill(*arguments, **options):
        calls.append(name)
        if place == "look" and len(calls) == 1:  # the first line, before there is a manifest
            return whole(*arguments, **options)
        raise Killed

    monkeypatch.setattr(owner, name, kill)
    out, how = tmp_path / "r", watched.numerics
    with pytest.raises(Killed):
        loop.train(watched.recipe, tiny_store, out=out, numerics=how, watch=watches)
    monkeypatch.setattr(owner, name, whole)
    if place == "begin":
        again = loop.train(watched.recipe, tiny_store, out=out, numerics=how, watch=watches)
    else:
        again = loop.resume(out)
    assert seen(again) == seen(watched)


def test_what_a_killed_watched_run_left_before_its_manifest_does_not_watch_the_next(
    watched, tiny_store, tmp_path
):
    out = tmp_path / "r"
    out.mkdir()
    shutil.copy(watched.path / monitor_log.MONITOR_LOG, out)
    again = loop.train(watched.recipe, tiny_store, out=out, numerics=watched.numerics, steps=2)
    assert again.watched is None


def test_a_changed_log_is_named_by_verify_and_refused_by_whoever_reads_it(watched, tmp_path):
    shutil.copytree(watched.path, tmp_path / "run")
    path = tmp_path / "run" / monitor_log.MONITOR_LOG
    path.write_text(path.read_text().replace('"seconds": ', '"seconds": 1', 1))
    changed = runs.open(tmp_path / "run", store=watched.store.path)
    with pytest.raises(DamagedError, match="does not follow"):
        _ = changed.watched
    assert any(monitor_log.MONITOR_LOG in problem for problem in trainer.verify(changed).problems)
    path.unlink()
    found = trainer.verify(runs.open(tmp_path / "run", store=watched.store.path)).problems
    assert any(f"{monitor_log.MONITOR_LOG}: the file is missing" in problem for problem in found)


def test_a_model_that_is_no_number_is_not_written_down(tiny_recipe, watches, tmp_path):
    monitor_log.begin_monitor_log(tmp_path, watches, replace(tiny_recipe, model=GPTConfig(
        n_layers=1, n_heads=2, d_model=16, n_ctx=16, d_vocab=200)))  # fmt: skip
    model = init_gpt(GPTConfig(n_layers=1, n_heads=2, d_model=16, n_ctx=16, d_vocab=200), seed=0)
    with torch.no_grad():
        model.embed.weight.fill_(float("nan"))
    watcher = trainer.Monitor(tmp_path, 0, "cpu")
    watcher.look(model, 0, 0)
    watcher.close()
    assert monitor_log.read_monitor_log(tmp_path).looks == ()


# --- the plan ------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 24, 2200, 52_453])
def test_looks_are_planned_for_a_hundredth_of_training_and_never_fewer_than_two(
    tiny_recipe, watches, steps
):
    recipe = replace(tiny_recipe, steps=steps)
    planned = monitor_log.monitor_schedule(recipe, watches)
    assert planned == sorted(set(planned))
    assert {planned[0], planned[-1]} == {0, steps}
    price = 2 * sum(one.tokens.numel() for one in watches)
    spent = (len(planned) - 2) * price / (3 * steps * recipe.tokens_per_step)
    assert spent <= 0.01
    assert len(planned) <= 130


def test_half_of_the_looks_are_spaced_by_ratio_and_half_evenly(tiny_recipe, watches):
    planned = monitor_log.monitor_schedule(replace(tiny_recipe, steps=100_000), watches)
    assert sum(step <= 1000 for step in planned) > 30
    assert max(np.diff(planned)) < 100_000 / 60
    assert len(planned) > 110


# --- the scores ----------------------------------------------------------------------------------


def test_scores_of_heads_agree_with_those_that_interp_finds(tiny_store):
    model = init_gpt(GPTConfig(n_layers=2, n_heads=3, d_model=24, n_ctx=24, d_vocab=200), seed=1)
    watch = trainer.copying_task(range(2, 60), tiny_store.eot, n=5, length=10, seed=3)
    scores = trainer.measure_tasks(model, [watch])
    for name, heads in (
        ("induction", induction_heads(model, watch.tokens)),
        ("previous token", previous_token_heads(model, watch.tokens)),
    ):
        values = heads if isinstance(heads, torch.Tensor) else heads.values
        found = [[scores[f"{name} L{i}H{j}"].value for j in range(3)] for i in range(2)]
        torch.testing.assert_close(torch.tensor(found), values, atol=1e-6, rtol=1e-5)
        assert scores[name].value == max(max(row) for row in found)
    gap = copying_loss(model, watch.tokens).gap
    assert scores["copying gap"].value == pytest.approx(gap, abs=1e-5)


class Stub(GPT):
    """Logits by hand: the loss at position p of every window is p nats, to 1e-4."""

    def forward(self, tokens):
        logits = torch.zeros(*tokens.shape, self.cfg.d_vocab)
        n_pos = tokens.shape[1]
        # The target is always token 1; the others share the rest of the probability.
        wanted = torch.exp(-torch.arange(n_pos).double())
        others = (1 - wanted).clamp(min=1e-12) / (self.cfg.d_vocab - 1)
        logits[..., 1] = (wanted / others).log().float()
        return logits


def test_the_in_context_score_is_the_last_sixteenth_minus_the_second():
    model = Stub(GPTConfig(n_layers=1, n_heads=1, d_model=4, n_ctx=32, d_vocab=8))
    tokens = torch.ones(3, 33, dtype=torch.long)
    found = trainer.measure_tasks(model, [MonitorTask("context", "context", tokens)])["in-context"]
    # 32 targets: positions 30 and 31 against 2 and 3.
    assert found.value == pytest.approx(30.5 - 2.5, abs=1e-3)
    assert found.n == 6


def test_padding_is_not_a_target():
    model = Stub(GPTConfig(n_layers=1, n_heads=1, d_model=4, n_ctx=32, d_vocab=8))
    tokens = torch.ones(2, 33, dtype=torch.long)
    tokens[0, 31:] = 5  # end-of-text twice: the second is padding, and so is what stands behind it
    found = trainer.measure_tasks(model, [MonitorTask("context", "context", tokens, eot=5)])[
        "in-context"
    ]
    assert found.n == 3
    tokens[:, 30:] = 5
    assert trainer.measure_tasks(model, [MonitorTask("context", "context", tokens, eot=5)]) == {}


def test_an_answer_beats_its_foil_or_all_candidates():
    model = Stub(GPTConfig(n_layers=1, n_heads=1, d_model=4, n_ctx=32, d_vocab=8))
    tokens = torch.tensor([[3], [4]])  # one position: token 1 has all the probability
    asked = MonitorTask("x", "answers", tokens, torch.tensor([1, 2]), torch.tensor([3, 3]))
    found = trainer.measure_tasks(model, [asked])
    assert found["x accuracy"].value == 0.5
    assert found["x logit difference"].value > 5
    among = replace(asked, answer=torch.tensor([1, 1]), candidates=(1, 2, 3))
    assert trainer.measure_tasks(model, [among])["x accuracy"].value == 1.0


def test_one_prompt_against_two_foils_is_one_case():
    model = Stub(GPTConfig(n_layers=1, n_heads=1, d_model=4, n_ctx=32, d_vocab=8))
    asked = MonitorTask(
        "x", "answers", torch.tensor([[3], [3]]), torch.tensor([1, 1]), torch.tensor([2, 3])
    )
    score = trainer.measure_tasks(model, [asked])["x accuracy"]
    assert (score.n, score.error) == (1, None)


# --- what is refused -----------------------------------------------------------------------------


def test_watches_that_contradict_themselves_or_each_other_are_refused(
    tiny_run, tiny_store, watches, tmp_path
):
    two = torch.tensor([[1, 2], [3, 4]])
    with pytest.raises(TrainError, match="2 prompts, 2 answers and 0 foils"):
        MonitorTask("x", "answers", two, torch.tensor([1, 2]))
    with pytest.raises(TrainError, match="not an end-of-text and two equal copies"):
        MonitorTask("x", "copies", torch.tensor([[0, 1, 2, 1, 3]]))
    with pytest.raises(TrainError, match="30 different tokens cannot be drawn from 5"):
        trainer.copying_task(range(5), 0, length=30)
    wide = MonitorTask(
        "wide", "answers", torch.zeros(1, 17).long(), torch.tensor([1]), torch.tensor([2])
    )
    for given, reason in (
        ([watches[-1], watches[-1]], "2 watches write the scores of 'words'"),
        ([wide], "has 17 tokens up to 0; the model takes 16 tokens below"),
        ([replace(wide, tokens=torch.tensor([[9999]]))], "up to 9999; the model takes"),
    ):
        with pytest.raises(TrainError, match=reason):
            loop.train(
                tiny_run.recipe, tiny_store, out=tmp_path / "r", numerics=tiny_run.numerics,
                watch=given,
            )  # fmt: skip
        assert not (tmp_path / "r" / "manifest.json").exists()


# --- the command ---------------------------------------------------------------------------------


def test_the_command_watches_unless_told_not_to(tiny_store, tmp_path, openbook):
    for option, expected in ((), True), (("--no-watch",), False):
        out = tmp_path / f"run{len(option)}"
        done = openbook(
            "train", "text-small", tiny_store.path, "--out", out, "--steps", 2, "--batch-size", 1,
            "--threads", 1, "--precision", "fp32", "--json", *option,
        )  # fmt: skip
        assert done.code == 0, done.err
        assert bool(json.loads(done.out)["watched"]) == expected
        assert (runs.open(out).watched is not None) == expected
    both = [runs.open(tmp_path / name) for name in ("run0", "run1")]
    assert both[0].id == both[1].id
    assert both[0].saved == both[1].saved


def test_whoever_registers_the_command_adds_behaviours(tiny_store, watches, tmp_path):
    app = typer.Typer()
    app.command("train", context_settings={"obj": [lambda store, context: [watches[-1]]]})(
        train_command
    )
    app.command("other")(lambda: None)
    arguments = ["train", "text-small", str(tiny_store.path), "--out", str(tmp_path / "r")]
    arguments += ["--steps", "1", "--batch-size", "1", "--threads", "1", "--precision", "fp32"]
    app(arguments, standalone_mode=False)
    scores = runs.open(tmp_path / "r").watched.looks[-1].scores
    assert {"words accuracy", "copying gap", "in-context"} <= set(scores)
