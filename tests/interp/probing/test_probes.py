"""A probe finds a planted label, and its controls tell finding from learning by heart."""

import json
import re
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import typer
from sklearn.linear_model import LogisticRegression
from typer.testing import CliRunner

from interp import probing
from interp.cli.probe import erase_command, probe_command
from interp.components import Component
from interp.errors import InterruptedWarning, ProbeError, UninformativeWarning
from interp.probing import Probe, ProbeTask, classifiers, probes
from tests.worlds.figures import traces
from train.model import GPTConfig, init_gpt


N, TYPES = 240, 40
TINY = GPTConfig(n_layers=2, n_heads=2, d_model=16, n_ctx=8, d_vocab=50)


class Holding:
    """A model of one layer that holds given vectors at the one position of each prompt."""

    cfg = SimpleNamespace(n_layers=1, d_vocab=1000, n_ctx=4)

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors = torch.tensor(vectors, dtype=torch.float32)[:, None]

    def __call__(self, tokens):
        raise NotImplementedError

    def run_with_cache(self, tokens, *, names_filter):
        return tokens, {name: self.vectors[tokens[:, 0]] for name in names_filter}

    def run_with_hooks(self, tokens, *, fwd_hooks):
        raise NotImplementedError


def labelled(labels, types) -> ProbeTask:
    n = len(labels)
    return ProbeTask(
        name="planted",
        tokens=torch.arange(n)[:, None],
        positions=torch.zeros(n, dtype=torch.long),
        labels=tuple(map(str, labels)),
        types=tuple(map(str, types)),
    )


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def types(draw) -> np.ndarray:
    return np.repeat(np.arange(TYPES), N // TYPES)


def probed(vectors, labels, types, **options) -> Probe:
    return probing.linear(Holding(vectors), labelled(labels, types), **options)


def only(found: Probe):
    (cell,) = found.cells
    return cell


def test_a_label_written_along_one_direction_is_read_and_types_need_not_be_known(draw, types):
    labels = draw.integers(2, size=N)
    vectors = draw.normal(size=(N, 4))
    vectors[:, 2] += 8 * labels
    cell = only(probed(vectors, labels, types))
    assert cell.accuracy.value == 1
    assert cell.unseen.value == 1
    # Four directions cannot hold a random label for each of 40 types.
    assert cell.control.value < 0.7
    assert cell.selectivity.low > 0.25
    assert cell.compression.low > 3


def test_a_label_that_is_nowhere_is_at_chance_and_cannot_be_compressed(draw, types):
    labels = np.tile([0, 1], N // 2)
    cell = only(probed(draw.normal(size=(N, 4)), labels, types))
    for found in (cell.accuracy, cell.unseen):
        assert found.low < 0.5 < found.high
    assert cell.compression.value < 1


def test_a_label_learned_by_heart_has_no_selectivity_and_fails_on_unseen_types(draw, types):
    """The vectors say the type and nothing else; the label is a coin thrown for each type."""
    labels = draw.integers(2, size=TYPES)[types]
    vectors = 5 * np.eye(TYPES)[types] + 0.1 * draw.normal(size=(N, TYPES))
    cell = only(probed(vectors, labels, types))
    assert cell.accuracy.value == 1
    assert cell.control.value == 1
    assert cell.selectivity.low < 0 < cell.selectivity.high
    assert cell.selectivity.value == 0
    assert cell.unseen.low < 0.5 < cell.unseen.high


def test_an_accuracy_of_one_is_worth_its_types_and_not_its_cases(draw, types):
    labels = types % 2
    vectors = np.stack([10.0 * labels, draw.normal(size=N)], axis=1)
    cell = only(probed(vectors, labels, types))
    assert cell.accuracy.value == 1
    # 40 types, of which overlapping training leaves 17.
    assert cell.accuracy.low == pytest.approx(1 / (1 + 1.96**2 / 17), abs=1e-3)


def test_every_case_of_a_type_has_one_control_label_and_labels_are_as_common_as_they_were(types):
    labels = (np.arange(N) % 4 == 0).astype(int)
    drawn = [classifiers.control_labels(labels, types, seed=seed) for seed in range(200)]
    assert all(len(np.unique(one[types == 7])) == 1 for one in drawn)
    assert np.mean(drawn) == pytest.approx(0.25, abs=0.02)


def test_folds_of_types_share_none(types):
    labels = types % 2
    for train, test in classifiers.splits(labels, 5, groups=types):
        assert set(types[train]) & set(types[test]) == set()


def test_the_code_of_a_constant_is_laplaces_rule_block_by_block():
    """Where nothing can be read the probe gives the frequencies of what it was sent."""
    labels = (np.arange(200) % 4 == 0).astype(int)
    found = classifiers.code_lengths(np.zeros((200, 2)), labels, seed=3).mixed
    order = np.random.Generator(np.random.Philox(key=3)).permutation(200)
    ends = [1, 2, 4, 7, 13, 25, 50, 100, 200]
    expected = np.ones(200)  # the first block: one bit for one of two
    for start, stop in pairwise(ends):
        for case in order[start:stop]:
            same = (labels[order[:start]] == labels[case]).sum()
            expected[case] = -np.log2((same + 1) / (start + 2))
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_a_code_knows_nothing_in_its_first_block_and_a_class_never_met_has_a_finite_code():
    labels = np.array([0] * 99 + [1])
    bits = classifiers.code_lengths(np.zeros((100, 2)), labels)
    assert np.isfinite(bits.mixed).all()
    assert bits.mixed.min() >= 0
    assert 1 in bits.mixed
    # No probe has met the class that occurs once, so that the first block takes all cases.
    assert (bits.published == 1).all() or labels[bits.published != 1].sum() == 0


def test_the_published_code_is_the_formula_of_voita_and_titov():
    """t_1 log2(K) - sum over i of log2 p_i(labels t_i + 1 to t_(i + 1)), without mixing."""
    draw = np.random.default_rng(0)
    labels = draw.integers(3, size=240)
    x = draw.normal(size=(240, 5)) + np.eye(5)[labels] * 1.5
    found = classifiers.code_lengths(x, labels, seed=7)
    order = np.random.Generator(np.random.Philox(key=7)).permutation(240)
    x, labels = x[order], labels[order]
    ends = [15, 30, 60, 120, 240]  # after 8 cases, which are the first to hold all three classes
    first = next(t for t in (1, 2, 4, 8, *ends) if len(set(labels[:t])) == 3)
    ends = [first, *(t for t in (2, 4, 8, *ends) if t > first)]
    length = first * np.log2(3)
    for start, stop in pairwise(ends):
        mean, width = x[:start].mean(axis=0), x[:start].std(axis=0)
        probe = LogisticRegression(C=1.0, max_iter=5000)
        probe.fit((x[:start] - mean) / width, labels[:start])
        chances = probe.predict_proba((x[start:stop] - mean) / width)
        length -= np.log2(chances[np.arange(stop - start), labels[start:stop]]).sum()
    assert found.published.sum() == pytest.approx(length, rel=1e-6)
    assert not np.allclose(found.mixed, found.published, rtol=0.1)


def test_intervals_of_clustered_shares_cover_the_truth():
    """Half of the types are right or wrong as a whole, so a plain Wilson interval is too short."""
    draw = np.random.default_rng(1)
    types = np.repeat(np.arange(80), 5)
    covered, plain = 0, 0
    for _ in range(400):
        whole = draw.random(80) < 0.5
        shared = draw.random(80)[types] < 0.7
        right = np.where(whole[types], shared, draw.random(400) < 0.7).astype(float)
        found = classifiers.share(right, types)
        alone = classifiers.share(right)
        covered += found.low <= 0.7 <= found.high
        plain += alone.low <= 0.7 <= alone.high
    assert covered / 400 == pytest.approx(0.95, abs=0.025)
    assert plain / 400 < 0.85


def test_intervals_of_a_probe_that_has_nothing_to_read_hold_chance():
    """Cross-validated accuracy scatters more than a coin does: 1.3 times here."""
    labels, types = np.tile([0, 1], 60), np.repeat(np.arange(40), 3)
    covered, plain = 0, 0
    for seed in range(100):
        x = np.random.default_rng(seed).normal(size=(120, 4))
        folds = classifiers.splits(labels, 5, seed=seed)
        right = classifiers.right(x, labels, folds, fit="ridge").astype(float)
        found, alone = classifiers.share(right, types, n_folds=5), classifiers.share(right, types)
        covered += found.low <= 0.5 <= found.high
        plain += alone.low <= 0.5 <= alone.high
    assert covered >= 93
    assert plain <= 92


def test_where_every_case_agrees_the_difference_still_has_a_width():
    ones, types = np.ones(60), np.repeat(np.arange(20), 3)
    found = classifiers.difference(ones, ones, types)
    assert found.low < found.value == 0 < found.high


# --- models --------------------------------------------------------------------------------------


@pytest.fixture
def model():
    return init_gpt(TINY, seed=1)


@pytest.fixture
def task() -> ProbeTask:
    """Eight words, two classes, said at the second of four positions."""
    draw = np.random.default_rng(2)
    tokens = torch.tensor(draw.integers(10, 50, size=(80, 4)))
    words = draw.integers(1, 9, size=80)
    tokens[:, 0], tokens[:, 1] = 0, torch.tensor(words)
    return ProbeTask(
        name="parity",
        tokens=tokens,
        positions=torch.ones(80, dtype=torch.long),
        labels=tuple("even" if word % 2 == 0 else "odd" for word in words),
        types=tuple(map(str, words)),
    )


def test_activations_are_those_of_the_cache(model, task):
    place = Component("resid_post", 1)
    found = probes.activations(model, task, place)
    with torch.inference_mode():
        _, cache = model.run_with_cache(task.tokens)
    np.testing.assert_allclose(found[:, 0], cache[place.hook][:, 1].numpy(), atol=1e-6)


def test_the_heads_of_a_layer_are_read_together(model, task):
    assert probes.activations(model, task, Component("head", 0)).shape == (80, 1, 16)


def test_the_untrained_control_is_a_probe_of_first_weights(model, task):
    found = probing.linear(model, task, controls=1, seed=4)
    first = probing.linear(init_gpt(TINY, seed=4), task, controls=1, seed=4)
    assert [cell.untrained for cell in found.cells] == [cell.accuracy for cell in first.cells]
    assert [cell.untrained_unseen for cell in found.cells] == [c.unseen for c in first.cells]


def test_a_label_is_read_where_its_word_was_heard_and_not_before(model, task):
    with pytest.warns(UninformativeWarning, match="at 2 of 6 places all 80 cases are the same"):
        found = probing.linear(model, task, positions=(0, 1, -1), controls=1)
    assert [cell.place for cell in found.cells][:3] == [
        "L0.resid_post@0",
        "L0.resid_post@1",
        "L0.resid_post@3",
    ]
    # A constant is classed as the commonest label.
    assert found["L0.resid_post@0"].accuracy.value == pytest.approx(found.baseline, abs=0.01)
    assert found["L0.resid_post@1"].accuracy.value == 1
    assert found.plot().layout.title.text


def test_two_probes_of_one_seed_are_equal_and_no_generator_is_touched(model, task):
    torch.manual_seed(0)
    np.random.seed(0)
    before, legacy = torch.get_rng_state(), np.random.get_state(legacy=False)
    one, two = (probing.linear(model, task, controls=1, layers=[0]) for _ in range(2))
    assert one.to_dict() == two.to_dict()
    assert torch.equal(before, torch.get_rng_state())
    np.testing.assert_equal(np.random.get_state(legacy=False), legacy)
    assert not any(point.hooked for point in model.hook_dict.values())


def test_a_probe_is_saved_and_read_back(model, task, tmp_path):
    found = probing.linear(model, task, controls=1)
    found.save(tmp_path / "probe.json")
    assert Probe.load(tmp_path / "probe.json").to_dict() == found.to_dict()
    assert found.provenance.behaviour_sha256 == task.sha256


def test_every_row_of_the_frame_has_n_and_intervals(model, task):
    frame = probing.linear(model, task, controls=1).to_frame()
    assert frame["n"].tolist() == [80, 80]
    bounded = ["accuracy", "control", "selectivity", "untrained", "compression", "unseen"]
    for name in bounded:
        assert np.all(frame[f"{name} low"] <= frame[name])
        assert np.all(frame[name] <= frame[f"{name} high"])


def test_figures_are_small(model, task):
    found = probing.linear(model, task, controls=1)
    html = found.plot().to_html(include_plotlyjs=False)
    assert len(html) < 100_000
    names = {trace.name for trace in traces(found.plot())}
    assert names >= {"accuracy", "control task", "untrained"}


def test_ridge_reads_the_same_and_has_no_code(model, task):
    found = probing.linear(model, task, controls=1, fit="ridge")
    assert found["L0.resid_post"].accuracy.value == 1
    assert {cell.bits for cell in found.cells} == {None}


def test_an_interrupt_returns_what_was_finished(model, task):
    def stop(what, done, total):
        raise KeyboardInterrupt

    with pytest.warns(InterruptedWarning, match="1 of 2 places were probed"):
        found = probing.linear(model, task, controls=1, progress=stop)
    assert [cell.place for cell in found.cells] == ["L0.resid_post"]


def test_types_that_cannot_be_parted_are_said_to_be_so(draw):
    labels = np.repeat([0, 1], 20)
    found = probed(draw.normal(size=(40, 2)), labels, types=labels, controls=1)
    assert only(found).unseen is None
    assert found.notes[0] == "no accuracy on unseen types: '0' has one word only"
    assert "cannot be built" in found.notes[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"site": "resid_pst"}, "no site .* 'resid_pst'.*resid_post"),
        ({"site": "pattern"}, "no site that a probe can read is called 'pattern'"),
        ({"layers": [2]}, "layer 2 of a model with layers 0 to 1"),
        ({"layers": []}, "no layer to probe"),
        ({"positions": [4]}, "position 4 of prompts with positions 0 to 3"),
        ({"positions": []}, "no position to probe"),
        ({"folds": 60}, "has .* cases of .* and 60 folds"),
        ({"folds": 1}, "and 1 folds"),
        ({"controls": 0}, "0 control tasks"),
    ],
)
def test_what_cannot_be_probed_is_refused(model, task, options, message):
    with pytest.raises(ProbeError, match=message):
        probing.linear(model, task, **options)


