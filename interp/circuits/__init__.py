"""Circuits: find the edges that carry a behaviour, ablate edges exactly, and run controls."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from interp.circuits.ablations import AblationTest, ablation_tests
    from interp.circuits.discovery import check, find
    from interp.circuits.graph import Graph, graph_of
    from interp.circuits.mib_format import open_circuit, read_mib, write_mib
    from interp.circuits.result import Circuit

__all__ = [
    "AblationTest",
    "Circuit",
    "Graph",
    "ablation_tests",
    "check",
    "find",
    "graph_of",
    "open_circuit",
    "read_mib",
    "write_mib",
]

__getattr__ = names_on_first_use(__name__, __file__)
