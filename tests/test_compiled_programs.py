"""Where the compiler says what computes, removal finds exactly that; a contrast says what it hides.

`share` is a program written by hand: the share of `x` among the tokens so far, BOS counted. Head 0
attends evenly and writes two things, how many `x` (which is read) and how many `a` (which is not);
head 1 and the MLP have zero weights.
"""

import io
import json
import tarfile
import warnings
from collections import Counter
from pathlib import Path

import compiled_programs
import pytest
import torch
from compiled_programs import Program
from safetensors.torch import save

from interp.components import Component
from interp.errors import BehaviourError, EffectsError, UninformativeWarning
from interp.patching import ContrastCheck, contrast_check
from train.errors import DamagedError


ARCHIVE = "ground_truth/tracr_129.tar.xz"
# A number, one that looks ahead, a long context, and three with components that examples hide.
SUBSET = ["case_3", "case_13", "case_39", "case_89", "case_113", "case_124"]
TOKENS = {"a": 0, "b": 1, "BOS": 2, "PAD": 3, "x": 4}
LABELS = ["is_x", "is_a", "share_x", "share_a"]


def share(causal: bool = True) -> tuple[dict, dict[str, torch.Tensor]]:
    """Facts and weights of the program."""
    n_ctx, d_model, heads, d_head = 5, len(LABELS), 2, 3
    zero = torch.zeros
    weights = {
        "embed.W_E": zero(len(TOKENS), d_model),
        "pos_embed.W_pos": zero(n_ctx, d_model),
        "unembed.W_U": zero(d_model, 1),
        "unembed.b_U": zero(1),
        **{f"blocks.0.attn.W_{one}": zero(heads, d_model, d_head) for one in "QKV"},
        **{f"blocks.0.attn.b_{one}": zero(heads, d_head) for one in "QKV"},
        "blocks.0.attn.W_O": zero(heads, d_head, d_model),
        "blocks.0.attn.b_O": zero(d_model),
        "blocks.0.mlp.W_in": zero(d_model, 2),
        "blocks.0.mlp.b_in": zero(2),
        "blocks.0.mlp.W_out": zero(2, d_model),
        "blocks.0.mlp.b_out": zero(d_model),
    }
    weights["embed.W_E"][TOKENS["x"], 0] = weights["embed.W_E"][TOKENS["a"], 1] = 1
    weights["unembed.W_U"][2, 0] = 1
    for read, write in ((0, 2), (1, 3)):
        weights["blocks.0.attn.W_V"][0, read, read] = 1
        weights["blocks.0.attn.W_O"][0, read, write] = 1
    words = [["BOS", *rest] for rest in ("xab", "bbx", "aax", "xxb")]
    examples = [
        {
            "input": row,
            "token_ids": [TOKENS[one] for one in row],
            "output": ["BOS", *(output(row, pos, causal) for pos in range(1, len(row)))],
        }
        for row in words
    ]
    facts = {
        "task": "share of x",
        "cfg": {
            "n_layers": 1,
            "n_heads": heads,
            "d_model": d_model,
            "d_head": d_head,
            "d_mlp": 2,
            "n_ctx": n_ctx,
            "d_vocab": len(TOKENS),
            "d_vocab_out": 1,
            "act_fn": "relu",
            "attention_dir": "causal" if causal else "bidirectional",
            "normalization_type": None,
        },
        "vocab": ["a", "b", "x"],
        "input_encoding": TOKENS,
        "output_encoding": "numerical",
        "residual_labels": LABELS,
        "circuit_nodes": ["embed", "blocks.0.attn[0]"],
        "circuit_edges": [["embed", "blocks.0.attn[0]"]],
        "examples": examples,
    }
    return facts, weights


def output(row: list[str], pos: int, causal: bool) -> float:
    seen = row[: pos + 1] if causal else row
    return seen.count("x") / len(seen)


def written(folder: Path, facts: dict, weights: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "case_7.json").write_text(json.dumps(facts))
    (folder / "case_7.safetensors").write_bytes(save(weights))
    return folder


@pytest.fixture
def program(tmp_path) -> Program:
    return compiled_programs.read_program(written(tmp_path / "tracr", *share()), "case_7")


def row(*symbols: str) -> torch.Tensor:
    return torch.tensor([[TOKENS[one] for one in ("BOS", *word)] for word in symbols])


# --- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
def test_a_program_computes_its_examples_whichever_way_it_attends(tmp_path, causal):
    program = compiled_programs.read_program(written(tmp_path / "tracr", *share(causal)), "case_7")
    assert program.mismatches() == 0
    assert program.model.cfg.attention_dir == ("causal" if causal else "bidirectional")
    assert program.circuit == (Component("head", 0, 0),)
    assert [str(place) for place in program.components] == ["L0H0", "L0H1", "L0.mlp"]


def test_what_a_position_sees_is_what_the_direction_says(tmp_path):
    for causal in (True, False):
        program = compiled_programs.read_program(
            written(tmp_path / "tracr", *share(causal)), "case_7"
        )
        first, last = program.model(row("aaa")), program.model(row("aax"))
        assert torch.equal(first[:, :-1], last[:, :-1]) is causal


