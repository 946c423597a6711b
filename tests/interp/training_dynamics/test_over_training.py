"""An analysis over training is one table, computed once, and says when something rose."""

import math
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from interp import behaviours, patching, training_dynamics
from interp.cli import emergence as command
from interp.errors import CapabilityError, EffectsError, InterruptedWarning
from interp.heads import copying_loss, induction_heads
from interp.training_dynamics import Analysis, Trajectory, TrajectoryPoint, checkpoint_analysis
from tests.worlds.figures import traces
from train import convert, runs, trainer
from train.data import DocumentRemoval
from train.errors import DamagedError, StoreError, TrainError
from train.model import GPTConfig, init_gpt
from train.runs import MonitorScore
from train.trainer import loop, monitoring, optimizer


pytestmark = pytest.mark.integration


@pytest.fixture
def run(lookup_run, tmp_path):
    """A copy of the run that learned twelve pairs, free to be written into."""
    shutil.copytree(lookup_run.path, tmp_path / "run")
    return runs.open(tmp_path / "run", store=lookup_run.store.path)


@pytest.fixture
def counted():
    """An analysis that counts how often it is asked: the norm of a weight, and the step."""
    asked = []

    def measure(model, step):
        asked.append(step)
        return {"norm": float(model.embed.weight.norm().detach()), "step": step}

    return Analysis("norm", measure, {"weight": "embed"}), asked


def keep_file(run):
    (path,) = (run.path / checkpoint_analysis.FOLDER).iterdir()
    return path


# --- the table -----------------------------------------------------------------------------------


def test_the_table_has_a_row_a_number_and_step_with_the_tokens_read_until_then(run, counted):
    found = training_dynamics.over_training(run, counted[0])
    frame = found.to_frame()
    assert list(frame.columns) == ["step", "tokens", "name", "value", "low", "high", "n"]
    assert found.steps == run.steps
    ledger = run.ledger
    for row in [row for row in frame.to_dict("records") if row["name"] == "step"]:
        assert row["value"] == row["step"]
        assert row["tokens"] == (ledger[row["step"] - 1].tokens if row["step"] else 0)
        weights = run.load(row["step"]).embed.weight
        norm = frame[(frame["step"] == row["step"]) & (frame["name"] == "norm")]["value"].item()
        assert norm == pytest.approx(weights.norm().item())


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("all", [0, 1, 2, 4, 8, 16, 32, 40, 80, 120, 160]),
        ("log:2", [0, 160]),
        ("log:3", [0, 16, 160]),
        ("log:400", [0, 1, 2, 4, 8, 16, 32, 40, 80, 120, 160]),
        ([80, 0, 80], [0, 80]),
        ("80, 0", [0, 80]),
    ],
)
def test_steps_are_all_or_spread_by_ratio_or_named(run, asked, expected):
    assert checkpoint_analysis.chosen_steps(run.steps, asked) == expected


@pytest.mark.parametrize("asked", ["log:1", "log:x", "lin:4", "", "some"])
def test_steps_that_say_nothing_are_refused(run, asked):
    with pytest.raises(TrainError, match="steps are 'all', 'log:40' or steps such as"):
        checkpoint_analysis.chosen_steps(run.steps, asked)


def test_a_step_without_a_checkpoint_is_refused_with_the_nearest(run, counted):
    with pytest.raises(TrainError, match="no checkpoint at step 79; nearest is 80"):
        training_dynamics.over_training(run, counted[0], steps=[0, 79])
    assert counted[1] == []


# --- nothing twice -------------------------------------------------------------------------------


def test_a_second_call_computes_nothing_and_a_longer_one_what_is_missing(run, counted):
    analysis, asked = counted
    first = training_dynamics.over_training(run, analysis, steps="log:3")
    assert asked == [0, 16, 160]
    assert training_dynamics.over_training(run, analysis, steps="log:3") == first
    assert asked == [0, 16, 160]
    whole = training_dynamics.over_training(run, analysis)
    assert sorted(asked) == run.steps
    assert set(first.points) <= set(whole.points)


def test_other_parameters_or_another_name_are_another_analysis(run, counted):
    analysis, asked = counted
    for other in (
        analysis,
        replace(analysis, parameters={"weight": "x"}),
        replace(analysis, name="n"),
    ):
        training_dynamics.over_training(run, other, steps=[0])
    assert asked == [0, 0, 0]


