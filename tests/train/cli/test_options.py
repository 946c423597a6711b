"""A command with dataclasses of options is called, parsed and described as one that lists them."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from train.cli.options import choice, number, option_groups


@dataclass(frozen=True, kw_only=True)
class Place:
    """An argument and an option."""

    city: Annotated[str, typer.Argument(metavar="CITY", help="City to visit.")]
    country: Annotated[str, typer.Option(help="Country of the city.")] = "Malta"


@pytest.fixture
def visit():
    app = typer.Typer(rich_markup_mode=None)

    @app.command()
    @option_groups
    def visit_command(
        place: Place,
        person: Annotated[str, typer.Argument(metavar="PERSON", help="Who visits it.")],
        days: Annotated[int, typer.Option(help="Length of the visit.")] = 3,
        by: Annotated[str, choice("foot", "train", "train:N", help="How to travel.")] = "train",
    ) -> None:
        """Visit CITY."""
        typer.echo(f"{person} {place} {days} {by.partition(':')[0]} {number(by, 1)}")

    return lambda *words: CliRunner().invoke(app, words)


def test_fields_are_arguments_and_options_and_arrive_as_one_object(visit):
    place = Place(city="Nuuk", country="Greenland")
    ended = visit("Nuuk", "Ada", "--country", "Greenland", "--days", "2")
    assert ended.output == f"Ada {place} 2 train 1\n"
    assert visit("Nuuk", "Ada").output == f"Ada {Place(city='Nuuk')} 3 train 1\n"
    assert visit("Nuuk").exit_code == 2


def test_help_lists_the_options_of_the_command_before_those_of_dataclasses(visit):
    text = visit("--help").output
    assert "{CITY} {PERSON}" in text
    assert text.index("--days") < text.index("--country")
    assert "Country of the city.  [default: Malta]" in text
    assert "--by foot|train|train:N" in text


@pytest.mark.parametrize(("by", "said"), [("foot", "foot 1"), ("train:12", "train 12")])
def test_a_number_is_part_of_the_choice_that_reads_it(visit, by, said):
    assert visit("Nuuk", "Ada", "--by", by).output.endswith(f" {said}\n")


@pytest.mark.parametrize("by", ["foot:2", "train:N", "train:0", "train:", "train:-1", "boat"])
def test_what_is_no_choice_is_a_usage_error(visit, by):
    ended = visit("Nuuk", "Ada", "--by", by)
    assert ended.exit_code == 2
    assert f"'{by}' is not one of 'foot', 'train', 'train:N'" in " ".join(ended.output.split())
