"""SFT and DPO: the losses, what carries them, and runs that begin with another run."""

import json
import math
import shutil
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from tests.worlds.commands import left, refused
from tests.worlds.models import shaken
from tests.worlds.tuning import tiny_examples, tiny_tuning_store
from train import convert, numerics, runs, storage, trainer
from train.data import IGNORED, DocumentRemoval, TokenStore, read_batch, tuning
from train.errors import DamagedError, RecipeError, StoreError
from train.model import GPT, GPTConfig, use_kernels
from train.recipes import Recipe


pytestmark = pytest.mark.integration

SHORT = {"steps": 6, "batch_size": 4, "lr": 1e-2, "checkpoint_every": 3, "optimizer_every": 3}


@pytest.fixture(scope="module")
def stores(tiny_run, tmp_path_factory):
    """A store of instructions and one of preferences, by kind."""
    out = tmp_path_factory.mktemp("tuning")
    return {kind: tiny_tuning_store(kind, tiny_run.tokenizer, out / kind) for kind in tuning.KINDS}


@pytest.fixture(scope="module")
def sft_run(tiny_run, stores, tmp_path_factory):
    """The tiny run tuned on instructions."""
    out = tmp_path_factory.mktemp("sft") / "run"
    return trainer.tune(tiny_run, stores["instructions"], "sft", out=out, **SHORT)


@pytest.fixture(scope="module")
def dpo_run(sft_run, stores, tmp_path_factory):
    """The run tuned on instructions, tuned on preferences."""
    out = tmp_path_factory.mktemp("dpo") / "run"
    return trainer.tune(sft_run, stores["preferences"], "dpo", out=out, **SHORT)


# --- the loss of preferences ---------------------------------------------------------------------