def test_rows_are_found_by_the_weights_and_not_by_the_step(run, counted, lookup_run, tmp_path):
    """A retrained run shares its parent's first checkpoints: these are not asked again."""
    analysis, asked = counted
    training_dynamics.over_training(run, analysis, out=tmp_path / "rows")
    document = int(max(range(240), key=lambda one: int(lookup_run.steps_reading(one)[0])))
    child = loop.retrain_without(lookup_run, tmp_path / "child", DocumentRemoval((document,)))
    n_before = len(asked)
    found = training_dynamics.over_training(child, analysis, out=tmp_path / "rows")
    own = {one.files["model.safetensors"] for one in run.saved}
    new = [one.step for one in child.saved if one.files["model.safetensors"] not in own]
    assert asked[n_before:] == new
    assert 0 < len(new) < len(child.steps)
    assert found.steps == child.steps
    assert found.run_id == child.id != run.id


@pytest.mark.parametrize("how", ["in the analysis", "inside a sweep"])
def test_ctrl_c_keeps_the_finished_rows(run, counted, how):
    analysis, asked = counted

    def interrupted(model, step):
        if step == 16 and how == "inside a sweep":
            # As a sweep does: it warns and returns its finished part.
            warnings.warn("Ctrl-C", InterruptedWarning, stacklevel=1)
            return {"norm": math.nan, "step": step}
        if step == 16:
            raise KeyboardInterrupt
        return analysis.measure(model, step)

    with pytest.raises(KeyboardInterrupt):
        training_dynamics.over_training(run, replace(analysis, measure=interrupted))
    assert asked == [0, 1, 2, 4, 8]
    training_dynamics.over_training(run, analysis)
    assert asked == run.steps


def test_a_torn_row_is_computed_again_and_an_edited_one_is_refused(run, counted):
    analysis, asked = counted
    first = training_dynamics.over_training(run, analysis, steps=[0, 80])
    path = keep_file(run)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert training_dynamics.over_training(run, analysis, steps=[0, 80]) == first
    assert asked == [0, 80, 80]
    path.write_bytes(whole.replace(b'"norm"', b'"nurm"', 1))
    with pytest.raises(DamagedError, match="does not follow"):
        training_dynamics.over_training(run, analysis, steps=[0, 80])


def test_two_at_once_do_not_write_the_same_rows(run, counted):
    analysis = counted[0]

    def inside(model, step):
        return training_dynamics.over_training(run, analysis, steps=[0]).to_dict()

    with pytest.raises(TrainError, match="another process is writing"):
        training_dynamics.over_training(run, replace(analysis, measure=inside))


def test_a_run_with_kept_rows_still_verifies(run, counted):
    training_dynamics.over_training(run, counted[0])
    assert trainer.verify(run, spans=1).level == "bit-exact"


def test_a_bare_function_is_computed_each_time_and_cannot_be_kept(run, counted, tmp_path):
    analysis, asked = counted
    for _ in range(2):
        training_dynamics.over_training(run, analysis.measure, steps=[0])
    assert asked == [0, 0]
    assert not (run.path / checkpoint_analysis.FOLDER).exists()
    with pytest.raises(EffectsError, match="a bare function has none"):
        training_dynamics.over_training(run, analysis.measure, out=tmp_path)


# --- between checkpoints -------------------------------------------------------------------------


def test_between_checkpoints_the_run_is_trained_again_bit_for_bit(run, counted):
    """At checkpoints on the way it is the checkpoint; in between it is what lies between."""
    analysis, asked = counted
    found = training_dynamics.replayed(run, analysis, 75, 123, every=5)
    assert found.parameters["exact"]
    assert found.steps == asked == [*range(75, 121, 5), 123]
    kept = training_dynamics.over_training(run, analysis, steps=[80, 120])
    at = {one.step: one for one in found.curve("norm")}
    assert [at[80], at[120]] == kept.curve("norm")
    assert len({one.value for one in at.values()}) == len(at)


def test_a_replay_with_a_look_at_every_step_is_the_replay_without(run, counted):
    dense = training_dynamics.replayed(run, counted[0], 0, 12, every=1)
    assert dense.parameters["exact"]
    sparse = training_dynamics.replayed(run, counted[0], 0, 12, every=6)
    assert set(sparse.points) <= set(dense.points)


def test_a_replay_that_is_not_the_run_says_so(run, counted, monkeypatch):
    monkeypatch.setattr(optimizer, "lr_at", lambda recipe, step: 1e-4)
    assert not training_dynamics.replayed(run, counted[0], 0, 3).parameters["exact"]


