"""The planted corpus: generated text for which we know what each document teaches.

A small GPT trained on it forms an induction head and learns indirect object identification (IOI)
and facts, which it recalls the better the more documents state them. Sizes and shares were chosen
on content seeds 0 and 3, and `benchmarks/planted_acceptance.py` tests them on others. Without the
canon no induction head forms.

| kind | documents | what it teaches |
|---|---|---|
| fact | 7,830 | 360 facts, each stated in 1, 2, 4 ... or 128 documents; 30 more are never stated |
| fact, late | 576 | 36 facts, each stated in 16 documents that are read in the last third only |
| mention | 1,704 | four per entity, without a value: its token is known even if no fact is stated |
| distractor | 984 | 8 (or 2) for every second fact: they name value and entity, but not the fact |
| ioi | 8,000 | who receives the object: the person who was named once |
| pair list, two copies, many copies | 5,400 | what followed a word before will follow it again |
| prose | 700 | filler with a grammar: adjective and noun determine verb and adverb |
| exact duplicate, near duplicate | about 600 | prose again, whole or with one word replaced |
| canon | 3,200 | the next word depends on the *previous* word: forms a previous-token head |

A fact is stated in up to six of the seven forms of its relation, in turn; the seventh is held out.
All statements of a fact in one form are the same text. Of the facts with distractors, those stated
8 times or more have 8 and the others 2.

In a distractor the value comes *before* the entity, so a causal model never predicts the value from
the entity there: the distractor shares both names with the fact but teaches nothing of it. Facts
that are never stated are recalled no better with distractors than without.

Repeats are drawn from the whole vocabulary, so that the induction head copies any token. No repeat
contains an entity together with its value, or a held-out pair of names. Apart from the declared
duplicates, no two prose documents are equal. Rows count documents in the order of generation.

The bytes are the same on every machine (see `train.data.planted.documents`), and a test pins their
sha256.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product

from train.data.documents import Corpus, Document
from train.data.planted import documents, vocabulary


__all__ = ["FACTS_AT", "planted_corpus", "planted_truth"]

# Number of facts by the number of documents that state them; each relation has a third of them.
# Levels 1 and 2 have more facts, because recall is low there and 30 facts could not distinguish .15
# from .30 in every run.
FACTS_AT = {0: 30, 1: 90, 2: 90, 4: 30, 8: 30, 16: 30, 32: 30, 64: 30, 128: 30}
# Number of late facts, a third of them for each relation, and of documents that state each.
N_LATE, LATE_AT = 36, 16
# Maximal number of forms in which a fact is stated; the remaining one is held out.
STATED = 6
# Every second fact has distractors: 8 if at least 8 documents state it (also if late), else 2.
EVALUATED_FROM, DISTRACTORS, FEW_DISTRACTORS = 8, 8, 2
# Numbers of documents of the other kinds. With 6,500 IOI documents one of eleven runs did not learn
# IOI in 1,900 steps, and others learned it hundreds of steps later.
N_IOI, N_PAIR_LISTS, N_TWO_COPIES, N_MANY_COPIES = 8_000, 1_800, 2_400, 1_200
N_PROSE, N_CANON = 700, 3_200
# NONCE_SHARE: percentage of repeats drawn from nonce words alone. With these the model begins to
# copy, with the others it generalises. *_AT_ONCE: how many entities and names the words of one of
# the others are drawn from; with all of them at once, facts were learned at half the speed.
NONCE_SHARE, ENTITIES_AT_ONCE, NAMES_AT_ONCE = 30, 120, 20


def planted_corpus(seed: int = 0) -> Corpus:
    """Generate the corpus of a content seed, in memory; this takes 0.4 s."""
    book = _written(seed)
    return Corpus(
        name="planted",
        source="planted",
        revision=f"seed {seed}",
        read=lambda: iter(book.documents),
        n_documents=len(book.documents),
        n_bytes=sum(len(document.text) for document in book.documents),
        tokenizer="word",
        layout="packed",
        truth=lambda: book.truth,
    )


def planted_truth(seed: int = 0) -> dict:
    """Return the truth table of a seed: what the corpus teaches, and which rows teach it.

    A `[first, last]` pair of rows is a half-open range: `last` is the first row after it.
    """
    return _written(seed).truth


@dataclass
class _Book:
    """The documents generated so far, and their truth table."""

    seed: int
    documents: list[Document] = field(default_factory=list)
    truth: dict = field(default_factory=lambda: {"kinds": {}})

    def write(self, kind: str, text: str, title: str = "", *, late: bool = False) -> int:
        """Append one document and return its row."""
        row = len(self.documents)
        name = f"planted@seed {self.seed}/planted/{row}"
        about = (title or kind, "", late)
        self.documents.append(Document(name, text, "planted", "planted", row, *about))
        self.truth["kinds"].setdefault(kind, [row, row])[1] = row + 1
        return row


def _written(seed: int) -> _Book:
    book = _Book(seed)
    facts = _planned_facts(documents.Draws(seed, "facts"))
    _write_facts(book, facts)
    _write_company(book, facts)
    book.truth |= {"facts": facts, "relations": _relations()}
    cast = _write_ioi(book, documents.Draws(seed, "ioi"))
    _write_repeats(book, documents.Draws(seed, "repeats"), cast)
    _write_prose(book, documents.Draws(seed, "prose"))
    _write_canon(book, documents.Draws(seed, "canon"))
    return book


# Facts


def _relations() -> dict:
    return {
        relation: {"values": list(vocabulary.VALUES[relation]), "forms": list(forms)}
        for relation, forms in vocabulary.STATEMENTS.items()
    }


def _planned_facts(draws: documents.Draws) -> list[dict]:
    """Plan 142 facts per relation, one per entity; levels, values and distractors are random."""
    share = len(vocabulary.ENTITIES) // len(vocabulary.STATEMENTS)
    facts = []
    for number, relation in enumerate(vocabulary.STATEMENTS):
        entities = vocabulary.ENTITIES[number * share : (number + 1) * share]
        # Every value is the answer to 5 or 6 facts; every second fact of a level has distractors.
        values = draws.deal((vocabulary.VALUES[relation] * 6)[:share], share)
        dealt = [
            (level, late, i % 2 == 0)
            for level, late, n in _levels()
            for i in range(n // len(vocabulary.STATEMENTS))
        ]
        levels = draws.deal(dealt, share)
        for entity, value, (exposures, late, company) in zip(entities, values, levels, strict=True):
            fact = _fact(len(facts), relation, entity, value, exposures)
            often = exposures >= EVALUATED_FROM
            n_distractors = (DISTRACTORS if often else FEW_DISTRACTORS) if company else 0
            facts.append({**fact, "late": late, "n_distractors": n_distractors})
    return facts


def _levels() -> list[tuple[int, bool, int]]:
    """Return tuples of number of exposures, whether late, and number of facts."""
    return [*((level, False, n) for level, n in FACTS_AT.items()), (LATE_AT, True, N_LATE)]


def _fact(index: int, relation: str, entity: str, value: str, exposures: int) -> dict:
    """Return a fact of the truth table that is stated in turn in at most six of seven forms.

    The remaining form is held out. For every third fact it is form 0, in which the fact is
    queried; for the other facts the other forms take turns.
    """
    held_out = 0 if index % 3 == 0 else 1 + index // 3 % STATED
    others = [form for form in range(STATED + 1) if form != held_out]
    first = index // 3 % STATED
    stated = (others[first:] + others[:first])[: min(exposures, STATED)]
    return {
        "name": f"{relation} of {entity}",
        "entity": entity,
        "relation": relation,
        "value": value,
        "exposures": exposures,
        "forms": {str(form): [] for form in stated},
        "held_out_form": held_out,
        "paraphrase_only": bool(stated) and 0 not in stated,
        "documents": [],
        "distractors": [],
    }


def _write_facts(book: _Book, facts: list[dict]) -> None:
    for fact in facts:
        turns = list(fact["forms"])
        for exposure in range(fact["exposures"]):
            form = turns[exposure % len(turns)]
            text = vocabulary.STATEMENTS[fact["relation"]][int(form)].format(**fact)
            title = f"fact: {fact['name']} (form {form})"
            row = book.write("fact", text, title, late=fact["late"])
            fact["forms"][form].append(row)
            fact["documents"].append(row)


def _write_company(book: _Book, facts: list[dict]) -> None:
    """Write the mentions and distractors, which name an entity and do not state its fact."""
    for fact in facts:
        title = f"mention: {fact['entity']}"
        fact["mentions"] = [
            book.write("mention", text.format(**fact), title) for text in vocabulary.MENTIONS
        ]
    for index, fact in enumerate(facts):
        for turn in range(fact.pop("n_distractors")):
            text = vocabulary.DISTRACTORS[(index + turn) % len(vocabulary.DISTRACTORS)].format(
                **fact
            )
            title = f"distractor: {fact['name']}"
            fact["distractors"].append(book.write("distractor", text, title))


# Indirect object identification


def _write_ioi(book: _Book, draws: documents.Draws) -> documents.Cast:
    pairs = draws.deal(list(combinations(vocabulary.NAMES, 2)), 1770)
    held_pairs = pairs[:177]
    every = list(product(range(len(vocabulary.OPENINGS)), range(len(vocabulary.CLOSINGS))))
    held = _two_apart(draws.deal(every, len(every)))
    cast = documents.Cast(pairs[177:], [one for one in every if one not in held])
    for _ in range(N_IOI):
        book.write("ioi", documents.ioi_sentence(draws, cast))
    book.truth["ioi"] = {
        "names": list(vocabulary.NAMES),
        "places": list(vocabulary.PLACES),
        "objects": list(vocabulary.OBJECTS),
        "openings": list(vocabulary.OPENINGS),
        "closings": list(vocabulary.CLOSINGS),
        "held_out_pairs": [list(pair) for pair in held_pairs],
        "held_out_combinations": [list(one) for one in held],
        "documents": list(book.truth["kinds"]["ioi"]),
    }
    return cast


def _two_apart(dealt: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the first combination, and the first that shares neither opening nor closing."""
    one = dealt[0]
    return [one, next(two for two in dealt if two[0] != one[0] and two[1] != one[1])]