def test_tokens_of_another_vocabulary_are_refused(task):
    small = init_gpt(GPTConfig(n_layers=1, n_heads=2, d_model=16, n_ctx=8, d_vocab=30), seed=0)
    with pytest.raises(ProbeError, match="has token 49 and 4 positions; this model has 30 tokens"):
        probing.linear(small, task)


def test_a_place_that_was_not_probed_is_refused_with_the_nearest(model, task):
    found = probing.linear(model, task, layers=[0], controls=1)
    with pytest.raises(ProbeError, match=r"at 'L1.resid_post'.*L0.resid_post"):
        found["L1.resid_post"]


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def probe():
    """`openbook probe`, by itself."""
    return _command(probe_command)


@pytest.fixture
def erase():
    """`openbook erase`, by itself."""
    return _command(erase_command)


def _command(function):
    app = typer.Typer()
    app.command()(function)
    return lambda *arguments: CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture
def own_labels(tmp_path):
    """A file by hand: whether the number of the last word is even."""
    words = [f"w{number}" for number in range(8)] * 6
    content = {
        "name": "even",
        "texts": [f"w9 {word}" for word in words],
        "positions": [-1] * len(words),
        "labels": ["even" if int(word[1:]) % 2 == 0 else "odd" for word in words],
        "types": words,
        "type_of": "word",
    }
    path = tmp_path / "even.json"
    path.write_text(json.dumps(content))
    return path


