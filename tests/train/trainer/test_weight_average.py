"""The moving average of the weights is the weighted mean, and is kept as exactly as the weights."""

from dataclasses import replace

import pytest
import torch

from tests.worlds.stops import check_resumed
from train import runs, trainer
from train.data import DocumentRemoval
from train.errors import DamagedError, TrainError


DECAY = 0.8


def averaged(values, decay):
    """The averages of a weight that takes these values, after each of them."""
    linear = torch.nn.Linear(2, 1, dtype=torch.float64)
    average, found = trainer.begin_average(linear), []
    for number, value in enumerate(values, start=1):
        torch.nn.init.constant_(linear.weight, value)
        trainer.update_average(average, linear, decay, number)
        found.append(average["weight"][0, 0].item())
    return found


@pytest.mark.parametrize("decay", [0.01, 0.5, 0.9, 0.9999])
def test_it_is_the_weighted_mean_of_all_weights_since_the_first_update(decay):
    values = [3.0, -1.0, 4.0, 1.0, -5.0, 9.0]
    for last, found in enumerate(averaged(values, decay)):
        shares = [decay ** (last - one) for one in range(last + 1)]
        mean = sum(map(float.__mul__, shares, values)) / sum(shares)
        assert found == pytest.approx(mean, rel=1e-9)


@pytest.mark.parametrize("decay", [0.1, 0.5, 0.999])
def test_the_average_of_a_constant_is_the_constant_to_the_bit(decay):
    draw = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(40, 7)
    torch.nn.init.normal_(model.weight, generator=draw)
    average = trainer.begin_average(model)
    for update in range(1, 200):
        trainer.update_average(average, model, decay, update)
    for name, parameter in model.named_parameters():
        assert torch.equal(average[name], parameter), name


@pytest.fixture(scope="module")
def run(tiny_recipe, tiny_store, one_thread_numerics, tmp_path_factory):
    return trainer.train(
        replace(tiny_recipe, ema_decay=DECAY), tiny_store,
        out=tmp_path_factory.mktemp("ema") / "r", numerics=one_thread_numerics,
    )  # fmt: skip


@pytest.mark.integration
def test_the_training_does_not_change(run, tiny_run):
    assert all(a.agrees(b) for a, b in zip(run.ledger, tiny_run.ledger, strict=True))
    for step in run.steps:
        ours, plain = run.saved_at(step).files, tiny_run.saved_at(step).files
        assert ours["model.safetensors"] == plain["model.safetensors"]
        assert set(ours) - set(plain) == {runs.EMA}


@pytest.mark.integration
def test_every_checkpoint_holds_the_average_of_the_steps_before_it(run):
    state = trainer.initial_state(run.recipe, run.numerics)
    seen = []
    for step in range(1, 17):
        for _ in trainer.run_steps(run, state, step):
            pass
        seen.append({name: one.double() for name, one in run_weights(state).items()})
        if step in run.steps:
            shares = [DECAY ** (step - 1 - one) for one in range(step)]
            loaded = dict(run.load(step, weights="ema").named_parameters())
            for name, one in loaded.items():
                mean = sum(share * past[name] for share, past in zip(shares, seen, strict=True))
                torch.testing.assert_close(one.double(), mean / sum(shares), rtol=0, atol=1e-6)
    first = run.load(0, weights="ema").state_dict()
    assert all(torch.equal(one, first[name]) for name, one in run.load(0).state_dict().items())


def run_weights(state):
    return {name: one.detach().clone() for name, one in state.model.named_parameters()}


@pytest.mark.integration
def test_it_is_another_model_with_its_own_digest(run):
    trained, average = run.load(), run.load(weights="ema")
    assert not torch.equal(trained.W_E, average.W_E)
    assert average.origin.checkpoint_sha256 == run.saved_at(None).files[runs.EMA]
    counters = runs.read_counters(run.path, run.saved_at(None))
    found = trainer.fixed_loss(average, run.store, run.order, run.numerics)
    assert found == counters["ema_loss"] != counters["fixed_loss"]


@pytest.mark.integration
@pytest.mark.parametrize("stop", [1, 9, 23])
def test_a_run_that_stops_anywhere_resumes_to_the_same_bits(run, tmp_path, stop):
    check_resumed(run, tmp_path / "r", stop)


@pytest.mark.integration
def test_a_replay_ends_with_the_saved_average(run):
    assert trainer.verify(run).level == "bit-exact"
    end = trainer.replay(run, 17, 23).state.average
    saved = runs.read_tensors(run.path, run.saved_at(None), runs.EMA)
    assert end.keys() == saved.keys()
    assert all(torch.equal(end[name], saved[name]) for name in saved)


@pytest.mark.integration
def test_a_retrained_run_averages_what_it_has_trained(run, tmp_path):
    document = int(run.documents_read(9)[0])
    child = trainer.retrain_without(run, tmp_path / "c", DocumentRemoval((document,), "blank"))
    assert runs.EMA in child.saved_at(None).files
    assert trainer.verify(child).level == "bit-exact"


@pytest.mark.integration
def test_a_changed_average_is_damage_and_a_run_without_one_says_so(run, tiny_run, tmp_path):
    copied = trainer.train(
        run.recipe, run.store, out=tmp_path / "r", numerics=run.numerics, steps=2
    )
    path = copied.path / copied.saved_at(2).folder / runs.EMA
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert runs.EMA in trainer.verify(copied).problems[0]
    with pytest.raises(TrainError, match=r"keeps no moving average .* ema_decay above 0"):
        tiny_run.load(weights="ema")


@pytest.mark.parametrize("change", [lambda one: one.long(), lambda one: one[None]])
def test_an_average_of_another_type_or_shape_is_refused(run, change, monkeypatch):
    read = runs.read_tensors

    def changed(path, saved, name):
        found = read(path, saved, name)
        return {k: change(one) for k, one in found.items()} if name == runs.EMA else found

    monkeypatch.setattr(runs, "read_tensors", changed)
    with pytest.raises(DamagedError, match=r"ema\.safetensors: .* or not torch\.float32"):
        trainer.load_state(run, run.steps[-1], run.numerics)
