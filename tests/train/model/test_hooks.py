"""A hook sees and changes exactly the place it names, leaves nothing behind, is never silent."""

from functools import partial

import pytest
import torch

from train.errors import HookError
from train.model import GPT, GPTConfig, HookPoint, init_gpt


@pytest.fixture(scope="module")
def model() -> GPT:
    return init_gpt(GPTConfig(n_layers=2, n_heads=2, d_model=16, n_ctx=8, d_vocab=11), seed=0)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.arange(12).view(2, 6) % 11


def hooks_left(model: GPT) -> int:
    return sum(len(point.fwd) + len(point.bwd) for point in model.hook_dict.values())


def keep(tensor, point):
    return None


def test_a_hook_is_called_with_the_value_and_its_point(model, tokens):
    seen = []
    model.run_with_hooks(
        tokens, fwd_hooks=[("blocks.1.hook_mlp_out", lambda x, point: seen.append((x, point)))]
    )
    [(value, point)] = seen
    assert value.shape == (2, 6, 16)
    assert point.name == "blocks.1.hook_mlp_out"
    assert point is model.hook_dict["blocks.1.hook_mlp_out"]


def test_what_a_hook_returns_replaces_the_value(model, tokens):
    last = "blocks.1.hook_resid_post"
    logits = model.run_with_hooks(tokens, fwd_hooks=[(last, lambda x, _: torch.zeros_like(x))])
    assert (
        logits == 0
    ).all()  # no bias after a zeroed residual stream: ln_final's bias starts at 0


def test_hooks_at_one_point_run_in_the_order_given(model, tokens):
    place = "hook_embed"
    plus = (place, lambda x, _: x + 1)
    times = (place, lambda x, _: x * 2)
    _, after = model.run_with_cache(tokens, names_filter=place)
    with model.hooks([plus, times]):
        _, both = model.run_with_cache(tokens, names_filter=place)
    torch.testing.assert_close(both[place], (after[place] + 1) * 2)


def test_the_context_removes_exactly_its_own_hooks(model, tokens):
    model.add_hook("hook_embed", keep)
    with model.hooks([("hook_embed", keep)], [("hook_embed", keep)]):
        assert hooks_left(model) == 3
        model(tokens).sum().backward()
    assert hooks_left(model) == 1
    model.reset_hooks()
    assert hooks_left(model) == 0


def test_hooks_are_removed_when_the_block_or_the_hook_fails(model, tokens):
    def fail(tensor, point):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        model.run_with_hooks(tokens, fwd_hooks=[("hook_embed", fail)])
    with pytest.raises(KeyError), model.hooks([("hook_embed", keep)]):
        raise KeyError
    assert hooks_left(model) == 0


def test_a_hook_that_never_fired_is_an_error(model, tokens):
    with pytest.raises(HookError, match="never fired, the first is the fwd hook at hook_embed"):  # noqa: SIM117
        with model.hooks([("hook_embed", keep)]):
            pass
    with pytest.raises(HookError, match=r"1 of 2 hooks never fired.*bwd hook"):  # noqa: SIM117
        with model.hooks([("hook_embed", keep)], [("hook_embed", keep)]):
            model(tokens)  # no backward


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("blocks.0.hook_resd_pre", "did you mean 'blocks.0.hook_resid_pre'"),
        ("blocks.2.hook_resid_pre", "did you mean"),
        (lambda name: name.endswith("hook_rot_q"), "matches none of the 51 hook points"),
        (["hook_embed", "hook_embd"], "no hook point is called"),
    ],
)
def test_a_name_that_matches_nothing_is_refused_before_anything_runs(model, tokens, wanted, said):
    with pytest.raises(HookError, match=said):
        model.run_with_cache(tokens, names_filter=wanted)
    assert hooks_left(model) == 0


def test_a_hook_that_changes_the_shape_is_refused(model, tokens):
    with pytest.raises(
        HookError, match=r"returned shape \(2, 16\) for a value of shape \(2, 6, 16\)"
    ):
        model.run_with_hooks(tokens, fwd_hooks=[("hook_embed", lambda x, _: x[:, 0])])


def test_caching_changes_no_bit_of_the_logits_of_a_layer_that_is_only_read(model, tokens):
    logits, _ = model.run_with_cache(tokens, names_filter=lambda name: "resid" in name)
    assert torch.equal(logits, model(tokens))


def test_the_cache_answers_to_full_short_and_other_names(model, tokens):
    _, cache = model.run_with_cache(tokens)
    assert cache["resid_pre", 1] is cache["blocks.1.hook_resid_pre"]
    assert cache["resid_post", -1] is cache["blocks.1.hook_resid_post"]
    assert cache["scale", 0, "ln2"] is cache["blocks.0.ln2.hook_scale"]
    assert cache["scale"] is cache["ln_final.hook_scale"]
    assert cache["embed"] is cache["hook_embed"]
    assert cache["blocks.0.attn.q.hook_out"] is cache["blocks.0.attn.hook_q"]
    assert "blocks.0.attn.hook_z" in cache
    assert "blocks.0.attn.hook_result" not in cache  # n_heads times larger: on request
    assert cache.get("nonsense", 3) == 3
    assert len(cache) == len(list(cache)) == len(model.hook_dict) - 2


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (("scale", 0), "name the part as well"),
        (("resid_pre", 2), "no layer 2 in a model of 2 layers"),
        ("pattern", "give the layer"),
        (("patern", 0), "did you mean 'pattern'"),
        ("blocks.0.attn.hook_result", "was not cached"),
    ],
)
def test_a_key_that_is_not_there_says_why(model, tokens, key, said):
    _, cache = model.run_with_cache(tokens)
    with pytest.raises(HookError, match=said):
        cache[key]


