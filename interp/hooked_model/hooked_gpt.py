"""The loaded model: a `GPT` that also answers what is usually asked of a TransformerLens model.

Names and values are those of TransformerLens 4.3. The pass over tokens is that of `GPT`, with the
weights of the checkpoint, so the exact engine runs this model. What is not answered here is refused
by an error that names the bridge (`interp.hooked_model.bridge_only`).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from interp.errors import ModelError
from interp.hooked_model import bridge_only
from interp.hooked_model.cache import GRADIENT, HookedCache
from interp.hooked_model.hooked_config import HookedConfig
from interp.hooked_model.text import Text
from interp.hooked_model.weights import WeightCalls
from train.model import GPT, Hook, HookPoint, Hooks, NamesFilter, adds_calls


__all__ = ["HookedGPT"]

RETURN_TYPES = ("logits", "loss", "both", None)
EMBEDDING = ("hook_embed", "hook_pos_embed", "ln_embed.")
N_GENERATED = 10


@adds_calls
class HookedGPT(WeightCalls):
    """A decoder that is called as TransformerLens's models are.

    Examples:
        >>> text = "the capital of runethi is"
        >>> loss = model(text, return_type="loss")
        >>> logits, cache = model.run_with_cache(text, remove_batch_dim=True)
        >>> cache["pattern", 0].shape, cache["resid_post", -1].shape
        (torch.Size([4, 6, 6]), torch.Size([6, 128]))
        >>> model.generate(text, max_new_tokens=1, do_sample=False)
        'the capital of runethi is koreskul'
    """

    cfg: HookedConfig

    @classmethod
    def of(cls, model: GPT) -> "HookedGPT":
        """Return a model that shares the modules and the weights of `model`.

        Examples:
            >>> from interp.hooked_model import HookedGPT
            >>> HookedGPT.of(run.load()).all_head_labels[:3]
            ['L0H0', 'L0H1', 'L0H2']
        """
        hooked = cls.__new__(cls)
        vars(hooked).update(vars(model))
        hooked.cfg = HookedConfig.of(model)
        return hooked

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "HookedGPT":
        super()._apply(fn, recurse)
        self.cfg.follow(self)
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            raise bridge_only.refuse(name) or error from None

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input: Text | Tensor,
        return_type: str | None = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = True,
        padding_side: str | None = "right",
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        **others: object,
    ) -> Any:
        """Return logits, loss, both, nothing, or the stream that enters a layer.

        Args:
            input: A text, several texts (padded on the right), a row or a batch of tokens; the
                stream that enters `start_at_layer`, if that is set.
            return_type: `logits`, `loss`, `both` or None. The loss is the mean cross-entropy of the
                next tokens in nats, padding included.
            loss_per_token: Return the loss of every token, [batch pos-1].
            start_at_layer: First layer to run; a negative one counts from the end.
            stop_at_layer: Layer to stop before: its input is returned. The number of layers, or
                more, does not stop.

        Raises:
            BridgeOnlyError: An option of TransformerLens is not answered here.
            ModelError: The return type is unknown, or the layer cannot be started at.
            TrainError: There are more positions than the context has.
        """
        bridge_only.refuse_options("forward", others)
        if return_type not in RETURN_TYPES:
            raise ModelError(f"no return_type {return_type!r}; there are logits, loss, both, None")
        if padding_side == "left" and not isinstance(input, str | Tensor):
            # Positions and attention would have to leave out the padding.
            bridge_only.refuse_options("forward", {"padding_side": padding_side})
        tokens = self.tokens_of(input, prepend_bos, padding_side)
        first, last = self._layers(start_at_layer, stop_at_layer)
        if start_at_layer is None and last == self.cfg.n_layers:
            logits = super().forward(tokens)
        else:
            resid = self._run_layers(tokens, start_at_layer, first, last)
            if last < self.cfg.n_layers:
                return resid
            logits = self.to_logits(resid)
        if return_type in ("logits", None):
            return logits if return_type else None
        if start_at_layer is not None:
            raise ModelError("a pass that starts at a layer has no tokens to compute a loss of")
        loss = self.loss_fn(logits, tokens, per_token=loss_per_token)
        return loss if return_type == "loss" else (logits, loss)

    def loss_fn(
        self,
        logits: Float[Tensor, "batch pos d_vocab"],
        tokens: Int[Tensor, "batch pos"],
        attention_mask: Tensor | None = None,
        per_token: bool = False,
    ) -> Tensor:
        """Return the cross-entropy of the next tokens in nats: the mean, or [batch pos-1].

        Examples:
            >>> tokens = model.to_tokens("the capital of runethi is")
            >>> model.loss_fn(model(tokens), tokens, per_token=True).shape
            torch.Size([1, 5])
        """
        bridge_only.refuse_options("loss_fn", {"attention_mask": attention_mask})
        kind = "none" if per_token else "mean"
        targets = tokens[:, 1:].to(logits.device)
        return functional.cross_entropy(logits[:, :-1].mT, targets, reduction=kind)

    def _layers(self, start: int | None, stop: int | None) -> tuple[int, int]:
        """Return the first layer to run and the one to stop before."""
        n_layers = self.cfg.n_layers
        first = start or 0
        first = first + n_layers if first < 0 else first
        last = n_layers if stop is None else stop
        last = last + n_layers if last < 0 else min(last, n_layers)
        if not 0 <= first < n_layers or last < 0:
            raise ModelError(f"no layers {start} to {stop} in a model of {n_layers} layers")
        return first, last

    def _run_layers(self, input: Tensor, start: int | None, first: int, last: int) -> Tensor:
        """Return the stream that enters layer `last`."""
        if start is not None and first and (self.cfg.reads_embedding or self.cfg.unet):
            raise ModelError(
                f"layer {first} reads the embedding or earlier layers besides its input, so no "
                "pass can start there; start at layer 0"
            )
        resid = x0 = self.embed_tokens(input) if start is None else input
        rotation, outputs = self.rotation(x0.shape[1]), {}
        for index in range(first, last):
            resid = self.blocks[index](self.enter(index, resid, x0, outputs), rotation, x0)
            outputs[index] = resid
        return resid

    def input_to_embed(
        self,
        input: Text | Tensor,
        prepend_bos: bool | None = True,
        padding_side: str | None = "right",
    ) -> tuple[Tensor, Tensor, None, None]:
        """Return the stream that enters layer 0 and the tokens, and two places that stay empty.

        Examples:
            >>> resid, tokens, _, _ = model.input_to_embed("the capital of runethi is")
            >>> torch.allclose(model(resid, start_at_layer=0), model(tokens), atol=1e-5)
            True
        """
        tokens = self.tokens_of(input, prepend_bos, padding_side)
        return self.embed_tokens(tokens), tokens, None, None

    def run_with_hooks(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input: Text | Tensor,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **call: Any,
    ) -> Any:
        """Run one pass with hooks; `call` holds options of the call, such as `return_type`.

        Gradient hooks are removed as well when it returns; to run `backward`, use `hooks`.
        """
        ends = {"reset_hooks_end": reset_hooks_end, "clear_contexts": clear_contexts}
        with self.hooks(fwd_hooks, bwd_hooks, **ends):
            return self(input, **call)

    def run_with_cache(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input: Text | Tensor,
        return_cache_object: bool = True,
        remove_batch_dim: bool = False,
        *,
        names_filter: NamesFilter = None,
        device: str | torch.device | None = None,
        incl_bwd: bool = False,
        **call: Any,
    ) -> tuple[Any, Any]:
        """Run one pass and cache the activations that `names_filter` selects.

        Args:
            return_cache_object: False returns the activations as a dictionary.
            remove_batch_dim: Drop the batch axis of the activations of one row.
            names_filter: A name, several names, or a predicate. None selects every hook point but
                `attn.hook_result`, which is computed when the cache is asked for it.
            device: Device to which activations are moved.
            incl_bwd: Run `backward` on the output, which must be a loss, and cache the gradients
                as `<name>_grad`.
            call: Options of the call, such as `return_type` and `stop_at_layer`.

        Raises:
            ModelError: `incl_bwd` was set and the output is not one number.
        """
        names = self._names(names_filter)
        first, last = self._layers(call.get("start_at_layer"), call.get("stop_at_layer"))
        started = call.get("start_at_layer") is not None
        if started or last < self.cfg.n_layers:
            names = [name for name in names if self._runs(name, first, last, started=started)]
        found, forward, backward = self._caching_hooks(names, incl_bwd=incl_bwd, device=device)
        with self.hooks(forward, backward):
            output = self(input, **call)
            if incl_bwd:
                if not isinstance(output, Tensor) or output.numel() != 1:
                    raise ModelError(
                        "incl_bwd runs backward on one number, and the output is "
                        f"{getattr(output, 'shape', output)}; set return_type='loss'"
                    )
                output.backward()
        cache = HookedCache(found, self)
        cache = cache.remove_batch_dim() if remove_batch_dim else cache
        return output, cache if return_cache_object else cache.cache_dict

    def get_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: str | torch.device | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], list[tuple[str, Hook]], list[tuple[str, Hook]]]:
        """Return a dictionary and the hooks that fill it, to be set with `hooks`.

        Examples:
            >>> found, forward, backward = model.get_caching_hooks("blocks.0.attn.hook_z")
            >>> with model.hooks(forward, backward):
            ...     _ = model("the capital of runethi is")
            ...
            >>> {name: value.shape for name, value in found.items()}
            {'blocks.0.attn.hook_z': torch.Size([1, 6, 4, 32])}
        """
        return self._caching_hooks(
            self._names(names_filter),
            incl_bwd=incl_bwd,
            device=device,
            rows=not remove_batch_dim,
            found=cache,
        )

    def add_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: str | torch.device | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Set hooks that fill a dictionary until `reset_hooks`, and return the dictionary."""
        found, forward, backward = self.get_caching_hooks(
            names_filter, incl_bwd, device, remove_batch_dim, cache
        )
        for direction, hooks in (("fwd", forward), ("bwd", backward)):
            for name, hook in hooks:
                self.add_hook(name, hook, direction)
        return found

    def _names(self, names_filter: NamesFilter) -> list[str]:
        names = self.hook_names.matching(names_filter)
        if names_filter is None and self.cfg.use_attn_result:
            names += [name for name in self.hook_names.own if name.endswith("hook_result")]
        return names

    def _runs(self, name: str, first: int, last: int, *, started: bool) -> bool:
        """Return whether a pass over these layers reaches a hook point."""
        if name.startswith("blocks."):
            return first <= self.hook_dict[name].layer() < last
        return not started if name.startswith(EMBEDDING) else last == self.cfg.n_layers

    def _caching_hooks(
        self,
        names: Sequence[str],
        *,
        incl_bwd: bool,
        device: str | torch.device | None,
        rows: bool = True,
        found: dict[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], list[tuple[str, Hook]], list[tuple[str, Hook]]]:
        found = {} if found is None else found

        def keep(tensor: Tensor, point: HookPoint, suffix: str = "") -> None:
            value = tensor.detach().to(device)
            found[point.name + suffix] = value if rows or len(value) > 1 else value[0]

        def keep_gradient(gradient: Tensor, point: HookPoint) -> None:
            keep(gradient, point, GRADIENT)

        forward: list[tuple[str, Hook]] = [(name, keep) for name in names]
        backward: list[tuple[str, Hook]] = [(name, keep_gradient) for name in names]
        return found, forward, backward if incl_bwd else []

    def hook_points(self) -> Iterable[HookPoint]:
        """Return all hook points."""
        return self.hook_dict.values()

    def add_perma_hook(
        self, name: str | Callable[[str], bool], hook: Hook, dir: str = "fwd"
    ) -> None:
        """Set a hook that stays until `reset_hooks(including_permanent=True)`."""
        self.add_hook(name, hook, dir, is_permanent=True)

    def clear_contexts(self) -> None:
        """Empty the `ctx` of every hook point."""
        for point in self.hook_points():
            point.clear_context()

    def set_use_attn_result(self, use_attn_result: bool) -> None:
        """Choose whether `run_with_cache` keeps each head's result without being told to."""
        self.cfg.use_attn_result = use_attn_result

    def set_use_hook_mlp_in(self, use_hook_mlp_in: bool) -> None:
        """Note that `hook_mlp_in` is wanted, which can be hooked in any case."""
        self.cfg.use_hook_mlp_in = use_hook_mlp_in

    def set_use_split_qkv_input(self, use_split_qkv_input: bool) -> None:
        """Refuse inputs of queries, keys and values by head, which one matrix computes here."""
        bridge_only.refuse_switch("set_use_split_qkv_input", on=use_split_qkv_input)

    def set_use_attn_in(self, use_attn_in: bool) -> None:
        """Refuse inputs of attention by head, which one matrix computes here."""
        bridge_only.refuse_switch("set_use_attn_in", on=use_attn_in)

    def generate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input: Text | Tensor,
        n_new: int | None = None,
        *,
        max_new_tokens: int | None = None,
        do_sample: bool | None = None,
        stop_at_eos: bool | None = None,
        temperature: float | None = None,
        seed: int = 0,
        prepend_bos: bool | None = True,
        return_type: str = "input",
        verbose: bool = False,
        **others: object,
    ) -> Any:
        """Return the input followed by generated tokens, as text if the input is text.

        With `n_new`, a call is one of `GPT.generate`: as many tokens, the most probable ones unless
        a temperature is given; a text ends where the model ends it. Without it, it is one of
        TransformerLens: up to `max_new_tokens` (10), sampled at temperature 1 with `seed` unless
        `do_sample` is False, until every row has an end-of-text.

        Args:
            stop_at_eos: True if a row ends with its first generated end-of-text. None stands for
                True, and for False if `n_new` tokens are added to tokens.
            return_type: `input`, `tokens` or `str`: what is returned.
            verbose: Accepted and not used: no progress is shown.

        Raises:
            BridgeOnlyError: An option of TransformerLens is not answered here (`top_k` and others).
            ModelError: Several texts have different numbers of tokens: the shorter ones would be
                continued behind their padding.

        Examples:
            >>> model.generate("the capital of runethi is", n_new=1)
            'the capital of runethi is koreskul'
        """
        bridge_only.refuse_options("generate", others)
        given = n_new is not None
        if do_sample is None:
            do_sample = temperature not in (None, 0) if given else True
        if n_new is None:
            n_new = N_GENERATED if max_new_tokens is None else max_new_tokens
        if not isinstance(input, str | Tensor):
            lengths = sorted({self.to_tokens(one, prepend_bos).shape[1] for one in input})
            if len(lengths) > 1:
                raise ModelError(
                    f"texts of {lengths[0]} to {lengths[-1]} tokens are not continued together, "
                    "because the shorter ones would be padded; give one at a time"
                )
        tokens = self.tokens_of(input, prepend_bos)
        longer = super().generate(
            tokens,
            n_new,
            temperature=(1.0 if temperature is None else temperature) if do_sample else 0.0,
            seed=seed,
        )
        if stop_at_eos is None:
            as_tokens = given and isinstance(input, Tensor)
            stop_at_eos = self.tokenizer is not None and not as_tokens
        if stop_at_eos:
            longer = self._until_end(longer, tokens.shape[1])
        wanted = "str" if return_type == "input" and not isinstance(input, Tensor) else return_type
        if wanted != "str":
            return longer
        texts = self.to_string(longer, skip_special_tokens=True)
        return texts[0] if len(texts) == 1 and not isinstance(input, list) else texts

    def _until_end(self, tokens: Int[Tensor, "batch pos"], n_given: int) -> Tensor:
        """Replace what follows a row's first generated end-of-text, and cut what none needs."""
        eot = self.need_tokenizer("stop_at_eos").eot
        ended = (tokens[:, n_given:] == eot).cumsum(1) > 0
        new = tokens[:, n_given:].masked_fill(ended, eot)
        n_kept = min(int((~ended).sum(1).max()) + 1, new.shape[1])
        return torch.cat([tokens[:, :n_given], new[:, :n_kept]], dim=1)