@pytest.mark.parametrize("span", [(-1, 3), (3, 2), (0, 161)])
def test_steps_that_the_run_did_not_do_are_refused(run, counted, span):
    with pytest.raises(TrainError, match="the run did 0 to 160"):
        training_dynamics.replayed(run, counted[0], *span)


# --- what an analysis may give -------------------------------------------------------------------


def test_effects_become_a_row_a_place_with_their_interval(run, lookup_behaviour):
    behaviour = behaviours.read(lookup_behaviour)
    found = training_dynamics.over_training(
        run, training_dynamics.heads_analysis(behaviour), steps=[160]
    )
    effects = patching.heads(run.load(160), behaviour)
    for name in effects.names:
        (one,) = found.curve(name)
        assert one.value == pytest.approx(effects[name])
        assert (one.low, one.high) == pytest.approx(effects.interval(name))
        assert one.n == 12


def test_a_checkpoint_that_cannot_do_the_behaviour_is_listed_with_the_reason(run, lookup_behaviour):
    found = training_dynamics.over_training(
        run, training_dynamics.heads_analysis(behaviours.read(lookup_behaviour))
    )
    steps = [step for step, _ in found.refused]
    assert 0 in steps
    assert sorted(steps + found.steps) == run.steps
    assert "does not do 'lookup' at step 0: accuracy" in dict(found.refused)[0]
    again = training_dynamics.over_training(
        run, training_dynamics.heads_analysis(behaviours.read(lookup_behaviour))
    )
    assert again == found


def test_a_single_prompt_is_followed_from_where_the_model_gets_it_right(run, lookup_behaviour):
    behaviour = behaviours.read(lookup_behaviour)
    right = behaviour.correct(run.load(160)(behaviour.clean)[:, -1:]).tolist()
    wrong_first = behaviour.correct(run.load(0)(behaviour.clean)[:, -1:]).tolist()
    row = next(k for k in range(len(right)) if right[k] and not wrong_first[k])
    found = training_dynamics.over_training(
        run, training_dynamics.heads_analysis(behaviour.of([row])), steps=[0, 160]
    )
    assert dict(found.refused)[0].endswith("accuracy 0.00 [0.00, 0.79] on 1 prompt")
    (one,) = found.curve("L0H0")
    assert (one.step, one.n, one.low) == (160, 1, None)
    assert one.value == pytest.approx(patching.heads(run.load(160), behaviour.of([row]))["L0H0"])


def test_what_is_no_number_is_refused(run):
    for value, reason in (
        ({"x": math.nan}, "gives nan for 'x' at step 0"),
        (7, "the analysis gave a int; give a mapping"),
    ):
        with pytest.raises(EffectsError, match=reason):
            training_dynamics.over_training(
                run, Analysis("bad", lambda m, s, v=value: v), steps=[0]
            )


def test_a_score_has_students_interval_and_a_share_wilsons(run):
    draw, simulated = torch.Generator().manual_seed(0), 400
    scores = {"x accuracy": MonitorScore(1.0, 0.0, 12), "one": MonitorScore(1.0, None, 1)}
    for k in range(simulated):
        values = torch.randn(6, generator=draw)
        scores[f"x{k}"] = MonitorScore(values.mean().item(), values.std().item() / 6**0.5, 6)
    found = training_dynamics.over_training(
        run, Analysis("scores", lambda model, step: scores), steps=[0]
    )
    share, one, *means = found.points
    assert sum(point.low <= 0 <= point.high for point in means) / simulated == pytest.approx(
        0.95, abs=0.02
    )
    assert [point.n for point in means] == [6] * simulated
    assert share.low == pytest.approx(0.757, abs=2e-3)
    assert (one.value, one.low, one.high, one.n) == (1.0, None, None, 1)


# --- named analyses ------------------------------------------------------------------------------


def test_named_detectors_are_those_of_detecting(run):
    found = training_dynamics.over_training(
        run, training_dynamics.analysis("detectors", run, n_prompts=8), steps=[160]
    )
    length = (run.config.n_ctx - 1) // 2
    model, n_prompts = run.load(160), 8
    tokens = trainer.copying_task(
        trainer.monitor_words(run.store), run.store.eot, n=n_prompts, length=length
    ).tokens
    heads = induction_heads(model, tokens)
    values = heads if isinstance(heads, torch.Tensor) else heads.values
    assert found.curve("induction L0H1")[0].value == pytest.approx(values[0, 1].item(), abs=1e-5)
    gap = copying_loss(model, tokens).gap
    assert found.curve("copying gap")[0].value == pytest.approx(gap, abs=1e-4)
    alone = training_dynamics.over_training(
        run, training_dynamics.analysis("induction", run, n_prompts=8), steps=[160]
    )
    assert set(alone.points) == {one for one in found.points if one.name.startswith("induction")}