def test_a_names_filter_keeps_what_it_names_and_nothing_else(model, tokens):
    _, cache = model.run_with_cache(tokens, names_filter=["blocks.0.attn.o.hook_in", "hook_embed"])
    assert set(cache) == {"blocks.0.attn.hook_z", "hook_embed"}
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_result"))
    assert cache["result", 0].shape == (2, 6, 2, 16)


def test_a_gradient_hook_sees_the_gradient_and_can_stop_it(model, tokens):
    seen = []
    model.zero_grad()
    place = "blocks.1.hook_mlp_out"
    with model.hooks(bwd_hooks=[(place, lambda g, point: seen.append((g.shape, point.name)))]):
        model(tokens).logsumexp(-1).sum().backward()
    assert seen == [((2, 6, 16), place)]
    assert model.blocks[1].mlp.down.weight.grad.abs().sum() > 0
    model.zero_grad()
    with model.hooks(bwd_hooks=[(place, lambda g, _: torch.zeros_like(g))]):
        model(tokens).logsumexp(-1).sum().backward()
    assert model.blocks[1].mlp.down.weight.grad.abs().sum() == 0
    assert model.blocks[1].attn.out.weight.grad.abs().sum() > 0  # goes round the MLP


def test_the_gradient_at_a_point_is_the_gradient_of_the_value_there(model, tokens):
    place, given = "blocks.0.hook_resid_mid", []

    def fresh(tensor, point):
        given.append(tensor.detach().requires_grad_())
        return given[0]

    seen = []
    with model.hooks([(place, fresh)], [(place, lambda g, _: seen.append(g))]):
        model(tokens).logsumexp(-1).sum().backward()
    torch.testing.assert_close(seen[0], given[0].grad)


def test_a_gradient_hook_stops_one_path_and_not_the_others_of_the_same_value(model, tokens):
    model.zero_grad()
    with model.hooks(bwd_hooks=[("blocks.1.ln1.hook_in", lambda g, _: torch.zeros_like(g))]):
        model(tokens).logsumexp(-1).sum().backward()
    assert model.blocks[1].attn.out.weight.grad.any()  # above the point
    assert model.blocks[0].mlp.down.weight.grad.any()  # below it, along the residual stream


def test_an_empty_point_returns_the_same_object():
    value = torch.zeros(3)
    assert HookPoint()(value) is value


def test_a_point_knows_its_layer_and_keeps_what_hooks_leave(model, tokens):
    def look(value, hook):
        hook.ctx["seen"] = hook.layer()

    point = model.hook_dict["blocks.1.attn.hook_z"]
    with model.hooks([(point.name, look)], clear_contexts=True):
        model(tokens)
        assert point.ctx == {"seen": 1}
    assert point.ctx == {}
    with pytest.raises(HookError, match="hook_embed is in no block"):
        model.hook_dict["hook_embed"].layer()


def test_a_hook_may_take_its_point_by_name_wherever_the_parameter_stands(model, tokens):
    seen = []

    def keyword(value, *, hook):
        seen.append(hook.name)

    def last(value, pos, hook):
        seen.append((pos, hook.name))

    def own(value, point, hook="its own"):
        seen.append((hook, point.name))

    def more(value, *, hook, **rest):
        seen.append((hook.name, rest))

    hooks = [("hook_embed", one) for one in (keyword, partial(last, pos=3), own, more)]
    model.run_with_hooks(tokens, fwd_hooks=hooks)
    assert seen == [
        "hook_embed", (3, "hook_embed"), ("its own", "hook_embed"), ("hook_embed", {}),
    ]  # fmt: skip


def test_a_permanent_hook_stays_until_it_is_named(model, tokens):
    plain = model(tokens)
    model.add_hook("hook_embed", lambda value, point: 0 * value, is_permanent=True)
    model.hook_dict["hook_embed"].add_hook(keep)
    model.reset_hooks()
    assert hooks_left(model) == 1
    assert not torch.equal(model(tokens), plain)
    model.reset_hooks(including_permanent=True)
    assert hooks_left(model) == 0
    assert torch.equal(model(tokens), plain)


def test_hooks_stay_after_the_block_if_that_is_asked(model, tokens):
    with model.hooks([("hook_embed", keep)], reset_hooks_end=False):
        model(tokens)
    assert hooks_left(model) == 1
    model.reset_hooks(direction="bwd")
    assert hooks_left(model) == 1
    model.reset_hooks()
    assert hooks_left(model) == 0


def test_other_names_of_activations_and_the_input_of_the_mlp(model, tokens):
    _, cache = model.run_with_cache(tokens)
    assert cache["attn", 0] is cache["pattern", 0]
    assert cache["mlp_post", 1] is cache["post", 1, "mlp"]
    assert torch.equal(cache["mlp_in", 0], cache["resid_mid", 0])
    changed = model.run_with_hooks(
        tokens, fwd_hooks=[("blocks.1.hook_mlp_in", lambda value, point: 2 * value)]
    )
    torch.testing.assert_close(changed, model(tokens), rtol=1e-3, atol=1e-3)
