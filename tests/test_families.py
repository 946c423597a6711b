"""Models of published families: equal to other libraries, and what each tool does on them."""

from pathlib import Path

import architectures
import families
import pytest


pytestmark = pytest.mark.slow
PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
every_family = pytest.mark.parametrize("name", families.FAMILIES)


@every_family
def test_logits_and_named_activations_are_those_of_other_libraries(name, tmp_path):
    found = families.differences(families.small(name), tmp_path)
    largest = max(found.transformers, found.lens, found.activations)
    assert largest < families.TOLERANCE
    assert len(found.names) > 100


@every_family
def test_patching_equals_whole_passes(name):
    worst, _ = architectures.compared(families.small(name))
    assert worst < architectures.TOLERANCE


def test_the_table_is_what_the_tools_do():
    support = {name: architectures.supported(families.small(name)) for name in families.FAMILIES}
    assert architectures.as_table(support) in PAGE.read_text(encoding="utf-8")