def test_the_command_prints_n_and_an_interval_beside_every_number(probe, tiny_run, own_labels):
    found = probe(tiny_run.path, own_labels, "--controls", 1)
    assert found.exit_code == 0, found.output
    head, titles, row, *rest = found.stdout.splitlines()
    assert head.startswith("even: resid_post, 48 cases, 8 types (word), 2 classes, commonest 0.500")
    assert titles.split()[:3] == ["accuracy", "unseen", "control"]
    assert row.startswith("L0.resid_post  1.000 [")
    assert row.count("[") == 7
    assert rest[-2].startswith(f"run {tiny_run.id}")
    assert rest[-1] == probing.Probe.meaning


def test_the_command_writes_what_a_program_can_read(probe, tiny_run, own_labels, tmp_path):
    out, plot = tmp_path / "probe.json", tmp_path / "probe.html"
    options = ("--layers", "0", "--positions", "1-2", "--fit", "ridge", "--json")
    with pytest.warns(UninformativeWarning, match="at 1 of 2 places"):
        found = probe(tiny_run.path, own_labels, *options, "--out", out, "--plot", plot)
    assert json.loads(found.stdout)["cells"][1]["place"] == "L0.resid_post@2"
    assert Probe.load(out).n == 48
    assert plot.read_text().startswith("<")