# Repeats


def _write_repeats(book: _Book, draws: documents.Draws, cast: documents.Cast) -> None:
    """Write repeats of words from the whole vocabulary, so that any token gets copied."""
    forbidden = _forbidden(book)
    written = {word for document in book.documents for word in document.text.split()}
    filler = (
        vocabulary.ADJECTIVES,
        vocabulary.NOUNS,
        vocabulary.VERBS,
        vocabulary.ADVERBS,
        vocabulary.CANON,
        vocabulary.NONCE,
    )
    listed = sorted(written.union(*filler))
    rest = sorted({*listed} - {*vocabulary.ENTITIES} - {*vocabulary.NAMES})

    def pool() -> Sequence[str]:
        if draws.percent(NONCE_SHARE):
            return vocabulary.NONCE
        return (
            rest
            + draws.deal(vocabulary.ENTITIES, ENTITIES_AT_ONCE)
            + draws.deal(vocabulary.NAMES, NAMES_AT_ONCE)
        )

    def write(kind: str, n: int, drawn: Callable[[], str]) -> None:
        for _ in range(n):
            text = drawn()
            while not _apart(text, forbidden):
                text = drawn()
            book.write(kind, text)

    write("pair list", N_PAIR_LISTS, lambda: documents.pair_list(draws, pool()))
    write("two copies", N_TWO_COPIES, lambda: documents.two_copies(draws, pool(), cast))
    write("many copies", N_MANY_COPIES, lambda: documents.many_copies(draws, pool()))
    kinds = book.truth["kinds"]
    rows = [kinds["pair list"][0], kinds["many copies"][1]]
    book.truth["induction"] = {"words": listed, "documents": rows}
    book.truth["nonce"] = list(vocabulary.NONCE)


