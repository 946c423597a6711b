"""Several processes train one run together: the data are those of one process, the sums nearly,
and one process repeats them to the bit."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from data_attribution.cli.app import INTERRUPTED
from tests.worlds.commands import refused
from train import numerics, runs, trainer
from train.cli import ranks as ranks_of_commands
from train.data import DocumentRemoval, read_batch
from train.errors import RecipeError
from train.numerics import Numerics


pytestmark = pytest.mark.integration
TIMEOUT = 240  # seconds; a command takes ten on two busy cores

# Behind `killed.py`. Ranks are forked, so that torch is imported once. They meet in a file, on the
# loopback interface.
RANKS = """
import json
import random
import traceback
from dataclasses import replace
from pathlib import Path
import torch
import torch._dynamo  # by the first optimizer: once, instead of in every fork
from train import runs, trainer
from train.data import open_store
from train.errors import DivergedError, LostRankError, UnequalRanksError
from train.numerics import Numerics

torch.set_num_threads(1)
os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
store, source, folder = open_store(Path(sys.argv[1])), runs.open(sys.argv[2]), Path(sys.argv[3])
meetings = iter(range(1000))

def together(size, work):
    \"\"\"How the ranks ended: 0, 1, 75 when another was lost, or minus a signal.\"\"\"
    meeting, children = f"file://{folder}/meeting-{next(meetings)}", []
    for rank in reversed(range(size)):  # rank 0 last: it knows the others' numbers
        child = os.fork()
        if child == 0:
            code = 0
            try:
                with trainer.join_ranks(
                    "cpu", rank=rank, size=size, local_rank=rank, rendezvous=meeting
                ):
                    work(rank, children)
            except LostRankError:
                code = 75
            except (DivergedError, UnequalRanksError) as error:
                (folder / f"{type(error).__name__}-{rank}").write_text(str(error))
                code = 1
            except BaseException:
                traceback.print_exc()
                code = 2
            os._exit(code)
        children.append(child)
    ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return ended[::-1]

def training(name, size, shard=False, **changes):
    def work(rank, children):
        out = folder / name
        if (out / "manifest.json").exists():
            trainer.resume(out, store=store.path, shard_optimizer=shard)
        else:
            how = Numerics("cpu", "fp32", 1, world_size=size)
            recipe = replace(source.recipe, **changes)
            trainer.train(
                recipe, store, out=out, numerics=how, watch=watch, shard_optimizer=shard,
                progress=progress,
            )
    return work

watch = trainer.store_tasks(store, source.recipe.model.n_ctx)
progress = None
"""

DRIFT = """
def drift(step):
    \"\"\"Change one number of the gradient of a step, in this rank alone.\"\"\"
    steps, clip = iter(range(1000)), torch.nn.utils.clip_grad_norm_

    def clip_and_change(parameters, most):
        norm = clip(parameters, most)
        if next(steps) == step:
            parameters[0].grad[0, 0] += 1e-3
        return norm

    torch.nn.utils.clip_grad_norm_ = clip_and_change
"""

SEVERAL = """
assert together(2, training("two", 2, eval_every=6)) == [0, 0]
assert together(2, training("again", 2, eval_every=6)) == [0, 0]
assert together(3, training("three", 3)) == [0, 0, 0]
assert together(2, training("diverged", 2, lr=1e30, min_lr=1e30, weight_decay=0.0))[0] == 1

def drifting(rank, children):
    if rank == 1:
        drift(9)
    training("drifting", 3, eval_every=6)(rank, children)

assert together(3, drifting) == [1, 1, 1]

def progress(what, done, total):
    if done == 13:
        os._exit(9)

assert together(2, training("stopped", 2, eval_every=6)) == [9, 75]
"""

SHARDED = """
assert together(2, training("sharded-two", 2, shard=True, eval_every=6)) == [0, 0]
assert together(3, training("sharded-three", 3, shard=True)) == [0, 0, 0]

def progress(what, done, total):
    if done == 13:
        os._exit(9)

assert together(2, training("sharded-stopped", 2, shard=True, eval_every=6)) == [9, 75]
progress = None
assert together(2, training("sharded-stopped", 2, shard=True)) == [0, 0]