def test_looking_at_the_pattern_changes_nothing(tmp_path):
    for causal in (True, False):
        model = compiled_programs.read_program(
            written(tmp_path / "tracr", *share(causal)), "case_7"
        ).model
        tokens = row("xab", "axx")
        logits, cache = model.run_with_cache(tokens)
        torch.testing.assert_close(model(tokens), logits, rtol=0, atol=1e-6)
        seen = cache["blocks.0.attn.hook_pattern"][0, 0, 1]
        expected = [0.5, 0.5, 0, 0] if causal else [0.25] * 4
        torch.testing.assert_close(seen, torch.tensor(expected))
        # Without a norm there is nothing that is divided by.
        assert torch.equal(cache["ln_final.hook_in"], cache["ln_final.hook_out"])
        assert not any("hook_scale" in name for name in model.hook_dict)


def test_a_tar_and_a_folder_hold_the_same(tmp_path, program):
    archive = tmp_path / "tracr.tar.xz"
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(tmp_path / "tracr", "tracr")
        # Not a pair of ours, so it is not even read.
        member = tarfile.TarInfo("../../case_7.json.txt")
        tar.addfile(member, io.BytesIO())
    (found,) = compiled_programs.open_programs(archive)
    assert found.name == program.name
    tokens = program.tokens
    assert torch.equal(found.model(tokens), program.model(tokens))


def _drop(name: str):
    return lambda facts, weights: weights.pop(name)


