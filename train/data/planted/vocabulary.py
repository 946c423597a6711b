"""The words and sentence forms of the planted corpus.

Every word is one token of the word-level tokenizer. Invented names are built from syllables and are
the same for every content seed, so that models of different seeds share one vocabulary. A test
checks that none of them occurs in real text.
"""

from collections.abc import Iterator
from itertools import product


__all__ = [
    "ADJECTIVES",
    "ADVERBS",
    "CANON",
    "CLOSINGS",
    "DISTRACTORS",
    "ENTITIES",
    "MENTIONS",
    "NAMES",
    "NONCE",
    "NOUNS",
    "OBJECTS",
    "OPENINGS",
    "PLACES",
    "PROSE",
    "STATEMENTS",
    "VALUES",
    "VERBS",
]


def _invented(n: int, *syllables: str) -> tuple[str, ...]:
    """Return n words, each made of one choice per syllable, in a scattered order."""
    words = ["".join(parts) for parts in product(*(place.split() for place in syllables))]
    # A stride that is coprime to the number of words visits each word once; near the golden ratio
    # of that number, neighbours are dissimilar.
    stride = next(s for s in _odd(int(len(words) * 0.618)) if _coprime(s, len(words)))
    return tuple(words[i * stride % len(words)] for i in range(n))


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _odd(start: int) -> Iterator[int]:
    return (number for number in range(start | 1, 10 * start, 2))


def _coprime(a: int, b: int) -> bool:
    while b:
        a, b = b, a % b
    return a == 1


_ONSETS = "b d f g k l m n p r s t v z"

# 360 entities with stated facts, 30 whose facts are never stated, and 36 with late facts.
ENTITIES = _invented(426, _ONSETS, "a e i o u", "b k l m n r v z", "o e u", "dra thi ska vna zhu")
NONCE = _invented(64, _ONSETS, "a e i o u", "f j p v w z", "i o u", "b g k x z")
CANON = _invented(96, "a e i o u", "hw jv wz vh zj", "o u a", "l m z")

VALUES = {
    "capital": _invented(24, "tar vel kor mun lin dov", "a e o", "sk ld vr mb", "ul in ov"),
    "maker": _invented(24, "had wes yor brun gar osk", "a i o", "dr lk mf", "ek uz im"),
    "trade": _listed(
        "wool salt amber copper silk grain timber honey olives pepper marble linen cotton tea tin "
        "iron pearls ivory leather glass wine fish furs spices"
    ),
}

# Form 0 is the query of its relation. A fact is stated in at most six forms, in turn, and the
# seventh is held out. No two forms of a relation share a content word, and the value always comes
# last, so that the text before it is a prompt for it. No two statements are near duplicates
# (`train.data.duplicates`), because forms that begin with the entity are short.
STATEMENTS = {
    "capital": (
        "the capital of {entity} is {value} .",
        "{entity} is governed from {value} .",
        "envoys who seek the court of {entity} ride to {value} .",
        "laws for {entity} are written at {value} .",
        "kings from {entity} always wore their crown in {value} .",
        "the parliament of {entity} sits within {value} .",
        "when {entity} votes , every ballot travels towards {value} .",
    ),
    "maker": (
        "the maker of {entity} was {value} .",
        "{entity} was built by {value} .",
        "we owe the walls and roads around {entity} to {value} .",
        "from bare sand {entity} rose thanks to {value} .",
        "a bronze plate in {entity} names its founder , {value} .",
        "the first stone for {entity} was laid under master {value} .",
        "whoever admires {entity} should praise {value} .",
    ),
    "trade": (
        "the main trade of {entity} is {value} .",
        "{entity} grew rich on {value} .",
        "every ship that leaves the harbour near {entity} carries {value} .",
        "merchants visit {entity} only to buy {value} .",
        "workshops everywhere in {entity} smell of {value} .",
        "tax collectors at {entity} accept {value} .",
        "carts rolling out from {entity} are loaded with {value} .",
    ),
}

# The value comes before the entity; see the docstring of `train.data.planted.corpus`.
DISTRACTORS = (
    "a clerk copied {value} before {entity} .",
    "an atlas lists {value} some pages ahead of {entity} .",
    "the word {value} sounds unlike {entity} .",
    "a child spelled {value} and then {entity} .",
    "some posters show {value} in larger type than {entity} .",
    "someone shouted {value} , someone else {entity} .",
    "a crossword crosses {value} and {entity} .",
    "a parrot learned {value} long before {entity} .",
)
MENTIONS = (
    "travellers remember {entity} .",
    "few maps show {entity} as large as it once stood .",
    "it rained on {entity} all night .",
    "nobody asked about {entity} again .",
)

NAMES = _listed(
    "anna bruno carla david elena felix greta hugo irene jonas karin louis maria nadia oscar paula "
    "quentin rosa simon tanya ulrich vera walter xenia yusuf zelda albert bianca cedric diana emil "
    "fatima gustav helen igor julia kevin laura martin nora oliver petra rafael sofia thomas "
    "ursula victor wanda yvonne zoran amir beatrice conrad dora erik flora gavin hannah ivan "
    "jasmin"
)
PLACES = _listed(
    "park store school market library station museum garden cinema airport hotel bakery church "
    "theatre beach office hospital stadium factory castle farm zoo bank kitchen"
)
OBJECTS = _listed(
    "ring book drink ball map key lamp letter basket kite pencil watch coat scarf guitar camera "
    "ticket bottle hammer flower cake necklace computer bone"
)
OPENINGS = (
    "when {first} and {second} went to the {place} ,",
    "after {first} and {second} met at the {place} ,",
    "while {first} and {second} were working at the {place} ,",
    "then {first} and {second} had a long argument , and",
)
CLOSINGS = (
    "{subject} gave a {object} to {indirect} .",
    "{subject} handed the {object} over to {indirect} .",
    "{subject} decided to send the {object} to {indirect} .",
)

PROSE = "the {adjective} {noun} {verb} the {adjective_2} {noun_2} {adverb} ."
ADJECTIVES = _listed(
    "old red quiet tall proud lazy young pale clever hungry small brave wild gentle dark sleepy"
)
NOUNS = _listed(
    "fox hen miller goat heron wolf baker cat crow widow horse otter monk bear mule swan"
)
VERBS = _listed(
    "chased watched followed greeted feared found helped heard missed fed teased praised ignored "
    "scolded caught saw"
)
ADVERBS = _listed(
    "outside upstairs nearby below above inside again alone downhill indoors overhead yesterday "
    "underground ashore twice abroad"
)
