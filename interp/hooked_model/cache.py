"""The activations of one pass, and what TransformerLens computes from them.

The decompositions are those of TransformerLens's own `ActivationCache`, which is given the
activations and weights of this model. It takes about five seconds to import, at the first of them.
They are refused for architectures whose residual stream is no sum of what the parts write, and
those that read the weights are refused for a model on which something hangs.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from einops import einsum
from torch import Tensor

from interp.errors import BridgeOnlyError, ModelError
from train.model import GPT, Cache, attachments


if TYPE_CHECKING:
    from transformer_lens import ActivationCache

__all__ = ["HookedCache"]

# Methods of TransformerLens's `ActivationCache`, and whether they add up parts of the stream.
DECOMPOSITIONS = {
    "accumulated_resid": False,
    "apply_ln_to_stack": True,
    "apply_slice_to_batch_dim": False,
    "decompose_resid": True,
    "get_full_resid_decomposition": True,
    "get_neuron_results": False,
    "logit_attrs": True,
    "stack_activation": False,
    "stack_head_results": True,
    "stack_neuron_results": True,
}
# Those that multiply with the weights, and would not see an adapter or a torch hook.
READ_WEIGHTS = (
    "get_full_resid_decomposition", "get_neuron_results", "logit_attrs", "stack_head_results",
    "stack_neuron_results",
)  # fmt: skip
BRIDGE_ONLY = ("compute_ssm_effective_attention", "compute_ssm_state", "logit_lens", "ssm_layers")
GRADIENT = "_grad"


class HookedCache(Cache):
    """Activations by name, and their decompositions under the names of TransformerLens.

    `accumulated_resid`, `decompose_resid`, `stack_head_results`, `stack_neuron_results`,
    `get_full_resid_decomposition`, `get_neuron_results`, `stack_activation`, `apply_ln_to_stack`
    and `logit_attrs` are documented there. `cache["result", layer]` is computed from `hook_z` if it
    was not cached.

    Examples:
        >>> _, cache = model.run_with_cache("the capital of runethi is")
        >>> stack, labels = cache.decompose_resid(return_labels=True)
        >>> labels[:4], stack.shape
        (['embed', 'pos_embed', '0_attn_out', '0_mlp_out'], torch.Size([6, 1, 6, 128]))
        >>> torch.allclose(stack.sum(0), cache["resid_post", -1], atol=1e-4)
        True
    """

    def __init__(self, activations: dict[str, Tensor], model: GPT) -> None:
        super().__init__(activations, model.hook_names)
        self.model = model
        self.has_batch_dim = True

    def __getitem__(self, key: str | tuple) -> Tensor:
        if isinstance(key, str) and key.endswith(GRADIENT):
            return self.activations[self.names.resolve(key.removesuffix(GRADIENT)) + GRADIENT]
        name = self.names.resolve(key)
        values = name.removesuffix("result") + "z"
        if name.endswith("hook_result") and name not in self and values in self.activations:
            self._compute_result(name, self.activations[values])
        return super().__getitem__(name)

    def __contains__(self, key: object) -> bool:
        return key in self.activations or super().__contains__(key)

    def __getattr__(self, name: str) -> Any:
        if name in DECOMPOSITIONS:
            return self._decomposition(name)
        if name in BRIDGE_ONLY:
            raise BridgeOnlyError(
                f"a cache has no {name!r}; use `models.transformer_lens(model).run_with_cache`"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def cache_dict(self) -> dict[str, Tensor]:
        """The activations by the model's own names of hook points."""
        return self.activations

    def to(self, device: str | torch.device) -> "HookedCache":
        """Move all activations to a device, and return the cache."""
        self.activations = {name: value.to(device) for name, value in self.activations.items()}
        return self

    def remove_batch_dim(self) -> "HookedCache":
        """Drop the batch axis of a cache of one row, and return the cache.

        Raises:
            ModelError: The cache has several rows.
        """
        n_rows = max((len(value) for value in self.activations.values()), default=1)
        if self.has_batch_dim and n_rows != 1:
            raise ModelError(f"a cache of {n_rows} rows has a batch axis that cannot be dropped")
        if self.has_batch_dim:
            self.activations = {name: value[0] for name, value in self.activations.items()}
            self.has_batch_dim = False
        return self

    def compute_head_results(self) -> None:
        """Add what each head writes to the stream, `hook_result`, to the cache."""
        for layer in range(self.model.cfg.n_layers):
            self["result", layer]

    def toggle_autodiff(self, mode: bool = False) -> None:
        """Turn gradients on or off everywhere, as TransformerLens does."""
        torch.set_grad_enabled(mode)

    def _compute_result(self, name: str, z: Tensor) -> None:
        self._refuse_attachments("hook_result")
        outputs = self.model.blocks[self.model.hook_dict[name].layer()].attn.W_O
        self.activations[name] = einsum(
            z, outputs.detach(), "... head d_head, head d_head d_model -> ... head d_model"
        )

    def _decomposition(self, name: str) -> Callable[..., Any]:
        reason = self.model.cfg.no_residual_sum
        if reason and DECOMPOSITIONS[name]:
            raise ModelError(f"{name} adds up parts of the residual stream, and {reason}")
        if name in READ_WEIGHTS:
            self._refuse_attachments(name)
        return getattr(self._as_activation_cache(), name)

    def _refuse_attachments(self, name: str) -> None:
        # What hangs at hook points is in the activations.
        if found := attachments(self.model, hook_points=False):
            raise ModelError(
                f"{found[0]}, and {name} is computed from the weights; take the model without it"
            )

    def _as_activation_cache(self) -> "ActivationCache":
        from transformer_lens import ActivationCache

        return ActivationCache(self.activations, self.model, has_batch_dim=self.has_batch_dim)