DAMAGE = {
    "a tensor is missing": (_drop("blocks.0.attn.W_K"), "blocks.0.attn.W_K"),
    "a tensor too many": (lambda f, w: w.update(more=torch.zeros(1)), "no place.*more"),
    "another shape": (lambda f, w: w.update({"blocks.0.mlp.b_in": torch.zeros(9)}), "b_in|bias"),
    "an unembedding bias": (lambda f, w: w["unembed.b_U"].add_(1), "b_U is not zero"),
    "another activation": (lambda f, w: f["cfg"].update(act_fn="gelu"), "gelu"),
    "no examples": (lambda f, w: f.pop("examples"), "examples"),
    "not a direction": (lambda f, w: f["cfg"].update(attention_dir="up"), "up"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_does_not_fit_is_refused_by_name(tmp_path, damage):
    facts, weights = share()
    harm, said = DAMAGE[damage]
    harm(facts, weights)
    with pytest.raises(DamagedError, match=f"case_7: .*({said})"):
        compiled_programs.read_program(written(tmp_path / "tracr", facts, weights), "case_7")


def test_a_name_that_is_not_there_and_half_a_pair_are_refused(tmp_path):
    folder = written(tmp_path / "tracr", *share())
    with pytest.raises(DamagedError, match=r"no program 'case_8'.*case_7"):
        compiled_programs.read_program(folder, "case_8")
    (folder / "case_7.safetensors").unlink()
    with pytest.raises(DamagedError, match="only its json"):
        list(compiled_programs.open_programs(folder))
    (folder / "case_7.json").unlink()
    for nothing, said in ((folder, "holds no"), (tmp_path / "none.tar", "missing")):
        with pytest.raises(DamagedError, match=said):
            list(compiled_programs.open_programs(nothing))
    (tmp_path / "bad.tar").write_bytes(b"no tar at all")
    with pytest.raises(DamagedError, match="not readable as a tar"):
        list(compiled_programs.open_programs(tmp_path / "bad.tar"))


def test_varied_inputs_have_every_length_and_begin_with_bos(program):
    batches = program.varied_inputs(seed=0)
    assert [one.shape for one in batches] == [(135, length) for length in (2, 3, 4, 5)]
    assert all((one[:, 0] == program.bos).all() for one in batches)
    assert set(batches[-1][:, 1:].flatten().tolist()) == set(program.symbols.values())
    again = program.varied_inputs(seed=0)
    assert all(torch.equal(one, other) for one, other in zip(batches, again, strict=True))


# --- what the compiler knows ---------------------------------------------------------------------


def test_all_programs_decode_their_examples(shared_data):
    found = Counter()
    for program in compiled_programs.open_programs(shared_data / ARCHIVE):
        found["programs"] += 1
        found["examples"] += len(program.examples)
        found["mismatches"] += program.mismatches()
        found["components"] += len(program.components)
        found["circuit"] += len(program.circuit)
    assert found["mismatches"] == 0
    assert dict(found) == {
        "programs": 129, "examples": 5160, "mismatches": 0, "components": 587, "circuit": 359
    }  # fmt: skip


def removed(program: Program, batches: list[torch.Tensor]) -> set[Component]:
    """Components whose removal is noticed on some batch."""
    changes = compiled_programs.needed_components(program, batches)
    return {place for place, change in changes.items() if change > compiled_programs.HIT}


@pytest.mark.parametrize("name", [name for name in SUBSET if name != "case_113"])  # 10 s
def test_removal_on_varied_inputs_finds_the_circuit_and_nothing_else(shared_data, name):
    program = compiled_programs.read_program(shared_data / ARCHIVE, name)
    assert removed(program, program.varied_inputs()) == set(program.circuit)


@pytest.mark.parametrize("name", SUBSET)
def test_what_equally_long_inputs_hide_is_what_the_warning_names(shared_data, name):
    program = compiled_programs.read_program(shared_data / ARCHIVE, name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = compiled_programs.program_contrast(
            program, program.tokens, program.tokens.roll(1, 0)
        )
    shown, circuit = set(found.named("shown")), set(map(str, program.circuit))
    assert shown <= circuit
    assert set(found.uninformative) == circuit - shown
    assert {one.category for one in caught} == (
        {UninformativeWarning} if circuit - shown else set()
    )
    assert all(place in str(caught[0].message) for place in circuit - shown)


def test_the_engine_removes_what_plain_hooks_remove(shared_data):
    program = compiled_programs.read_program(shared_data / ARCHIVE, "case_113")
    model, tokens = program.model, program.tokens

    def zero(place: Component):
        def hook(value: torch.Tensor, point: object) -> torch.Tensor:
            value = value.clone()
            value[place.index] = 0
            return value

        return place.hook, hook

    def output(place: Component) -> torch.Tensor:
        return model.run_with_hooks(tokens, fwd_hooks=[zero(place)])[:, 1:, : program.n_outputs]

    with torch.inference_mode():
        start = model(tokens)[:, 1:, : program.n_outputs]
        plain = [(output(place) - start).abs().max().item() for place in program.components]
    found = compiled_programs.needed_components(program, [tokens])
    assert list(found.values()) == pytest.approx(plain, abs=1e-5)


# --- what a contrast can show --------------------------------------------------------------------


def test_a_difference_that_is_read_is_shown_and_nothing_is_warned_of(program):
    found = compiled_programs.program_contrast(program, row("xab", "bba"), row("bab", "bxa"))
    assert found.verdicts == ("shown", "silent", "silent")
    assert found["L0H0"] == "shown"
    assert found.exchanged[0] == pytest.approx(1 / 2)


def test_a_difference_that_is_not_read_is_named(program):
    # As many x before every position, other a: the head's value differs in what nobody reads.
    with pytest.warns(UninformativeWarning, match=r"1 of 3 places.*L0H0.*output itself does not"):
        found = compiled_programs.program_contrast(program, row("axb"), row("bxa"))
    assert (found["L0H0"], found.moved[0] > 0.1, found.exchanged[0]) == ("unread", True, 0)


def test_what_does_not_differ_is_named(program):
    def still_x(*others: str) -> torch.Tensor:
        return row(*(f"x{one}" for one in others))

    # b and x at the same places throughout: only symbols that the head does not count differ.
    model = program.model
    with torch.no_grad():
        model.blocks[0].attn.qkv.weight[-6 + 1] = 0  # it no longer counts a
    with pytest.warns(
        UninformativeWarning, match=r"L0H0 \(the same in both prompts of every pair\)"
    ):
        found = compiled_programs.program_contrast(
            program, still_x("ab", "bb"), still_x("bb", "ab")
        )
    assert found.verdicts == ("constant", "silent", "silent")
    assert found.uninformative == ["L0H0"]


def test_a_component_without_a_part_in_it_is_idle_and_nothing_is_warned_of(program):
    with torch.no_grad():  # read the token at hand, not the share
        program.model.unembed.weight[0] = torch.tensor([1.0, 0, 0, 0])
    found = compiled_programs.program_contrast(program, row("xab"), row("bab"))
    assert found.verdicts == ("idle", "silent", "silent")


def test_a_contrast_survives_being_saved_and_knows_its_places(program, tmp_path):
    found = compiled_programs.program_contrast(program, row("xab"), row("bab"))
    found.save(tmp_path / "contrast.json")
    assert ContrastCheck.load(tmp_path / "contrast.json") == found
    assert found.to_frame()["verdict"].tolist() == list(found.verdicts)
    with pytest.raises(EffectsError, match=r"'L0H7' is not among the 3 places from L0H0 to L0.mlp"):
        found["L0H7"]
    with pytest.raises(BehaviourError, match="make no pairs"):
        compiled_programs.program_contrast(program, row("xab"), row("ba"))


def test_a_sweep_names_the_places_that_were_not_moved():
    names = ["L0H0", "L0H1", "L0.mlp"]
    moved = torch.tensor([1.0, 2e-6, 0.0])
    still = contrast_check.unmoved(names, moved)
    assert still == ["L0H1", "L0.mlp"], "rounding is no movement"
    with pytest.warns(UninformativeWarning, match=r"'x' is uninformative about 2 of 3 places: L0H"):
        contrast_check.warn_unmoved("x", still, 3)
    contrast_check.warn_unmoved("x", contrast_check.unmoved(names, moved + 1), 3)
