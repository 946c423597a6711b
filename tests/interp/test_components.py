"""A place has one name, and the name is all that is needed to find it again."""

import pytest

from interp.components import Component, parse
from interp.errors import ModelError


PLACES = {
    "L1H0": Component("head", 1, head=0),
    "L12H11": Component("head", 12, head=11),
    "L5.mlp": Component("mlp", 5),
    "L0.attn@3": Component("attn", 0, pos=3),
    "L3.resid_pre@4": Component("resid_pre", 3, pos=4),
}


@pytest.mark.parametrize(("name", "place"), PLACES.items())
def test_reading_a_name_gives_the_place_that_has_it(name: str, place: Component):
    assert parse(name) == place
    assert str(place) == name


def test_a_place_points_at_its_slice_of_the_hook_point():
    assert parse("L1H2").hook == "blocks.1.attn.hook_z"
    assert parse("L1H2").index == (slice(None), slice(None), 2)
    assert parse("L3.resid_pre@4").index == (slice(None), 4)


@pytest.mark.parametrize("name", ["", "L1", "H3", "L1.mpl", "L1H", "L1.head", "mlp 5"])
def test_other_names_are_refused(name: str):
    with pytest.raises(ModelError, match=r"names no place|no place is called"):
        parse(name)


def test_a_misspelt_site_is_offered_the_nearest():
    with pytest.raises(ModelError, match="did you mean 'mlp'"):
        parse("L1.mpl")
