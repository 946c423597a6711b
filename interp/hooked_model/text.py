"""Text and tokens: what a loaded model says of strings, ids, arrays and lists of them."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from train.errors import TokenizerError
from train.model import GPT


__all__ = ["Text", "TextCalls"]

Text = str | Sequence[str]
Tokens = int | Sequence | np.ndarray | Tensor


class TextCalls(GPT):
    """The calls of TransformerLens that turn text into tokens and tokens into text."""

    def to_tokens(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        text: Text,
        prepend_bos: bool | None = True,
        padding_side: str | None = "right",
        *,
        truncate: bool = False,
    ) -> Int[Tensor, "batch pos"]:
        """Return the token ids of one text or of several; shorter texts are padded.

        Args:
            prepend_bos: Put an end-of-text in front. In a token store one precedes every document;
                training windows that begin inside a document have none.
            padding_side: `right` or `left`: where end-of-text tokens are added to shorter texts.
            truncate: Cut texts to the context. TransformerLens always does; here a longer text is
                refused when the model is to read it.

        Raises:
            TokenizerError: The model has no tokenizer, or a word is not in its vocabulary.

        Examples:
            >>> model.to_tokens(["the capital", "the capital of runethi"]).tolist()
            [[0, 794, 112, 0, 0], [0, 794, 112, 562, 696]]
        """
        tokenizer = self.need_tokenizer("to_tokens")
        start = [tokenizer.eot] if prepend_bos is None or prepend_bos else []
        texts = [text] if isinstance(text, str) else text
        rows = [start + tokenizer.encode(one).tolist() for one in texts]
        rows = [row[: self.cfg.n_ctx] for row in rows] if truncate else rows
        longest = max((len(row) for row in rows), default=0)
        padding = [[tokenizer.eot] * (longest - len(row)) for row in rows]
        pairs = zip(rows, padding, strict=True)
        padded = [more + row if padding_side == "left" else row + more for row, more in pairs]
        return torch.tensor(padded, dtype=torch.long, device=self.device).view(len(rows), longest)

    def to_string(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, tokens: Tokens, *, skip_special_tokens: bool = False
    ) -> str | list:
        """Return the text of one id or of a row of them; a list of texts for several rows.

        Args:
            skip_special_tokens: Leave out the end-of-text tokens, as the one that `to_tokens` puts
                in front.

        Examples:
            >>> tokens = model.to_tokens("the capital of runethi is")
            >>> model.to_string(tokens)
            ['<eot> the capital of runethi is']
            >>> model.to_string(tokens[0], skip_special_tokens=True), model.to_string(794)
            ('the capital of runethi is', 'the')
        """
        tokenizer = self.need_tokenizer("to_string")
        ids = torch.as_tensor(tokens)
        if ids.ndim > 1:
            return [self.to_string(row, skip_special_tokens=skip_special_tokens) for row in ids]
        row = ids.reshape(-1).tolist()
        return tokenizer.decode(
            [one for one in row if not (skip_special_tokens and one == tokenizer.eot)]
        )

    def to_str_tokens(
        self,
        input: Text | np.ndarray | Tensor | list,
        prepend_bos: bool | None = True,
        padding_side: str | None = "right",
    ) -> list[str] | list[list[str]]:
        """Return the text of every token of a text or of one row of ids; of each of a list.

        Examples:
            >>> model.to_str_tokens("the capital of runethi is")
            ['<eot>', 'the', 'capital', 'of', 'runethi', 'is']
        """
        if isinstance(input, str):
            ids = self.to_tokens(input, prepend_bos, padding_side)[0]
        elif isinstance(input, Tensor | np.ndarray):
            ids = torch.as_tensor(input).squeeze()
            if ids.ndim > 1:
                raise TokenizerError(
                    f"to_str_tokens reads one row of tokens, and these are {tuple(ids.shape)}; "
                    "give the rows as a list"
                )
        else:
            return [self.to_str_tokens(one, prepend_bos, padding_side) for one in input]  # type: ignore[misc]
        return self.need_tokenizer("to_str_tokens").tokens(ids.reshape(-1).tolist())

    def to_single_token(self, string: str) -> int:
        """Return the id of a text that is one token.

        Raises:
            TokenizerError: The text is not one token.

        Examples:
            >>> model.to_single_token("runethi"), model.to_single_str_token(696)
            (696, 'runethi')
        """
        ids = self.need_tokenizer("to_single_token").encode(string).tolist()
        if len(ids) != 1:
            raise TokenizerError(
                f"{string!r} is {len(ids)} tokens, {self.tokenizer.tokens(ids)[:5]}, not one"
            )
        return ids[0]

    def to_single_str_token(self, int_token: int) -> str:
        """Return the text of one id."""
        return self.need_tokenizer("to_single_str_token").tokens([int_token])[0]

    def get_token_position(
        self,
        single_token: str | int | Tensor,
        input: str | Tensor,
        mode: str = "first",
        prepend_bos: bool | None = True,
        padding_side: str | None = "right",
    ) -> int:
        """Return the first or the last position of a token in a text or in one row of tokens.

        Raises:
            TokenizerError: The token does not occur, or `mode` is neither `first` nor `last`.

        Examples:
            >>> model.get_token_position("runethi", "the capital of runethi is")
            4
        """
        if isinstance(input, str):
            input = self.to_tokens(input, prepend_bos, padding_side)
        row = input.squeeze(0).tolist() if input.ndim == 2 else input.tolist()
        if isinstance(single_token, str):
            wanted = self.to_single_token(single_token)
        else:
            wanted = int(single_token)
        places = [pos for pos, one in enumerate(row) if one == wanted]
        if mode not in ("first", "last") or not places:
            raise TokenizerError(
                f"token {single_token!r} occurs {len(places)} times in {len(row)} tokens, and mode "
                f"is {mode!r}; the modes are 'first' and 'last'"
            )
        return places[0 if mode == "first" else -1]

    def tokens_of(self, input: Text | Tensor, *options: object) -> Tensor:
        """Return the tokens of texts, of a row or of a batch of ids; a stream of vectors as it is.

        Args:
            options: `prepend_bos` and `padding_side` of `to_tokens`.
        """
        if not isinstance(input, Tensor):
            return self.to_tokens(input, *options)  # type: ignore[arg-type]
        return input[None] if input.ndim == 1 and not input.is_floating_point() else input
