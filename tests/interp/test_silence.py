"""Nothing that was asked comes back as a silent zero: it is an error with a name, or a warning.

One test for each way in which a null result used to look like a finding, through the functions
that people call, and through the command where people meet it there: one line on stderr.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from interp import behaviours, metrics, models, patching
from interp.behaviours import Behaviour
from interp.components import parse
from interp.errors import (
    BehaviourError,
    CapabilityError,
    ContrastError,
    ModelError,
    UninformativeWarning,
)
from tests.worlds.behaviours import said_by
from tests.worlds.models import silenced
from train.errors import HookError, TokenizerError
from train.model import GPT, GPTConfig, init_gpt


CFG = GPTConfig(n_layers=2, n_heads=2, d_model=16, n_ctx=8, d_vocab=30, init_std=0.3)


@pytest.fixture(scope="module")
def model() -> GPT:
    return init_gpt(CFG, seed=0).eval()


@pytest.fixture(scope="module")
def behaviour(model) -> Behaviour:
    """Random prompts, all of them different from the first token on."""
    clean = torch.randint(30, (4, 6), generator=torch.Generator().manual_seed(0))
    corrupt = (clean + 1) % 30
    return said_by(model, clean, corrupt)


@pytest.fixture
def patched(openbook, lookup_run, lookup_behaviour, tmp_path):
    """`openbook patch` on the run that knows twelve pairs, with a behaviour changed as asked."""

    def call(*options: object, command: str = "patch", **changed: object):
        path = tmp_path / "asked.json"
        asked = behaviours.read(lookup_behaviour)
        replace(asked, **changed).save(path)
        return openbook(command, lookup_run.path, path, *options)

    return call


def one_line(ended, code: int, *said: str) -> None:
    """The command ended with this code, and with one line for people that says all of this."""
    told = [line for line in ended.err.splitlines() if line.startswith(("error:", "warning:"))]
    assert ended.code == code
    assert len(told) == 1, ended.err
    for words in said:
        assert words in told[0]
    assert "Traceback" not in ended.err


# A hook that never fires


def test_a_hook_that_never_fires(model, behaviour):
    hooks = model.hooks([("hook_embed", lambda value, point: None)])
    never = pytest.raises(HookError, match="1 of 1 hooks never fired, the first is the fwd hook at")
    with never, hooks:
        pass
    with pytest.raises(HookError, match=r"bwd hook at hook_embed"), torch.no_grad():
        model.run_with_hooks(behaviour.clean, bwd_hooks=[("hook_embed", lambda value, point: None)])


def test_a_hooked_model_that_has_no_such_point(behaviour):
    class Silent(torch.nn.Module):
        """Knows its layers, and ignores every hook that it is given."""

        cfg = CFG

        def __init__(self, model: GPT) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens):
            return self.model(tokens)

        def run_with_hooks(self, tokens, *, fwd_hooks=()):
            return self.model(tokens)

        def run_with_cache(self, tokens, *, names_filter):
            return self.model(tokens), {}

    with pytest.raises(
        ModelError, match=r"a hook at blocks\.0\.attn\.hook_z never fired in this Silent"
    ):
        patching.heads(Silent(init_gpt(CFG, seed=0).eval()), behaviour)


# A site that does not exist


def test_a_site_that_does_not_exist(model, behaviour):
    with pytest.raises(BehaviourError, match=r"'resid_pree'.*did you mean 'resid_pre'"):
        patching.residual(model, behaviour, site="resid_pree")
    with pytest.raises(ModelError, match=r"'patern'.*did you mean 'pattern'"):
        patching.together(model, behaviour, [["L0H0.patern"]])
    with pytest.raises(ModelError, match=r"'mpl'.*did you mean 'mlp'"):
        parse("L0.mpl")
    with pytest.raises(ModelError, match=r"L0H2 is head 2 of a model that has 2"):
        patching.together(model, behaviour, [["L0H2"]])
    with pytest.raises(ModelError, match=r"L2N\d+ is layer 2 of a model that has 2"):
        patching.neurons(model, behaviour, layers=[2])
    with pytest.raises(BehaviourError, match="position 6 was asked of prompts of 6"):
        patching.heads(model, behaviour, positions=[6])
    with pytest.raises(HookError, match=r"did you mean 'blocks\.0\.hook_resid_mid'"):
        model.run_with_cache(behaviour.clean, names_filter="blocks.0.hook_resid_mit")
    with pytest.raises(HookError, match="matches none of the"):
        model.run_with_cache(behaviour.clean, names_filter=lambda name: "residd" in name)


def test_a_site_that_does_not_exist_at_the_command(patched):
    one_line(
        patched("--to", "L3H0.q", command="paths"), 2, "L3H0.q", "layer 3 of a model that has 1"
    )
    one_line(patched("--positions", "0,7"), 2, "position 7 was asked of prompts of 3")
    assert patched("--over", "haeds").code == 2


# A metric that does not depend on the patched site


def test_a_metric_that_reads_only_what_comes_before_the_patch(model, behaviour):
    early = metrics.custom("early", lambda logits: logits[:, 0, 3], unit="nats", positions=(2,))
    for sweep in (patching.residual, patching.heads, patching.mlps, patching.patterns):
        with pytest.raises(BehaviourError, match="reaches position 2, which is all that the metr"):
            sweep(model, behaviour, positions=[3, 4, (3, 5)], metric=early)
    assert patching.residual(model, behaviour, positions=[2], metric=early).values.abs().max() > 0


def test_a_place_that_leads_nowhere(model, behaviour):
    with pytest.raises(ModelError, match="no path leads there"):
        patching.senders(model, behaviour, "L0H0.q")
    with pytest.raises(BehaviourError, match="none of the 1 patches reaches position 5"):
        patching.together(model, behaviour, [["L1.resid_post@3"]])


def test_a_place_that_is_the_same_in_both_prompts(model, behaviour):
    late = behaviour.clean.clone()
    late[:, -1] = (late[:, -1] + 1) % 30
    last = replace(behaviour, corrupt=late)
    with pytest.warns(UninformativeWarning, match="uninformative about 1 of 2 places: L0H0@3"):
        found = patching.together(model, last, [["L0H0@3"], ["L0H0@5"]])
    assert found.values[0] == 0
    assert any("1 of 2 places" in note for note in found.notes)
    # By position, what comes before the prompts differ is in every sweep: a note says so.
    each = patching.residual(model, last)
    assert any("10 of 12 places" in note for note in each.notes)


def test_a_place_that_is_the_same_in_both_prompts_at_the_command(patched):
    # Every prompt begins with the same token.
    words = "1 of 2 places hold the same values on clean and corrupt prompts"
    found = json.loads(patched("--over", "residual", "--positions", "0,1", "--json").out)
    assert any(words in note for note in found["notes"])
    assert words in patched("--over", "residual", "--positions", "0,1").out


# What the model cannot do


def test_a_behaviour_that_the_model_cannot_do(model, behaviour):
    backwards = replace(behaviour, answer=behaviour.foil, foil=behaviour.answer)
    for sweep in (patching.heads, patching.residual, patching.senders):
        with pytest.raises(CapabilityError, match=r"does not do 'random': accuracy 0\.00 .* on 4 "):
            sweep(model, backwards)


def test_a_behaviour_that_the_model_cannot_do_at_the_command(patched, lookup_behaviour):
    asked = behaviours.read(lookup_behaviour)
    ended = patched(answer=asked.foil, foil=asked.answer)
    one_line(ended, 1, "the model does not do 'lookup': accuracy 0.", "on 12 prompts")


def test_prompts_that_the_model_does_not_tell_apart(behaviour):
    # Layers that write nothing: only the last token is read, and it is the same.
    blank = silenced(init_gpt(replace(CFG, init_std=0.3), seed=0).eval())
    corrupt = behaviour.clean.clone()
    corrupt[:, 0] = (corrupt[:, 0] + 1) % 30
    last = blank(behaviour.clean)[:, -1]
    alike = replace(behaviour, corrupt=corrupt, answer=last.argmax(1), foil=last.argmin(1))
    with pytest.raises(ContrastError, match="give prompts that the model tells apart"):
        patching.heads(blank, alike)


# Prompts and answers


def test_prompts_of_unequal_length(behaviour, tiny_run, tmp_path):
    # Under test the shapes are checked before anybody reads them: they are set behind its back.
    for field, value, said in (
        ("corrupt", behaviour.corrupt[:, :-1], r"\(4, 6\) and corrupt ones of \(4, 5\)"),
        ("answer", behaviour.answer[:3], "4 prompts, 3 answers and 4 foils"),
    ):
        uneven = replace(behaviour)
        object.__setattr__(uneven, field, value)
        with pytest.raises(BehaviourError, match=said):
            uneven.__post_init__()
    with pytest.raises(TokenizerError, match=r"2 texts have lengths \[1, 2\]"):
        tiny_run.load().to_tokens(["w1", "w1 w2"])
    # A loaded model pads them, as TransformerLens does, and no behaviour is made of padding.
    assert models.load(tiny_run).to_tokens(["w1", "w1 w2"])[0, -1] == tiny_run.store.eot


def test_a_foil_equal_to_the_answer(behaviour):
    foil = behaviour.foil.clone()
    foil[2] = behaviour.answer[2]
    with pytest.raises(BehaviourError, match="on 1 of 4 prompts the answer is its own foil"):
        replace(behaviour, foil=foil)
    corrupt = behaviour.corrupt.clone()
    corrupt[3] = behaviour.clean[3]
    with pytest.raises(BehaviourError, match="1 of 4 corrupt prompts are equal to their clean"):
        replace(behaviour, corrupt=corrupt)


def edited(path: Path, behaviour: Behaviour, **changed: object) -> Path:
    """A sealed file whose content nobody checked when it was written."""
    from train import storage

    storage.write_json(path, storage.seal({**behaviour.to_dict(), **changed}))
    return path


def test_prompts_and_foils_that_are_wrong_in_a_file_at_the_command(
    openbook, lookup_run, lookup_behaviour, tmp_path
):
    asked = behaviours.read(lookup_behaviour)
    own = edited(tmp_path / "own.json", asked, foil=asked.answer.tolist())
    one_line(openbook("patch", lookup_run.path, own), 2, "12 of 12 prompts the answer is its own")
    ragged = [row[: 2 + i % 2] for i, row in enumerate(asked.clean.tolist())]
    uneven = edited(tmp_path / "uneven.json", asked, clean=ragged)
    one_line(openbook("patch", lookup_run.path, uneven), 2, "clean prompts have lengths [2, 3]")


# Words


def test_a_tokenizer_of_another_vocabulary(model, behaviour, tiny_run, lookup_run):
    beyond = behaviour.clean.clone()
    beyond[0, 0] = 30
    with pytest.raises(BehaviourError, match="holds token 30, and the vocabulary of the model has"):
        patching.heads(model, replace(behaviour, clean=beyond))
    theirs, ours = models.load(tiny_run), models.load(lookup_run)
    small = replace(behaviour, **{k: getattr(behaviour, k) % 9 for k in ("clean", "corrupt")})
    small = replace(small, answer=behaviour.answer * 0, foil=behaviour.foil * 0 + 1)
    worded = replace(small, tokenizer=theirs.tokenizer.sha256)
    with pytest.raises(BehaviourError, match="is made of tokens of tokenizer"):
        patching.heads(ours, worded)


def test_a_tokenizer_of_another_vocabulary_at_the_command(patched, tiny_run):
    ended = patched(tokenizer=tiny_run.store.tokenizer.sha256)
    one_line(ended, 2, "tokens of tokenizer", "load it for this model")