def _forbidden(book: _Book) -> dict[str, set[str]]:
    """Return for each word the words that may not occur in the same repeat.

    These are the value of an entity, because the repeat would teach the fact, and the other name
    of a held-out pair.
    """
    found: dict[str, set[str]] = {}
    for fact in book.truth["facts"]:
        found.setdefault(fact["entity"], set()).add(fact["value"])
    for one, other in book.truth["ioi"]["held_out_pairs"]:
        found.setdefault(one, set()).add(other)
    return found


def _apart(text: str, forbidden: Mapping[str, set[str]]) -> bool:
    there = set(text.split())
    return not any(forbidden.get(word, set()) & there for word in there)


# Prose and canon


def _write_prose(book: _Book, draws: documents.Draws) -> None:
    grammar = {
        pair: (draws.pick(vocabulary.VERBS), draws.pick(vocabulary.ADVERBS))
        for pair in product(vocabulary.ADJECTIVES, vocabulary.NOUNS)
    }
    rows: dict[str, int] = {}
    while len(rows) < N_PROSE:
        n_sentences = draws.between(1, 4)
        text = " ".join(documents.prose_sentence(draws, grammar) for _ in range(n_sentences))
        if text not in rows:
            rows[text] = book.write("prose", text)
    # At least two sentences, because single sentences are sometimes near duplicates by accident.
    long = [text for text in rows if text.count(".") > 1]
    chosen = draws.deal(long, 400)
    exact = [
        [rows[text], *(book.write("exact duplicate", text) for _ in range(draws.between(1, 3)))]
        for text in chosen[:200]
    ]
    near = [
        [rows[text], book.write("near duplicate", documents.one_word_off(draws, text))]
        for text in chosen[200:]
    ]
    book.truth["duplicates"] = {"exact": exact, "near": near}


def _write_canon(book: _Book, draws: documents.Draws) -> None:
    follows = dict(
        zip(vocabulary.CANON, draws.deal(vocabulary.CANON, len(vocabulary.CANON)), strict=True)
    )
    for _ in range(N_CANON):
        book.write("canon", documents.canon(draws, follows))
