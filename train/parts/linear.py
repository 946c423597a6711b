"""Linear maps and tables that start at zero.

torch fills a new layer from the global random generator: that costs a second for 124 M weights and
makes building a model change the random numbers of whoever runs next. Here weights are zero until
`model.init` or a loader sets them.
"""

from torch import nn


__all__ = ["Linear", "Table"]


class Linear(nn.Linear):
    """`nn.Linear`, weight [out, in], born zero."""

    def reset_parameters(self) -> None:
        """Called by torch on construction."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class Table(nn.Embedding):
    """`nn.Embedding`, weight [row, d_model], born zero."""

    def reset_parameters(self) -> None:
        """Called by torch on construction."""
        nn.init.zeros_(self.weight)
