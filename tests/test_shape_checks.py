"""Under pytest a wrong type or axis in a call of the packages is an error, as with jaxtyping."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import jaxtyping
import pytest
import torch
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float
from torch import Tensor

from tests.shape_checks import jaxtyped, of_jaxtyping
from train import trainer
from train.model import GPTConfig, init_gpt


if TYPE_CHECKING:
    from rich.console import Console

ZEROS = torch.zeros(2, 3)
CHECKERS = [jaxtyped, of_jaxtyping]


@pytest.fixture(params=CHECKERS, ids=["ours", "jaxtyping's"])
def check(request):
    return request.param(typechecker=beartype)


def agree(a: Float[Tensor, "row column"], b: Float[Tensor, " row"]) -> Float[Tensor, " column"]:
    return a[0] if len(b) < 3 else b


def plain(number: int, words: Sequence[str] = ()) -> str:
    return words[0] if words else number  # pyright: ignore[reportReturnType]


def several(*rows: Float[Tensor, " n"] | None, last: "Float[Tensor, ' n'] | None" = None) -> int:
    return len(rows)


def elsewhere(console: list["Console"], row: "Float[Tensor, ' n']") -> "Console":
    return console[0]


class Shifted:
    def by(self, rows: list[Float[Tensor, "row column"]]) -> Float[Tensor, "row column"]:
        return rows[0].T if len(rows) > 1 else rows[0]


def outer(row: Float[Tensor, " n"], inner) -> Float[Tensor, " n"]:
    inner(torch.zeros(len(row) + 1), None)
    return row


def drawn(row: Float[Tensor, " n"]) -> Iterator[Float[Tensor, " n"]]:
    yield row


def test_what_fits_passes(check):
    assert check(agree)(ZEROS, torch.zeros(2)).shape == (3,)
    assert check(plain)(1, ["a"]) == "a"
    assert check(several)(torch.zeros(4), None, last=torch.zeros(4)) == 2
    assert check(elsewhere)([1], torch.zeros(4)) == 1
    assert check(Shifted.by)(Shifted(), [ZEROS]) is ZEROS
    assert [len(row) for row in check(drawn)(torch.zeros(4))] == [4]
    # A call inside of a call has sizes of its own.
    assert len(check(outer)(torch.zeros(4), check(several))) == 4


@pytest.mark.parametrize(
    ("fn", "arguments"),
    [
        (agree, (ZEROS, torch.zeros(3))),  # row is 2, and 3
        (agree, (ZEROS, torch.zeros(2, 1))),
        (agree, (ZEROS.long(), torch.zeros(2))),
        (agree, (ZEROS.T, torch.zeros(3))),  # the result is b, and column is 2
        (plain, ("one",)),
        (plain, (1, [2])),
        (plain, (1,)),  # the result is a number
        (several, (torch.zeros(4), torch.zeros(5))),
        (Shifted.by, (Shifted(), [ZEROS[0]])),
        (Shifted.by, (Shifted(), [ZEROS, ZEROS])),  # the result is turned
        (elsewhere, ([1], ZEROS)),
        (drawn, (ZEROS,)),
    ],
)
def test_what_does_not_fit_is_an_error(check, fn, arguments):
    with pytest.raises((BeartypeCallHintViolation, jaxtyping.TypeCheckError)):
        check(fn)(*arguments)


def test_a_field_of_a_dataclass_is_checked_once(check):
    @check
    @dataclass(frozen=True)
    class Pair:
        a: Float[Tensor, " n"]
        b: Float[Tensor, " n"]

    @check
    class Named(Pair):
        pass

    assert Named.__init__ is Pair.__init__
    assert Named(torch.zeros(2), torch.zeros(2)).b.shape == (2,)
    with pytest.raises((BeartypeCallHintViolation, jaxtyping.TypeCheckError)):
        Named(torch.zeros(2), torch.zeros(3))


def test_an_error_names_the_sizes_that_are_known():
    with pytest.raises(BeartypeCallHintViolation) as error:
        jaxtyped(agree)(ZEROS, torch.zeros(3))
    assert error.value.__notes__[0].endswith("row=2\ncolumn=3")


def test_it_checks_the_packages():
    """The hook of jaxtyping looks its decorator up in the module that `install` has changed."""
    model = init_gpt(GPTConfig(n_layers=1, n_heads=1, d_model=4, n_ctx=4, d_vocab=5), seed=0)
    with pytest.raises(BeartypeCallHintViolation):
        trainer.next_token_loss(model(torch.zeros(1, 3).long()), torch.zeros(1, 4).long(), 3)
    with pytest.raises(BeartypeCallHintViolation):
        replace(model.cfg, n_layers="1")
