"""HTML pages: a behaviour from its heads to the proof, the demos, and a text and its sources."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from data_attribution.report.behaviour_page import write_behaviour_page
    from data_attribution.report.behaviour_results import BehaviourResults, gather, read_proof
    from data_attribution.report.code_page import code_summary, write_code_page
    from data_attribution.report.demo_page import demo_summary, write_demo_page
    from data_attribution.report.sources_page import write_sources_page
    from data_attribution.report.text import interval, read_line, steps_line
    from data_attribution.report.text_page import write_text_page
    from data_attribution.report.text_results import TextPage, trace_for_page

__all__ = [
    "BehaviourResults",
    "TextPage",
    "code_summary",
    "demo_summary",
    "gather",
    "interval",
    "read_line",
    "read_proof",
    "steps_line",
    "trace_for_page",
    "write_behaviour_page",
    "write_code_page",
    "write_demo_page",
    "write_sources_page",
    "write_text_page",
]

__getattr__ = names_on_first_use(__name__, __file__)
