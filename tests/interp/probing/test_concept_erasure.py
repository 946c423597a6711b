"""What was erased cannot be read by a line, and only what the model uses is missed."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from interp import probing
from interp.behaviours import Behaviour
from interp.errors import CapabilityError, ProbeError, UninformativeWarning
from interp.probing import Erasure, ProbeTask, classifiers


N, D = 300, 12


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def labels(draw) -> np.ndarray:
    return np.arange(N) % 3


@pytest.fixture
def x(draw, labels) -> np.ndarray:
    """Correlated noise, and the label along two of its directions."""
    noise = draw.normal(size=(N, D)) @ draw.normal(size=(D, D))
    return noise + 2 * np.eye(3)[labels] @ draw.normal(size=(3, D))


def covariance(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    indicator = np.eye(labels.max() + 1)[labels]
    return (x - x.mean(axis=0)).T @ (indicator - indicator.mean(axis=0)) / len(x)


def in_sample(x: np.ndarray, labels: np.ndarray) -> float:
    every = np.arange(len(x))
    return classifiers.right(x, labels, [(every, every)]).mean()


@pytest.mark.parametrize("shrinkage", [None, 0.0, 0.3])
def test_after_erasure_nothing_is_left_for_a_line_to_find(x, labels, shrinkage):
    erased = probing.leace(x, labels, shrinkage=shrinkage)(x)
    assert np.abs(covariance(x, labels)).max() > 0.1
    assert np.abs(covariance(erased, labels)).max() < 1e-12
    assert in_sample(x, labels) > 0.8
    # Of three equal classes: whatever it says, a third is right.
    assert in_sample(erased, labels) == pytest.approx(1 / 3)


def test_erasing_twice_is_erasing_once_and_the_mean_stays(x, labels):
    eraser = probing.leace(x, labels)
    once = eraser(x)
    assert eraser.rank == 2
    np.testing.assert_allclose(eraser(once), once, atol=1e-10)
    np.testing.assert_allclose(once.mean(axis=0), x.mean(axis=0), atol=1e-10)


def test_no_other_erasure_changes_less(x, labels):
    """Against cutting out the directions of the class means, the obvious way to the same end."""
    centred = x - x.mean(axis=0)
    basis = np.linalg.svd(covariance(x, labels), full_matrices=False)[0][:, :2]
    cut = x - centred @ basis @ basis.T
    erased = probing.leace(x, labels, shrinkage=0.0)(x)
    assert np.abs(covariance(cut, labels)).max() < 1e-10
    assert ((erased - x) ** 2).sum() < 0.9 * ((cut - x) ** 2).sum()


def test_it_is_what_the_reference_package_computes(x, labels):
    package = pytest.importorskip("concept_erasure", reason="concept-erasure is not installed")
    z = torch.eye(3, dtype=torch.float64)[torch.tensor(labels)]
    theirs = package.LeaceFitter.fit(
        torch.tensor(x), z, shrinkage=False, constrain_cov_trace=False, svd_tol=1e-9
    )
    ours = probing.leace(x, labels, shrinkage=0.0)
    np.testing.assert_allclose(ours(x), theirs.eraser(torch.tensor(x)).numpy(), atol=1e-8)


def test_the_package_by_default_leaves_a_rare_class():
    package = pytest.importorskip("concept_erasure", reason="concept-erasure is not installed")
    labels = (np.arange(2000) < 20).astype(int)
    x = np.random.default_rng(1).normal(size=(2000, 4))
    x[:, 0] += 0.6 * labels
    z = torch.eye(2, dtype=torch.float64)[torch.tensor(labels)]
    left = package.LeaceFitter.fit(torch.tensor(x), z).eraser(torch.tensor(x)).numpy()
    assert np.abs(covariance(left, labels)).max() > 1e-3
    assert np.abs(covariance(probing.leace(x, labels)(x), labels)).max() < 1e-12


def test_shuffled_labels_erase_as_many_directions_and_leave_the_label(x, labels, draw):
    placebo = probing.leace(x, draw.permutation(labels))
    assert placebo.rank == 2
    assert in_sample(placebo(x), labels) > 0.7


# --- inside a model ------------------------------------------------------------------------------


class Reader:
    """Says token 1 or 0 after the residual of the last position, of which one direction counts.

    The first token (0 or 1) is written along the first direction, the second (2 or 3) along the
    second, and the third is noise in all others.
    """

    cfg = SimpleNamespace(n_layers=1, d_vocab=100, n_ctx=8)
    noise = torch.randn(100, 6, generator=torch.Generator().manual_seed(0))

    def run_with_hooks(self, tokens, *, fwd_hooks=()):
        resid = torch.zeros(*tokens.shape, 8)
        resid[:, -1, 0] = 2.0 * tokens[:, 0] - 1
        resid[:, -1, 1] = 2.0 * tokens[:, 1] - 5
        resid[:, -1, 2:] = self.noise[tokens[:, 2]]
        for _, hook in fwd_hooks:
            resid = hook(resid, None)
        logits = torch.zeros(*tokens.shape, 100)
        logits[..., 1], logits[..., 0] = 5 * resid[..., 0], -5 * resid[..., 0]
        return logits

    def __call__(self, tokens):
        return self.run_with_hooks(tokens)

    def run_with_cache(self, tokens, *, names_filter):
        kept = []
        logits = self.run_with_hooks(tokens, fwd_hooks=[("", lambda v, p: kept.append(v) or v)])
        return logits, {name: kept[0] for name in names_filter}


def prompts(n: int, seed: int) -> torch.Tensor:
    draw = np.random.default_rng(seed)
    columns = [
        draw.integers(2, size=n),
        draw.integers(2, 4, size=n),
        draw.integers(10, 100, size=n),
    ]
    return torch.tensor(np.stack(columns, axis=1))


def reading(column: int) -> ProbeTask:
    tokens = prompts(400, 0)
    return ProbeTask(
        name=f"token {column}",
        tokens=tokens,
        positions=torch.full((400,), 2),
        labels=tuple(map(str, tokens[:, column].tolist())),
        types=tuple(map(str, tokens[:, 2].tolist())),
    )


@pytest.fixture
def saying() -> Behaviour:
    """The model says the first token again."""
    clean = prompts(60, 1).unique(dim=0)
    corrupt = clean.clone()
    corrupt[:, 0] = 1 - clean[:, 0]
    return Behaviour(
        name="say the first", clean=clean, corrupt=corrupt, answer=clean[:, 0], foil=corrupt[:, 0]
    )


def test_erasing_what_the_answer_is_read_from_costs_it_and_a_placebo_does_not(saying):
    found = probing.erasure_effect(Reader(), saying, reading(0), layer=0, placebos=4)
    assert found.positions == (2,)
    assert found["intact"].score.value == pytest.approx(10)
    assert found["erased"].score.value == pytest.approx(0, abs=0.5)
    assert found["placebo"].score.low > 8
    assert found.loss.low > 7
    assert found["intact"].probe.value == 1
    assert found["erased"].probe.value < 0.6 < found["placebo"].probe.low


def test_erasing_what_is_there_and_is_not_used_costs_nothing(saying):
    """The probe reads the second token as well as the first: reading is not use."""
    found = probing.erasure_effect(Reader(), saying, reading(1), layer=0, placebos=4)
    assert found["intact"].probe.value == 1
    assert found["erased"].probe.value < 0.6
    assert found.loss.high < 0  # the placebo costs a little, this costs nothing
    assert found["erased"].score.value == pytest.approx(10, abs=0.2)


class LargeDirections(Reader):
    """Writes the first token, and with it a class of the third, along its three large directions.

    Any three directions of as much variance hold the first token, whatever else they hold.
    """

    classes = 3 * torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])

    def run_with_hooks(self, tokens, *, fwd_hooks=()):
        resid = torch.zeros(*tokens.shape, 8)
        resid[:, -1, :3] = 6.0 * tokens[:, :1] - 3 + self.classes[tokens[:, 2] % 4]
        resid[:, -1, 3:] = self.noise[tokens[:, 2], :5]
        for _, hook in fwd_hooks:
            resid = hook(resid, None)
        logits = torch.zeros(*tokens.shape, 100)
        logits[..., 1] = resid[..., :3].sum(dim=-1)
        # The class adds 9 or takes 3: what the third token brings is taken off again.
        logits[..., 0] = self.classes[tokens % 4].sum(dim=-1)
        return logits


def test_the_variance_that_an_erasure_removes_is_no_use_of_its_label(saying):
    """Shuffled labels remove less variance and so blame the label; equal variance does not."""
    task = reading(2)
    classes = tuple(str(int(label) % 4) for label in task.labels)
    task = ProbeTask("class", task.tokens, task.positions, classes, task.types)
    found = probing.erasure_effect(LargeDirections(), saying, task, layer=0, placebos=10)
    removed = {arm.name: arm.removed for arm in found.arms}
    assert removed["erased"] > 0.8 > 0.6 > removed["placebo"]
    assert removed["matched"] == pytest.approx(removed["erased"], abs=1e-3)
    assert found.loss.low > 2
    assert abs(found.loss_matched.value) < 1
    assert found["matched"].probe.value < found["placebo"].probe.value


def test_the_label_that_is_used_costs_more_than_its_variance(saying):
    found = probing.erasure_effect(Reader(), saying, reading(0), layer=0, placebos=4)
    assert found["matched"].removed == pytest.approx(found["erased"].removed, abs=1e-3)
    assert found.loss_matched.low > 4


def test_an_erasure_at_positions_that_nothing_reads_is_said_to_be_empty(saying):
    with pytest.warns(UninformativeWarning, match="changes no score of 'say the first'"):
        found = probing.erasure_effect(
            Reader(), saying, reading(0), layer=0, positions=(0,), placebos=1
        )
    assert found.loss.value == 0


def test_a_placebo_that_erases_everything_is_said_to_be_none(saying):
    task = reading(0)
    one = ProbeTask(task.name, task.tokens, task.positions, labels=task.types, types=task.labels)
    with pytest.warns(UninformativeWarning, match="the placebo is no contrast"):
        found = probing.erasure_effect(Reader(), saying, few(one), layer=0, placebos=2)
    assert "leaves no variance" in found.notes[0]


def few(task: ProbeTask) -> ProbeTask:
    """Nine classes of the third token, more than the model has directions."""
    classes = tuple(str(int(label) % 9) for label in task.labels)
    return ProbeTask(task.name, task.tokens, task.positions, classes, task.labels)


def test_an_erasure_is_saved_and_read_back(saying, tmp_path):
    found = probing.erasure_effect(Reader(), saying, reading(0), layer=0, placebos=1)
    found.save(tmp_path / "erasure.json")
    again = Erasure.load(tmp_path / "erasure.json")
    assert again.to_dict() == found.to_dict()
    assert again.to_frame()["prompts"].tolist() == [found.n_prompts] * 4
    assert len(found.plot().to_html(include_plotlyjs=False)) < 100_000


def test_the_same_seed_gives_the_same_numbers(saying):
    one, two = (
        probing.erasure_effect(Reader(), saying, reading(0), layer=0, placebos=2) for _ in "ab"
    )
    assert one.to_dict() == two.to_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 1}, "layer 1 of a model with layers 0 to 0"),
        ({"layer": 0, "site": "resid"}, "no site that a probe can read is called 'resid'"),
        ({"layer": 0, "positions": (3,)}, r"positions \[3\] of prompts with positions 0 to 2"),
        ({"layer": 0, "positions": "last"}, "name them by number, or say 'all'"),
        ({"layer": 0, "placebos": 0}, "0 placebos"),
    ],
)
def test_what_cannot_be_erased_is_refused(saying, options, message):
    with pytest.raises(ProbeError, match=message):
        probing.erasure_effect(Reader(), saying, reading(0), **options)


def test_positions_that_do_not_follow_from_the_task_must_be_named(saying):
    task = reading(0)
    longer = ProbeTask(
        task.name,
        torch.nn.functional.pad(task.tokens, (1, 0)),
        task.positions,
        task.labels,
        task.types,
    )
    with pytest.raises(ProbeError, match="prompts of 4, 'say the first' has prompts of 3; say at"):
        probing.erasure_effect(Reader(), saying, longer, layer=0)


def test_labels_that_the_activations_do_not_vary_with_are_refused(saying):
    with pytest.raises(ProbeError, match=r"nothing to erase at L0.resid_post@?"):
        probing.erasure_effect(Reader(), saying, reading(0).at(0), layer=0)


def test_a_model_that_does_not_do_the_behaviour_is_refused(saying):
    wrong = Behaviour("wrong", saying.clean, saying.corrupt, answer=saying.foil, foil=saying.answer)
    with pytest.raises(CapabilityError, match="the model does not do 'wrong'"):
        probing.erasure_effect(Reader(), wrong, reading(0), layer=0)