def gradients_of(model: GPT, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradient of a loss by every weight."""
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    named = zip(model.named_parameters(), found, strict=True)
    return {name: torch.zeros_like(one) if g is None else g for (name, one), g in named}


def published_loss(model: torch.Tensor, beta: float) -> torch.Tensor:
    """The loss of a published trainer, which has no reference."""
    return -functional.logsigmoid(beta * (model[:, 0] - model[:, 1]))


def is_log_2(losses: torch.Tensor) -> bool:
    return losses.tolist() == [torch.tensor(2.0).log().item()] * len(losses)


def test_the_loss_at_the_reference_is_log_2_to_the_last_bit(dpo_run):
    batch = read_batch(dpo_run.store, dpo_run.order, 0)
    log_probs, _ = trainer.pair_log_probs(dpo_run.open_base().load(), batch)
    assert is_log_2(trainer.preference_loss(log_probs, log_probs, beta=0.1))
    # A published trainer leaves the reference out; the same test finds it.
    assert not is_log_2(published_loss(log_probs, beta=0.1))


def test_a_dpo_run_begins_with_log_2(dpo_run):
    # The reference was computed in other batches than the first step.
    assert dpo_run.ledger[0].loss == pytest.approx(math.log(2), abs=1e-6)
    assert dpo_run.ledger[-1].loss < 0.68


def test_equal_answers_have_no_gradient_and_opposite_pairs_cancel_at_equal_margins(dpo_run):
    model, batch = shaken(dpo_run.config), read_batch(dpo_run.store, dpo_run.order, 0)
    log_probs, _ = trainer.pair_log_probs(model, batch)
    equal = log_probs[:, :1].expand(-1, 2)
    loss = trainer.preference_loss(equal, torch.zeros_like(equal), beta=0.5).sum()
    assert all(not one.any() for one in gradients_of(model, loss).values())

    log_probs, _ = trainer.pair_log_probs(model, batch)
    both = torch.cat([log_probs, log_probs.flip(1)])
    # At the reference every margin is 0: a pair and its opposite pull equally hard.
    loss = trainer.preference_loss(both, both.detach(), beta=0.5).sum()
    assert max(float(one.abs().max()) for one in gradients_of(model, loss).values()) < 1e-5


def independent_loss(
    model: GPT, reference: GPT, run: runs.Run, documents: list[int], beta: float
) -> torch.Tensor:
    """DPO as in the paper, pair by pair, without padding, from the texts of the examples."""
    rows = {example.row: example for example in tiny_examples("preferences").read()}
    encode, eot, losses = run.tokenizer.encode, run.store.eot, []
    for document in documents:
        example = rows[run.store.document(document).row]
        margins = []
        for response in (example.response, example.rejected):
            prompt = [eot, *encode(example.prompt).tolist()]
            answer = [*encode(response or "").tolist(), eot]
            tokens = torch.tensor([[*prompt, *answer]])
            ratio = 0.0
            for one, sign in ((model, 1), (reference, -1)):
                chances = one(tokens[:, :-1])[0].float().softmax(dim=-1)
                for place, token in enumerate(answer, start=len(prompt) - 1):
                    ratio = ratio + sign * chances[place, token].log()
            margins.append(ratio)
        losses.append(-torch.log(torch.sigmoid(beta * (margins[0] - margins[1]))))
    return torch.stack(losses).mean()


def test_loss_and_gradients_equal_an_independent_derivation(dpo_run):
    model, reference = shaken(dpo_run.config), dpo_run.open_base().load()
    batch = read_batch(dpo_run.store, dpo_run.order, 2)
    documents = dpo_run.store.document_at(batch.starts.numpy() + 1).tolist()
    ours = trainer.objective_of(dpo_run)(model, batch)
    theirs = independent_loss(model, reference, dpo_run, documents, beta=0.1)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    found, expected = gradients_of(model, ours), gradients_of(model, theirs)
    for name in expected:
        assert torch.allclose(found[name], expected[name], atol=1e-5), name


def test_micro_batches_and_removed_pairs_keep_the_weight_of_every_other_pair(dpo_run):
    objective, model = trainer.objective_of(dpo_run), shaken(dpo_run.config)
    batch = read_batch(dpo_run.store, dpo_run.order, 1)
    whole = objective(model, batch)
    parts = [objective(model, part).item() for part in batch.parts(1)]
    assert sum(parts) == pytest.approx(whole.item(), abs=1e-6)
    first = int(dpo_run.store.document_at(int(batch.starts[0]) + 1))
    left_out = read_batch(dpo_run.store, dpo_run.order, 1, DocumentRemoval((first,)))
    alone = objective(model, next(batch.parts(1)))
    assert objective(model, left_out).item() == pytest.approx((whole - alone).item(), abs=1e-6)


# --- only responses carry loss -------------------------------------------------------------------


@pytest.mark.parametrize("kind", tuning.KINDS)
def test_only_the_tokens_of_responses_and_their_end_are_targets(stores, kind):
    store = stores[kind]
    order = runs.order_of(recipe_for(store), store)
    batch = read_batch(store, order, 0)
    rows = {example.row: example for example in tiny_examples(kind).read()}
    for start, targets in zip(batch.starts.tolist(), batch.targets, strict=True):
        example = rows[store.document(int(store.document_at(start + 1))).row]
        answers = [example.response, *([example.rejected] if example.rejected else [])]
        expected = [[*store.tokenizer.encode(text).tolist(), store.eot] for text in answers]
        assert targets[targets != IGNORED].tolist() == [*chain(*expected)]
    assert batch.divisor == int((batch.targets != IGNORED).sum())


def recipe_for(store: TokenStore) -> Recipe:
    objective = "sft" if store.tuning == "instructions" else "dpo"
    model = GPTConfig(n_layers=1, n_heads=2, d_model=16, n_ctx=16, d_vocab=store.vocab_size)
    return Recipe("mine", model, 8, 3, 1e-3, 0.0, 0, objective=objective)


def test_no_gradient_reaches_the_logits_of_a_prompt(sft_run, stores):
    batch = read_batch(sft_run.store, sft_run.order, 0)
    logits = shaken(sft_run.config)(batch.inputs).detach().requires_grad_()
    loss = trainer.next_token(lambda _: logits, batch)
    (gradient,) = torch.autograd.grad(loss, logits)
    touched = gradient.abs().sum(dim=-1) > 0
    assert torch.equal(touched, batch.targets != IGNORED)
    # The mean over the tokens of the responses, as written down once more.
    log_probs = logits.log_softmax(dim=-1)
    wanted = [
        log_probs[row, place, token]
        for row, targets in enumerate(batch.targets.tolist())
        for place, token in enumerate(targets)
        if token != IGNORED
    ]
    assert loss.item() == pytest.approx(-torch.stack(wanted).mean().item(), abs=1e-6)


# --- a lineage on disk ---------------------------------------------------------------------------


def test_a_lineage_names_its_weights_verifies_and_replays_to_the_bit(tiny_run, sft_run, dpo_run):
    assert [stage.id for stage in dpo_run.lineage()] == [tiny_run.id, sft_run.id, dpo_run.id]
    assert dpo_run.base.weights_sha256 == sft_run.saved_at(None).files["model.safetensors"]
    begin, end = dpo_run.load(0).state_dict(), sft_run.load().state_dict()
    assert all(torch.equal(begin[name], end[name]) for name in end)
    for stage in (sft_run, dpo_run):
        assert trainer.replay(stage, 0, 5).exact
        found = trainer.verify(stage, spans=1)
        assert (found.level, found.problems) == ("bit-exact", ())
    # The id of a run depends on what it began with.
    assert len({stage.id for stage in dpo_run.lineage()}) == 3


def test_a_killed_tuning_resumes_to_the_same_weights(sft_run, dpo_run, stores, tmp_path):
    class Killed(Exception):
        pass

    def kill(text: str, done: int, total: int | None) -> None:
        if done == 5:
            raise Killed

    out = tmp_path / "run"
    with pytest.raises(Killed):
        trainer.tune(sft_run, stores["preferences"], "dpo", out=out, progress=kill, **SHORT)
    again = trainer.resume(out)
    assert again.id == dpo_run.id
    assert (
        again.saved_at(None).files["model.safetensors"]
        == (dpo_run.saved_at(None).files["model.safetensors"])
    )


def test_a_pair_is_removed_exactly_from_a_tuned_run(dpo_run, tmp_path):
    without = trainer.retrain_without(dpo_run, tmp_path / "without", DocumentRemoval((3,)))
    assert without.base == replace(
        dpo_run.base, path=without.base.path, store_path=without.base.store_path
    )
    assert 3 not in without.documents_read(0)
    assert trainer.verify(without, spans=1).ok


@pytest.fixture
def copied(tiny_run, sft_run, dpo_run, tmp_path):
    """The lineage beside its stores, free to be damaged."""
    for number, stage in enumerate((tiny_run, sft_run, dpo_run)):
        ignore = shutil.ignore_patterns("index", "bm25", ".*")
        shutil.copytree(stage.store.path, tmp_path / f"store{number}", ignore=ignore)
        shutil.copytree(stage.path, tmp_path / f"run{number}")
        _move(tmp_path / f"run{number}", f"../store{number}", number)
    return tmp_path


def _move(run: Path, store: str, number: int) -> None:
    """Say in a manifest where store and base lie now; its id does not depend on it."""
    content = json.loads((run / "manifest.json").read_text())
    del content["digest"]
    content["predicate"]["store_path"] = store
    if number:
        content["predicate"]["base_places"] = {
            "run": f"../run{number - 1}",
            "store": f"../store{number - 1}",
        }
    storage.write_json(run / "manifest.json", storage.seal(content))


def test_verify_walks_the_lineage_and_names_the_file(copied):
    assert trainer.verify(runs.open(copied / "run2"), spans=0).ok
    for damaged in (
        "run0/checkpoints/step-00000008/model.safetensors",
        "run1/ledger.jsonl",
        "store0/tokens.bin",
        "run2/reference.npy",
    ):
        path = copied / damaged
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        found = trainer.verify(runs.open(copied / "run2"), spans=0)
        assert found.level == "damaged"
        assert any(path.parent.name in one or path.name in one for one in found.problems), damaged
        path.write_bytes(whole)
    shutil.move(copied / "run0", copied / "gone")
    assert any("no run at" in one for one in trainer.verify(runs.open(copied / "run2")).problems)
    # Another run in the place of the base.
    shutil.copytree(copied / "run1", copied / "run0")
    (problem,) = trainer.verify(runs.open(copied / "run1")).problems
    assert "began with run" in problem


def test_a_base_that_was_trained_again_to_other_weights_is_named(sft_run):
    """Its own files hold their digests, and its run id is the same: only the lineage tells."""
    predicate = {**sft_run.predicate, "base": {**sft_run.predicate["base"]}}
    predicate["base"]["weights_sha256"] = "0" * 64
    changed = replace(sft_run, manifest={**sft_run.manifest, "predicate": predicate})
    with pytest.raises(DamagedError, match=r"began with 000000000000\.\.\.; they were changed"):
        changed.lineage()


def test_verify_finds_a_reference_that_the_base_does_not_give(dpo_run, monkeypatch):
    monkeypatch.setattr(runs, "read_reference", lambda path, base: torch.zeros(24, 2).numpy())
    (problem,) = trainer.verify(dpo_run, spans=0).problems
    assert "reference.npy: differs by" in problem


def test_imported_weights_can_be_tuned_twice(tiny_run, stores, tmp_path):
    exported = convert.export_run(tiny_run, out=tmp_path / "folder")
    imported = convert.import_run(exported, out=tmp_path / "imported")
    options = {**SHORT, "numerics": tiny_run.numerics, "steps": 2}
    sft = trainer.tune(imported, stores["instructions"], "sft", out=tmp_path / "sft", **options)
    dpo = trainer.tune(sft, stores["preferences"], "dpo", out=tmp_path / "dpo", **options)
    assert [stage.knowledge for stage in dpo.lineage()] == ["weights-only", "full", "full"]
    assert trainer.verify(dpo, spans=1).level == "bit-exact"


def test_the_command_tunes_and_shows_the_base(tiny_run, stores, openbook, tmp_path):
    ended = openbook(
        "tune", "sft", tiny_run.path, stores["instructions"].path, "--out", tmp_path / "run",
        "--step", 8, "--steps", 2, "--lr", 1e-3, "--json",
    )  # fmt: skip
    assert ended.code == 0
    shown = json.loads(ended.out)
    assert (shown["base"]["run_id"], shown["base"]["step"]) == (tiny_run.id, 8)
    recipe = runs.open(tmp_path / "run").recipe
    assert (recipe.name, recipe.lr, recipe.min_lr) == ("tiny-sft", 1e-3, 1e-4)
    assert openbook("run", "verify", tmp_path / "run").code == 0


# --- what is refused -----------------------------------------------------------------------------


def test_a_base_that_fails_verification_is_not_tuned(copied, openbook):
    path = copied / "run0" / "ledger.jsonl"
    path.write_bytes(path.read_bytes()[:-2] + b"0\n")
    before = left(copied)
    ended = openbook("tune", "dpo", copied / "run1", copied / "store2", "--out", copied / "new")
    refused(ended, 3, "run0", "fails verification", "ledger.jsonl")
    assert left(copied) == before


def test_a_store_of_the_wrong_kind_vocabulary_or_length_is_refused(
    tiny_run, stores, tiny_store, lookup_run, openbook, tmp_path
):
    for objective, store, words in (
        ("dpo", stores["instructions"], ("holds instructions", "reads preferences")),
        ("sft", stores["preferences"], ("holds preferences", "reads instructions")),
        ("sft", tiny_store, ("holds documents", "reads instructions")),
    ):
        ended = openbook("tune", objective, tiny_run.path, store.path, "--out", tmp_path / "new")
        refused(ended, 2, *words)
    ended = openbook(
        "tune", "sft", lookup_run.path, stores["instructions"].path, "--out", tmp_path / "new"
    )
    refused(ended, 2, "tokenizer other than")
    assert left(tmp_path) == []


def test_tuning_needs_a_base_and_leaves_an_existing_run_alone(tiny_run, sft_run, stores, tmp_path):
    recipe = trainer.tuning_recipe(tiny_run, stores["instructions"], "sft")
    with pytest.raises(RecipeError, match="tunes a trained run"):
        trainer.train(recipe, stores["instructions"], out=tmp_path / "new")
    with pytest.raises(RecipeError, match="exists already"):
        trainer.tune(tiny_run, stores["instructions"], "sft", out=sft_run.path)
    with pytest.raises(StoreError, match="holds instructions"):
        trainer.train(tiny_run.recipe, stores["instructions"], out=tmp_path / "new")
    with pytest.raises(RecipeError, match="no objective 'spo'"):
        trainer.tune(tiny_run, stores["instructions"], "spo", out=tmp_path / "new")
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "sft", "sampler": "nanogpt"}, "read whole by sampler='tiles' alone"),
        ({"dpo_beta": 0.5}, "has dpo_beta=0.5 and objective='next-token'"),
        ({"objective": "dpo", "dpo_beta": 0.0}, "has dpo_beta=0.0; it must be above 0"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(tiny_recipe, changes, message):
    with pytest.raises(RecipeError, match=message):
        replace(tiny_recipe, **changes)


def test_a_changed_reference_is_not_trained_on(copied):
    path = copied / "run2" / "reference.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(DamagedError, match=r"reference\.npy: its sha256"):
        trainer.replay(runs.open(copied / "run2"), 0, 1)


# --- runs that were trained with other methods ---------------------------------------------------


def test_a_base_with_a_block_for_the_next_token_but_one_is_tuned_and_verifies(
    tiny_recipe, tiny_store, stores, one_thread_numerics, tmp_path
):
    model = replace(tiny_recipe.model, mtp=True)
    base = trainer.train(
        replace(tiny_recipe, model=model, mtp_weight=0.3), tiny_store, out=tmp_path / "base",
        numerics=one_thread_numerics,
    )  # fmt: skip
    tuned = trainer.tune(base, stores["instructions"], "sft", out=tmp_path / "tuned", **SHORT)
    assert trainer.verify(tuned, spans=1).problems == ()


def test_another_architecture_than_that_of_the_base_is_refused(tiny_run, stores, tmp_path):
    other = replace(tiny_run.config, mlp="relu")  # of the same shapes
    with pytest.raises(RecipeError, match="has another model than"):
        trainer.tune(
            tiny_run, stores["instructions"], "sft", out=tmp_path / "run", model=other, **SHORT
        )
    assert not (tmp_path / "run").exists()


def test_the_default_steps_follow_the_size_of_a_batch(tiny_run, stores):
    store = stores["instructions"]
    n = int(store.manifest["counts"]["train_documents"])
    recipe = trainer.tuning_recipe(tiny_run, store, "sft", batch_size=2)
    assert (recipe.batch_size, recipe.steps) == (2, 3 * n // 2)
    short = trainer.tuning_recipe(tiny_run, store, "sft", steps=10)
    assert (short.steps, short.warmup_steps, short.checkpoint_every) == (10, 1, 2)
    with pytest.raises(RecipeError, match="0 steps tune nothing"):
        trainer.tuning_recipe(tiny_run, store, "sft", steps=0)


def test_the_reference_is_computed_with_the_kernels_of_the_training(sft_run, stores, tmp_path):
    how = replace(sft_run.numerics, kernels=2)
    run = trainer.tune(
        sft_run, stores["preferences"], "dpo", out=tmp_path / "run", numerics=how, **SHORT
    )
    assert run.base is not None
    reference = torch.from_numpy(runs.read_reference(run.path, run.base))
    batch = read_batch(run.store, run.order, 0)
    with numerics.applied(how), use_kernels(2), torch.no_grad():
        found, _ = trainer.pair_log_probs(run.open_base().load(), batch)
    assert torch.equal(found, reference[batch.starts // batch.inputs.shape[1]])