def test_the_score_of_a_behaviour_is_that_of_its_check(run, lookup_behaviour):
    behaviour = behaviours.read(lookup_behaviour)
    found = training_dynamics.over_training(run, training_dynamics.score_analysis(behaviour))
    for step in run.steps:
        check = behaviours.measure(run.load(step), behaviour)
        (at,) = [one for one in found.curve("lookup accuracy") if one.step == step]
        assert at.value == pytest.approx(check.accuracy)
        assert (at.low, at.high) == pytest.approx(check.interval)
        assert at.n == check.n
    # It learned the pairs: never at first, always at last.
    curve = found.curve("lookup accuracy")
    assert curve[0].value < 0.5
    assert curve[-1].value == 1.0
    assert found.onset("lookup accuracy").step in run.steps


def test_an_unknown_analysis_is_refused_with_the_nearest(run):
    with pytest.raises(EffectsError, match="did you mean 'induction'"):
        training_dynamics.analysis("inductoin", run)


def test_every_watch_of_a_planted_store_fits_and_measures_what_its_behaviour_does(store):
    store.vocab_size, store.eot = store.tokenizer.vocab_size, store.tokenizer.eot
    watches = training_dynamics.behaviour_tasks(store, 64)
    assert [one.name for one in watches[:2]] == ["ioi", "induction"]
    assert len(watches) == 5
    assert training_dynamics.behaviour_tasks(store, 5) == []
    cfg = GPTConfig(n_layers=1, n_heads=2, d_model=16, n_ctx=64, d_vocab=store.vocab_size)
    model = init_gpt(cfg, seed=0)
    for one in watches:
        behaviour = behaviours.load(one.name, store, n_prompts=16)
        score, check = trainer.measure_tasks(model, [one]), behaviours.measure(model, behaviour)
        assert score[f"{one.name} accuracy"].value == pytest.approx(check.accuracy)
        assert score[f"{one.name} accuracy"].n == check.n
        difference = score[f"{one.name} logit difference"].value
        assert difference == pytest.approx(check.score, abs=1e-6)


def test_what_was_logged_in_training_is_the_same_table(run, tiny_store, tmp_path):
    with pytest.raises(EffectsError, match="was not watched as it was trained"):
        training_dynamics.logged(run)
    watches = trainer.store_tasks(run.store, run.config.n_ctx)
    short = replace(run.recipe, steps=4)
    watched = loop.train(short, run.store, out=tmp_path / "w", numerics=run.numerics, watch=watches)
    found = training_dynamics.logged(watched)
    assert found.steps == [0, 4]
    n = monitoring.SEQUENCES
    later = training_dynamics.over_training(
        watched, training_dynamics.analysis("induction", watched, n_prompts=n)
    )
    for one in later.points:
        (same,) = [x for x in found.points if (x.step, x.name) == (one.step, one.name)] or [one]
        assert same.value == pytest.approx(one.value, rel=1e-5)
        assert same.low == pytest.approx(one.low, rel=1e-3, abs=1e-6)


# --- onset, readings, files ----------------------------------------------------------------------


def made(values) -> Trajectory:
    points = tuple(TrajectoryPoint(10 * i, 0, "x", float(value)) for i, value in enumerate(values))
    return Trajectory("made", {}, "run", "full", points)


@pytest.mark.parametrize(
    ("values", "before", "step"),
    [
        ([0, 0, 1, 1], 10, 20),
        ([0, 0.49, 0.51, 1], 10, 20),
        ([1, 1, 0, 0], 10, 20),  # falling
        ([0, 1, 0, 1], 20, 30),  # not for good before
        ([-4, 3], 0, 10),
    ],
)
def test_an_onset_lies_between_the_checkpoints_where_half_the_way_was_passed_for_good(
    values, before, step
):
    found = made(values).onset("x")
    assert (found.before, found.step) == (before, step)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0, 4, 1], ", by way of 4 at step 10"),
        ([0, -1, 1], ", by way of -1 at step 10"),
        ([0, 1.4, 1], ""),
        ([0, 0.5, 1], ""),
    ],
)
def test_a_curve_that_goes_far_beyond_its_ends_says_so(values, said):
    (line,) = [one for one in command.said(made(values)).splitlines() if "half way" in one]
    assert line.partition(")")[2] == said


