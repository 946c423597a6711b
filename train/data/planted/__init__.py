"""The planted corpus: a generated text with a truth table of what each document teaches."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from train.data.planted.corpus import planted_corpus, planted_truth
    from train.data.planted.documents import Draws

__all__ = ["Draws", "planted_corpus", "planted_truth"]

__getattr__ = names_on_first_use(__name__, __file__)