def test_the_command_erases(erase, lookup_run, lookup_behaviour, tmp_path):
    """Which key was said, from the residual after it: the value can no longer be looked up."""
    pairs = [*range(12)] * 10
    content = {"name": "key", "texts": [f"k{pair} is" for pair in pairs]}
    content |= {"positions": [1] * 120, "labels": [f"half {pair % 2}" for pair in pairs]}
    content |= {"types": [f"k{pair}" for pair in pairs]}
    path = tmp_path / "key.json"
    path.write_text(json.dumps(content))
    options = ("--layer", 0, "--site", "resid_pre")
    found = erase(lookup_run.path, path, lookup_behaviour, *options)
    assert found.exit_code == 0, found.output
    assert "lookup without key at L0.resid_pre, positions [1]: rank 1, 120 cases" in found.stdout
    (lost,) = re.findall(r"lost beyond the placebo of shuffled labels: (.*)", found.stdout)
    assert lost.endswith(" nats")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--layers", "one"), "--layers 'one' is no list of numbers; write 0,3-5"),
        (("--layers", "0,7"), "layer 7 of a model with layers 0 to 0"),
        (("--at", 9), "position 9 of prompts with positions 0 to 2"),
    ],
)
def test_the_command_refuses_in_one_line(probe, tiny_run, own_labels, options, message):
    found = probe(tiny_run.path, own_labels, *options)
    assert isinstance(found.exception, ProbeError)
    assert message in str(found.exception)