def test_what_does_not_move_or_was_not_measured_has_no_onset():
    with pytest.raises(EffectsError, match="what does not move has no onset"):
        made([1, 2, 1]).onset("x")
    with pytest.raises(EffectsError, match="what does not move has no onset"):
        made([1]).onset("x")
    with pytest.raises(EffectsError, match="no 'y' was measured over training"):
        made([1, 2]).onset("y")


def test_readings_are_counted_before_each_checkpoint(run, counted):
    found = training_dynamics.over_training(run, counted[0]).reading(
        run, [3, 5], label="two documents"
    )
    frame = found.to_frame()
    steps = np.concatenate([run.steps_reading(3), run.steps_reading(5)])
    assert found.readings == {"two documents": tuple(sorted(steps.tolist()))}
    for step, count in zip(frame["step"], frame.iloc[:, 7], strict=True):
        assert count == (steps < step).sum()
    with pytest.raises(StoreError, match="document 999 is not one of"):
        found.reading(run, [999])
    with pytest.raises(EffectsError, match="the documents of"):
        replace(found, run_id="other").reading(run, [3])


def test_documents_read_between_two_checkpoints_are_those_of_its_steps(run):
    frame = training_dynamics.read_between(run, 8, 16)
    read = np.concatenate([run.documents_read(step) for step in range(8, 16)])
    assert np.sum(frame["readings"]) == len(read)
    assert set(frame["document"]) == set(read.tolist())
    assert frame["readings"].is_monotonic_decreasing
    with pytest.raises(TrainError, match="no step lies between"):
        training_dynamics.read_between(run, 16, 16)


def test_a_trajectory_comes_back_from_its_file(run, counted, tmp_path):
    found = training_dynamics.over_training(run, counted[0]).reading(run, [3])
    found.save(tmp_path / "t.json")
    assert Trajectory.load(tmp_path / "t.json") == found
    whole = (tmp_path / "t.json").read_text()
    (tmp_path / "t.json").write_text(whole.replace('"norm"', '"nurm"', 1))
    with pytest.raises(DamagedError, match="does not match its own digest"):
        Trajectory.load(tmp_path / "t.json")


def test_the_figure_has_a_curve_a_number_its_interval_and_marks_and_is_small(run, lookup_behaviour):
    asked = training_dynamics.score_analysis(behaviours.read(lookup_behaviour))
    found = training_dynamics.over_training(run, asked).reading(run, [3, 5])
    figure = found.plot()
    assert [one.name for one in traces(figure) if one.showlegend is None] == found.changing(8)
    assert len(traces(figure)) == 2 * 2 + 1
    assert list(traces(figure)[-1].x) == sorted(set(found.readings["read"]))
    assert len(figure.to_html(include_plotlyjs=False)) < 100_000


def test_the_onset_of_a_planted_step_is_found_in_a_run(run):
    """An analysis that is 0 before step 40 and 1 from there on."""
    found = training_dynamics.over_training(run, lambda model, step: {"on": float(step >= 40)})
    onset = found.onset("on")
    assert (onset.before, onset.step) == (32, 40)


def test_an_import_has_one_checkpoint_and_no_store_to_word_detectors_in(run, tmp_path):
    convert.export_run(run, out=tmp_path / "hf")
    imported = convert.import_run(tmp_path / "hf", out=tmp_path / "imported")
    found = training_dynamics.over_training(imported, lambda model, step: {"step": step})
    assert (found.steps, found.knowledge) == ([0], "weights-only")
    with pytest.raises(EffectsError, match="an import has none"):
        training_dynamics.analysis("induction", imported)


def test_a_checkpoint_that_was_changed_is_refused(run, counted):
    saved = run.saved_at(80)
    path = run.path / saved.folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedError, match="nothing was loaded"):
        training_dynamics.over_training(run, counted[0])
    assert runs.check_checkpoints(run.path, [saved])


def test_chance_is_no_capability(run, lookup_behaviour):
    with pytest.raises(CapabilityError, match="at step 0: accuracy"):
        training_dynamics.heads_analysis(behaviours.read(lookup_behaviour)).measure(run.load(0), 0)