def measuring(rank, children):
    ranks = trainer.Ranks(rank, 2, shards_optimizer=True)
    run = runs.open(folder / "sharded-two")
    state = trainer.load_state(run, 16, run.numerics)
    keep_own_shard(state, ranks)
    held = [sum(one["exp_avg"].numel() for one in state.optimizer.state.values())]
    for _ in trainer.training_steps(
        state, run.recipe, run.store, run.order, run.numerics, 20, ranks=ranks
    ):
        held.append(sum(one["exp_avg"].numel() for one in state.optimizer.state.values()))
    (folder / f"held-{rank}").write_text(json.dumps(held))

from train.trainer.state import keep_own_shard
assert together(2, measuring) == [0, 0]
"""

KILLED = """
kills, draw, killed, trial = int(sys.argv[4]), random.Random(0), 0, 0

def dying(work, number, victim):
    def die(rank, children):
        if rank:
            return work(rank, children)
        counted(lambda: work(rank, children), number, children[0] if victim else 0)
    return die

def counting(rank, children):
    work = training("unbroken", 2)
    if rank:
        return work(rank, children)
    (folder / "changes").write_text(str(counted(lambda: work(rank, children), 0)))

assert together(2, counting) == [0, 0]
n_changes = int((folder / "changes").read_text())
while killed < kills:
    work = training(f"killed-{trial}", 2)
    trial += 1
    for _ in range(3):
        victim = draw.randint(0, 1)
        ended = together(2, dying(work, draw.randint(1, n_changes // 2), victim))
        assert ended[victim] in (0, -9), ended
        assert ended[1 - victim] in (0, 75), ended
        killed += ended[victim] == -9
    assert together(2, work) == [0, 0]
print(killed)
"""


def weights(run, step=None) -> str:
    return run.saved_at(step).files["model.safetensors"]


def same(one, other) -> bool:
    rows = zip(one.ledger, other.ledger, strict=True)
    return one.id == other.id and one.saved == other.saved and all(a.agrees(b) for a, b in rows)


def python(*arguments) -> subprocess.CompletedProcess[str]:
    command = list(map(str, [sys.executable, "-c", *arguments]))
    return subprocess.run(command, capture_output=True, text=True, timeout=1200)


@pytest.fixture(scope="module")
def folder(tiny_run, killed, tmp_path_factory) -> Path:
    """Runs of two and three ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    ended = python(killed + RANKS + DRIFT + SEVERAL, tiny_run.store.path, tiny_run.path, folder)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture
def two(folder, tiny_store):
    return runs.open(folder / "two", store=tiny_store.path)


def test_two_processes_read_what_one_reads_and_their_sums_are_nearly_the_same(two, tiny_run):
    assert [row.digest for row in two.ledger] == [row.digest for row in tiny_run.ledger]
    assert [row.tokens for row in two.ledger] == [row.tokens for row in tiny_run.ledger]
    losses = zip(two.ledger, tiny_run.ledger, strict=True)
    assert max(abs(a.loss - b.loss) for a, b in losses) < 1e-5
    assert two.ledger[0].grad_norm == pytest.approx(tiny_run.ledger[0].grad_norm, rel=1e-5)
    assert two.finished
    assert [row.step for row in two.ledger if row.held_out] == [0, 6, 12, 18]
    assert [one.step for one in two.watched.looks] == list(two.watched.steps)


def test_two_processes_twice_are_the_same_to_the_bit(two, folder):
    assert same(two, runs.open(folder / "again", store=two.store.path))


@pytest.mark.parametrize(("name", "size"), [("two", 2), ("three", 3)])
def test_one_process_computes_the_shares_in_turn_to_the_same_bits(folder, tmp_path, name, size):
    """Four windows are divided among three processes as two, one and one."""
    run = runs.open(folder / name)
    assert run.numerics.world_size == size
    alone = trainer.train(run.recipe, run.store, out=tmp_path / "r", numerics=run.numerics)
    assert same(alone, run)
    assert trainer.verify(run).level == "bit-exact"


def test_a_run_of_two_processes_is_retrained_by_one(two, tmp_path):
    document = int(two.documents_read(20)[0])
    child = trainer.retrain_without(two, tmp_path / "child", DocumentRemoval((document,)))
    assert trainer.verify(child).level == "bit-exact"
    whole = trainer.replay(two, 0, 23, removal=DocumentRemoval((document,)))
    for name, tensor in child.load().state_dict().items():
        assert torch.equal(tensor, whole.state.model.state_dict()[name])


def test_the_world_size_is_in_the_manifest_only_if_there_are_several(two, tiny_run):
    assert two.predicate["numerics"]["world_size"] == 2
    assert "world_size" not in tiny_run.predicate["numerics"]
    assert two.id != tiny_run.id


def test_a_loss_that_is_not_a_number_ends_all_ranks_and_is_named(folder):
    assert "is not a number" in (folder / "DivergedError-0").read_text()
    assert not runs.open(folder / "diverged").finished


@pytest.fixture(scope="module")
def sharded(folder, tiny_run, killed) -> Path:
    """Runs of ranks that each keep a part of the optimizer's state."""
    ended = python(killed + RANKS + SHARDED, tiny_run.store.path, tiny_run.path, folder)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.mark.parametrize("name", ["two", "three"])
def test_a_divided_optimizer_leaves_the_files_of_a_whole_one(sharded, name):
    divided, whole = (runs.open(sharded / one) for one in (f"sharded-{name}", name))
    assert same(divided, whole)
    assert "optimizer.safetensors" in divided.saved_at(16).files
    assert trainer.verify(divided).level == "bit-exact"


def test_a_stopped_run_goes_on_with_a_divided_optimizer_to_the_same_bits(sharded):
    resumed = runs.open(sharded / "sharded-stopped")
    assert [one["first_step"] for one in resumed.predicate["segments"]] == [0, 8]
    assert same(resumed, runs.open(sharded / "two"))


def test_each_rank_keeps_about_half_of_a_divided_optimizer(sharded, two):
    first, second = (json.loads((sharded / f"held-{rank}").read_text()) for rank in range(2))
    assert {len(first), len(second)} == {5}
    n_params = sum(one.numel() for one in two.load().parameters())
    assert {a + b for a, b in zip(first, second, strict=True)} == {n_params}
    assert len({*first}) == 1
    assert abs(first[0] - second[0]) < 0.05 * n_params


def test_the_state_of_muon_is_not_divided(muon_run, tmp_path):
    with pytest.raises(RecipeError, match="only the state of 'adamw' can be divided"):
        trainer.train(
            muon_run.recipe, muon_run.store, out=tmp_path / "r", numerics=muon_run.numerics,
            shard_optimizer=True,
        )  # fmt: skip
    assert not (tmp_path / "r").exists()


def test_a_rank_whose_weights_drift_away_is_named_before_a_checkpoint_is_written(folder, two):
    said = {(folder / f"UnequalRanksError-{rank}").read_text() for rank in range(3)}
    (line,) = said
    assert line.startswith("after 16 steps rank 1 of 3 and rank 0 hold different weights")
    stopped = runs.open(folder / "drifting", store=two.store.path)
    assert stopped.steps == [0, 1, 2, 4, 8]
    alone = trainer.train(
        stopped.recipe, two.store, out=folder / "not-drifting", numerics=stopped.numerics
    )
    assert same(trainer.resume(stopped.path, store=two.store.path), alone)


def test_the_command_resumes_with_as_many_processes_as_the_run_began_with(folder, two):
    out = folder / "stopped"
    assert not runs.open(out).finished
    ended = command("run", "resume", out, "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["numerics"]["world_size"] == 2
    resumed = runs.open(out)
    assert same(resumed, two)
    assert [one["first_step"] for one in resumed.predicate["segments"]] == [0, 8]


@pytest.mark.slow
def test_ranks_killed_at_10_random_moments_leave_the_same_weights(tiny_run, tmp_path, killed):
    """Either rank is killed, before rank 0 changes a file; the other notices and ends."""
    store = tiny_run.store.path
    ended = python(killed + RANKS + KILLED, store, tiny_run.path, tmp_path, 10)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) >= 10
    unbroken = runs.open(tmp_path / "unbroken", store=store)
    finished = [runs.open(path, store=store) for path in tmp_path.glob("killed-*")]
    assert len(finished) >= 4
    assert all(same(run, unbroken) for run in finished)
    assert trainer.verify(finished[0], spans=1).level == "bit-exact"


# --- the command ---------------------------------------------------------------------------------


def command(*arguments) -> subprocess.CompletedProcess[str]:
    """`python -m train`, which is `openbook`."""
    return subprocess.run(started(*arguments), capture_output=True, text=True, timeout=TIMEOUT)


def started(*arguments) -> list[str]:
    return list(map(str, [sys.executable, "-m", "train", *arguments]))


def small_training(store, out, steps) -> list[object]:
    return [
        "train", "text-small", store.path, "--out", out, "--batch-size", 2, "--threads", 1,
        "--precision", "fp32", "--steps", steps,
    ]  # fmt: skip


@pytest.mark.slow
def test_the_command_and_torchrun_train_the_same_run(make_store, tmp_path):
    store = long_store(make_store)
    ended = command(*small_training(store, tmp_path / "a", 4), "--devices", 2, "--json")
    assert ended.returncode == 0, ended.stderr
    run = runs.open(tmp_path / "a")
    assert json.loads(ended.stdout)["weights"] == weights(run)
    assert run.numerics == Numerics("cpu", "fp32", 1, run.numerics.matmul, world_size=2, kernels=2)
    assert trainer.verify(run).level == "bit-exact"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    arguments = [*torchrun, 2, "-m", "train", *small_training(store, tmp_path / "b", 4)]
    arguments += ["--shard-optimizer", "--json"]
    ended = subprocess.run(
        list(map(str, arguments)), capture_output=True, text=True, timeout=TIMEOUT
    )
    assert ended.returncode == 0, ended.stderr
    assert same(runs.open(tmp_path / "b"), run)
    assert json.loads(ended.stdout)["weights"] == weights(run)


def long_store(make_store):
    return make_store([" ".join(f"w{(row * 7 + k) % 50}" for k in range(60)) for row in range(40)])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the processes from /proc")
@pytest.mark.parametrize("victim", ["rank 0", "rank 1", "Ctrl-C", "the process that started them"])
def test_when_a_rank_ends_all_end_with_one_line_that_names_it(make_store, tmp_path, victim):
    out = tmp_path / "run"
    process = subprocess.Popen(
        started(*small_training(long_store(make_store), out, 100_000), "--devices", 2),
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    index = out / "checkpoints/index.json"
    wait_for(index.exists)
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = [Path("/proc") / one for one in listed]
    assert len(ranks) == 2
    if victim in ("rank 0", "rank 1"):
        os.kill(int(listed[int(victim[-1])]), signal.SIGKILL)
    else:
        process.send_signal(signal.SIGINT if victim == "Ctrl-C" else signal.SIGKILL)
    stdout, err = process.communicate(timeout=TIMEOUT)
    assert stdout == ""
    lines = [line for line in err.splitlines() if not line.startswith("training: ")]
    if victim == "Ctrl-C":
        assert (process.returncode, lines) == (130, [INTERRUPTED])
    elif victim.startswith("rank"):
        assert process.returncode == 128 + signal.SIGKILL
        assert lines == [
            f"error: {victim} of 2 was ended by SIGKILL; the run is kept up to its last checkpoint:"
            f" go on with `openbook run resume {out}`"
        ]
    wait_for(lambda: not any(one.exists() for one in ranks))
    assert not runs.open(out).finished
    assert runs.open(out).load().origin.step in runs.open(out).steps


def wait_for(event) -> None:
    give_up = time.monotonic() + TIMEOUT
    while not event():
        assert time.monotonic() < give_up
        time.sleep(0.02)


@pytest.mark.slow
def test_the_command_ends_in_one_line_that_names_the_rank_whose_weights_differ(
    make_store, tmp_path, monkeypatch
):
    start = "import os\nif os.environ.get('RANK') == '1':\n    import torch\n"
    drift = textwrap.indent(f"{DRIFT}\ndrift(2)\n", "    ")
    (tmp_path / "sitecustomize.py").write_text(start + drift)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    out = tmp_path / "r"
    ended = command(*small_training(long_store(make_store), out, 8), "--devices", 2)
    lines = [line for line in ended.stderr.splitlines() if not line.startswith("training: ")]
    assert (ended.returncode, ended.stdout) == (1, "")
    assert lines == [
        "error: after 4 steps rank 1 of 2 and rank 0 hold different weights or optimizer states; "
        "this checkpoint was not written: go on from the last one with `openbook run resume`, and "
        "if it happens again, test memory and devices"
    ]
    assert runs.open(out).steps == [0, 1, 2]


@pytest.mark.slow
def test_a_request_that_all_ranks_refuse_is_refused_in_one_line(make_store, tmp_path):
    small = small_training(long_store(make_store), tmp_path / "r", 4)
    ended = command(*small, "--batch-size", 1, "--devices", 2)
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == [
        "error: recipe 'text-small' has 1 windows per step for 2 processes, and each needs one; "
        "choose a batch size of 2 or more, or fewer processes"
    ]
    assert not (tmp_path / "r").exists()


def test_more_processes_than_cores_or_gpus_are_refused_before_one_is_started(
    openbook, tiny_store, monkeypatch
):
    def started(*_):
        raise AssertionError("a process was started")

    monkeypatch.setattr(ranks_of_commands.subprocess, "Popen", started)
    monkeypatch.setattr(ranks_of_commands.os, "sched_getaffinity", lambda _: {0, 1})
    train = ("train", "text-small", tiny_store.path, "--out", "r", "--devices")
    refused(
        openbook(*train, 64, "--device", "cpu"), 2,
        "64 processes were asked for on the CPU, and this machine has 2 cores, one for each: "
        "choose at most as many processes",
    )  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    refused(openbook(*train, 8), 2, "8 processes were asked for on device 'auto', and each needs a")
    refused(openbook(*train, 2, "--device", "cuda:0"), 2, "on device 'cuda:0', and each needs a")


@pytest.mark.slow
def test_ranks_that_never_meet_say_why_in_one_line(make_store, tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
    ended = command(*small_training(long_store(make_store), tmp_path / "r", 4), "--devices", 2)
    assert ended.returncode == 75
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: rank 1 of 2: the processes of this training cannot reach each")
    assert "nowhere0" in line
    assert not (tmp_path / "r").exists()


def test_a_command_for_another_number_of_processes_is_refused(openbook, tiny_store, monkeypatch):
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    ended = openbook("train", "text-small", tiny_store.path, "--out", "r", "--devices", 2)
    refused(ended, 2, "3 processes were started to train r, which is for 2; start 2")


# --- no processes --------------------------------------------------------------------------------


def test_shares_have_all_windows_in_order_and_the_divisor_and_digest_of_the_batch(tiny_run):
    batch = read_batch(tiny_run.store, tiny_run.order, 3)
    for count, sizes in ((1, [4]), (2, [2, 2]), (3, [2, 1, 1])):
        shares = batch.shares(count)
        assert [len(one.inputs) for one in shares] == sizes
        assert torch.equal(torch.cat([one.inputs for one in shares]), batch.inputs)
        assert torch.equal(torch.cat([one.targets for one in shares]), batch.targets)
        assert {(one.divisor, one.digest) for one in shares} == {(batch.divisor, batch.digest)}


def test_more_processes_than_windows_are_refused(tiny_run, tmp_path):
    how = replace(tiny_run.numerics, world_size=5)
    with pytest.raises(RecipeError, match="4 windows per step for 5 processes"):
        trainer.train(tiny_run.recipe, tiny_run.store, out=tmp_path / "r", numerics=how)


def test_a_process_that_joined_nobody_is_alone(two):
    assert trainer.ranks_of(two.numerics) == trainer.Ranks()


def test_cores_are_divided_among_the_processes(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    for world_size, threads in ((1, 6), (2, 3), (4, 1), (12, 1)):
        how = numerics.choose(device="cpu", precision="fp32", world_size=world_size)
        assert (how.world_size, how.threads) == (world_size, threads)


@pytest.mark.parametrize(("device", "count"), [("cuda", 3), ("cuda:0", 2)])
def test_every_process_needs_a_gpu_of_its_own(monkeypatch, device, count):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RecipeError, match=re.escape(f"{count} processes were asked for on device")):
        numerics.choose(device=device, world_size=count)
    assert numerics.choose(device="cuda", world_size=2).world_size == 2


def test_numerics_of_one_process_are_written_as_before():
    how = Numerics("cpu", "fp32", 1)
    assert how.to_dict() == {
        "device": "cpu", "precision": "fp32", "threads": 1, "matmul": "highest", "compile": False,
    }  # fmt: skip
    assert repr(how) == (
        "Numerics(device='cpu', precision='fp32', threads=1, matmul='highest', compile=False)"
    )
    assert repr(replace(how, world_size=2)).endswith("compile=False, world_size=2)")
    assert Numerics(**replace(how, world_size=2).to_dict()) == replace(how, world_size=2)
    assert asdict(how).keys() - how.to_dict().keys() == {"world_size", "kernels"}
