"""Weights and their products under TransformerLens's names."""

from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from interp.hooked_model.text import TextCalls
from train.model import GPT


if TYPE_CHECKING:
    from transformer_lens import FactoredMatrix

    from train.model import Linear

__all__ = ["Unembedding", "WeightCalls"]


class Unembedding:
    """The map from the normalised stream to logits; a tied model has no module for it.

    Examples:
        >>> model.unembed.W_U.shape, model.unembed(torch.zeros(1, 6, 128)).shape
        (torch.Size([128, 976]), torch.Size([1, 6, 976]))
    """

    def __init__(self, model: GPT, weight: Float[Tensor, "rows d_model"]) -> None:
        self.weight = weight
        self.d_vocab = model.cfg.d_vocab

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """The matrix, without padding columns."""
        return self.weight[: self.d_vocab].T

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:
        """Zeros, because the decoder has no bias here."""
        return self.weight.new_zeros(self.d_vocab)

    def __call__(self, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_vocab"]:
        """Return logits."""
        return resid @ self.W_U


class WeightCalls(TextCalls):
    """The calls of TransformerLens that read weights."""

    @property
    def unembed(self) -> Unembedding:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The unembedding, tied or not."""
        module = self.embed if self.cfg.tie else cast("Linear", self._modules["unembed"])
        return Unembedding(self, module.weight)

    @property
    def W_E_pos(self) -> Float[Tensor, "rows d_model"]:
        """Token embedding above the position embedding."""
        return torch.cat([self.W_E, self.W_pos])

    @property
    def QK(self) -> "FactoredMatrix":
        """Queries times keys of every head, [layer head d_model d_model], as two factors."""
        return _factored(self.W_Q, self.W_K.transpose(-2, -1))

    @property
    def OV(self) -> "FactoredMatrix":
        """Values times outputs of every head, [layer head d_model d_model], as two factors."""
        return _factored(self.W_V, self.W_O)

    @property
    def all_head_labels(self) -> list[str]:
        """Names of all heads: L0H0, L0H1 and so on."""
        heads = range(self.cfg.n_heads)
        return [f"L{layer}H{head}" for layer in range(self.cfg.n_layers) for head in heads]

    def all_composition_scores(self, mode: str) -> Any:
        """Return how much each head reads of what each earlier one writes.

        Elhage et al. 2021, https://transformer-circuits.pub/2021/framework/index.html: |W_A W_B| /
        (|W_A| |W_B|), in the Frobenius norm, where W_A is the OV matrix of the earlier head.

        Args:
            mode: `Q`, `K` or `V`: by which input the later head reads.

        Returns:
            `scores` [layer head later_layer later_head], 0 unless the second layer is the later
            one, and labels, as TransformerLens returns them.

        Examples:
            >>> model.all_composition_scores("Q").scores.shape
            torch.Size([2, 4, 2, 4])
        """
        from transformer_lens.model_bridge.composition_scores import CompositionScores
        from transformer_lens.utilities.matrix import composition_scores

        right = {"Q": lambda: self.QK, "K": lambda: self.QK.T, "V": lambda: self.OV}[mode]()
        scores = composition_scores(self.OV, right, broadcast_dims=True)
        layers = torch.arange(self.cfg.n_layers, device=self.device)
        earlier = layers[:, None, None, None] < layers[None, None, :, None]
        return CompositionScores(
            scores=torch.where(earlier, scores, 0.0),
            layer_indices=layers.tolist(),
            head_labels=self.all_head_labels,
        )

    def tokens_to_residual_directions(
        self, tokens: str | int | Tensor
    ) -> Float[Tensor, "*tokens d_model"]:
        """Return the direction of the stream that is read as each token's logit: rows of `W_U.T`.

        Examples:
            >>> model.tokens_to_residual_directions("runethi").shape
            torch.Size([128])
        """
        if isinstance(tokens, str):
            tokens = self.to_single_token(tokens)
        elif isinstance(tokens, Tensor) and tokens.numel() == 1:
            tokens = int(tokens)
        return self.W_U.T[tokens]

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, " d_model"]:
        """Return the sum of the output biases of the layers before `layer`.

        Args:
            mlp_input: Add that of the attention of `layer`.
            include_mlp_biases: Add those of the MLPs.
        """
        total = self.b_O[: layer + mlp_input].sum(0)
        return total + self.b_out[:layer].sum(0) if include_mlp_biases else total


def _factored(left: Tensor, right: Tensor) -> "FactoredMatrix":
    from transformer_lens import FactoredMatrix

    return FactoredMatrix(left, right)
