"""docs/architectures.md says of every tool what it does on every architecture."""

from pathlib import Path

import architectures
import pytest

from train.model import PRESETS, preset


pytestmark = pytest.mark.slow
PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"


@pytest.fixture(scope="module")
def support() -> dict[str, dict[str, architectures.Support]]:
    return {name: architectures.supported(preset(name)) for name in architectures.SMALL}


def test_the_table_is_what_the_tools_do(support):
    assert architectures.as_table(support) in PAGE.read_text(encoding="utf-8")


def test_every_refusal_names_the_part_that_is_in_the_way(support):
    words = {
        "retro-nano": ("post-norm", "post-layernorm"),
        "strawberry-nano": ("retention", "norm_gain"),
        "slowrun-nano": ("unet",),
        "modern-nano": ("sinks",),
    }
    for name, named in words.items():
        refusals = [one.says for one in support[name].values() if not one.works]
        assert refusals
        for said in refusals:
            assert "\n" not in said
            assert any(word in said for word in named), said


@pytest.mark.parametrize("name", architectures.SMALL)
def test_patching_equals_whole_passes(name):
    worst, _ = architectures.compared(preset(name))
    assert worst < architectures.TOLERANCE


def test_the_page_gives_the_numbers_of_parameters():
    text = PAGE.read_text(encoding="utf-8")
    for cfg in PRESETS.values():
        assert f"{cfg.n_params:,}" in text
