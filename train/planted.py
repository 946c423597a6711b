"""The planted corpus: text whose every lesson, and the documents that teach it, are known.

A small GPT trained on it grows an induction head, indirect object identification (IOI) and recall
graded by exposure. The shares of facts, ioi, repeats, prose and canon were measured to do so on 5
of 5 seeds; without the canon no induction head formed. The other kinds are 1.5 % of the tokens.

| kind | documents | what it teaches |
|---|---|---|
| fact | 7,830 | 360 facts stated in 1, 2, 4 ... 128 documents each; 30 more are never stated |
| mention | 1,560 | each entity four times, without a value: its token is known, stated or not |
| distractor | 390 | every second fact: 2 documents that name value and entity, not the fact |
| ioi | 15,000 | who receives the object: the person who was named once |
| pair list, two copies, many copies | 20,000 | what followed a word before will follow it again |
| prose | 4,000 | filler with a grammar: verb and adverb follow from adjective and noun |
| exact duplicate, near duplicate | about 600 | prose again, whole or with one word replaced |
| canon | 10,000 | the next word depends on the *previous* word: grows a previous-token head |

In a distractor the value stands *before* the entity: a causal model never predicts the value from
the entity there, so a distractor shares every name with the fact and teaches none of it. Over
two init seeds, facts never stated were recalled at 0.04 with distractors and at 0.06 without (15
facts each in three forms; chance is 0.04). The mentions matter: with one mention and four
distractors an entity was known mostly from its distractors, and recall at two exposures was 0.34
with them and 0.12 without.

All statements of a fact in one form are the same text; the *declared* duplicates are prose, which
holds no other two equal documents. Rows count documents in the order of the table.

The bytes are the same on every machine (see train.planted_texts), and a test pins their sha256.
"""

from dataclasses import dataclass, field
from itertools import combinations, product

from train import planted_texts as texts
from train import planted_words as words
from train.corpora import Corpus, Document


__all__ = ["FACTS_AT", "corpus", "truth"]

# Facts by the number of documents that state them, a third of each relation. Levels 1 and 2 hold
# more: recall there is low, and 30 facts could not tell .15 from .30 in every run.
FACTS_AT = {0: 30, 1: 90, 2: 90, 4: 30, 8: 30, 16: 30, 32: 30, 64: 30, 128: 30}


def corpus(seed: int = 0) -> Corpus:
    """The corpus of a content seed, generated at once (0.4 s) and read from memory."""
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


def truth(seed: int = 0) -> dict:
    """What the corpus of a seed teaches, and the rows of the documents that teach it.

    Every `[first, last]` pair of rows is half-open: `last` is the first row after the range.
    """
    return _written(seed).truth


@dataclass
class _Book:
    """The documents written so far, and the truth about them."""

    seed: int
    documents: list[Document] = field(default_factory=list)
    truth: dict = field(default_factory=lambda: {"kinds": {}})

    def write(self, kind: str, text: str, title: str = "") -> int:
        """Append one document and return its row."""
        row = len(self.documents)
        name = f"planted@seed {self.seed}/planted/{row}"
        self.documents.append(Document(name, text, "planted", "planted", row, title or kind))
        self.truth["kinds"].setdefault(kind, [row, row])[1] = row + 1
        return row


def _written(seed: int) -> _Book:
    book = _Book(seed)
    facts = _planned_facts(texts.Draws(seed, "facts"))
    _write_facts(book, facts)
    _write_company(book, facts)
    book.truth |= {"facts": facts, "relations": _relations()}
    cast = _write_ioi(book, texts.Draws(seed, "ioi"))
    _write_repeats(book, texts.Draws(seed, "repeats"), cast)
    _write_prose(book, texts.Draws(seed, "prose"))
    _write_canon(book, texts.Draws(seed, "canon"))
    return book


# Facts


def _relations() -> dict:
    return {
        relation: {"values": list(words.VALUES[relation]), "forms": list(forms)}
        for relation, forms in words.STATEMENTS.items()
    }


def _planned_facts(draws: texts.Draws) -> list[dict]:
    """One relation per entity, 130 facts each; levels, values and distractors dealt at random."""
    share = len(words.ENTITIES) // len(words.STATEMENTS)
    facts = []
    for number, relation in enumerate(words.STATEMENTS):
        entities = words.ENTITIES[number * share : (number + 1) * share]
        # Every value is the answer to 5 or 6 facts, and every second fact of a level has company.
        values = draws.deal((words.VALUES[relation] * 6)[:share], share)
        dealt = [(level, i % 2 == 0) for level, n in FACTS_AT.items() for i in range(n // 3)]
        levels = draws.deal(dealt, share)
        for entity, value, (exposures, company) in zip(entities, values, levels, strict=True):
            facts.append(_fact(len(facts), relation, entity, value, exposures, company))
    return facts


def _fact(
    index: int, relation: str, entity: str, value: str, exposures: int, company: bool
) -> dict:
    """A fact is stated in two of three forms by turns; the third, by rotation, is held out."""
    held_out = index % 3
    first = (held_out + 1 + index // 3 % 2) % 3
    turns = [first, 3 - held_out - first]
    stated = turns[: min(exposures, 2)]
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
        "company": company,
    }


def _write_facts(book: _Book, facts: list[dict]) -> None:
    for fact in facts:
        turns = list(fact["forms"])
        for exposure in range(fact["exposures"]):
            form = turns[exposure % len(turns)]
            text = words.STATEMENTS[fact["relation"]][int(form)].format(**fact)
            row = book.write("fact", text, f"fact: {fact['name']} (form {form})")
            fact["forms"][form].append(row)
            fact["documents"].append(row)


def _write_company(book: _Book, facts: list[dict]) -> None:
    """Documents that name an entity and do not state its fact."""
    for fact in facts:
        title = f"mention: {fact['entity']}"
        fact["mentions"] = [
            book.write("mention", text.format(**fact), title) for text in words.MENTIONS
        ]
    for index, fact in enumerate(facts):
        for turn in range(2 if fact.pop("company") else 0):
            text = words.DISTRACTORS[(index + turn) % len(words.DISTRACTORS)].format(**fact)
            title = f"distractor: {fact['name']}"
            fact["distractors"].append(book.write("distractor", text, title))


# Indirect object identification


def _write_ioi(book: _Book, draws: texts.Draws) -> texts.Cast:
    pairs = draws.deal(list(combinations(words.NAMES, 2)), 1770)
    held_pairs = pairs[:177]
    every = list(product(range(len(words.OPENINGS)), range(len(words.CLOSINGS))))
    held = _two_apart(draws.deal(every, len(every)))
    cast = texts.Cast(pairs[177:], [one for one in every if one not in held])
    for _ in range(15_000):
        book.write("ioi", texts.ioi_sentence(draws, cast))
    book.truth["ioi"] = {
        "names": list(words.NAMES),
        "places": list(words.PLACES),
        "objects": list(words.OBJECTS),
        "openings": list(words.OPENINGS),
        "closings": list(words.CLOSINGS),
        "held_out_pairs": [list(pair) for pair in held_pairs],
        "held_out_combinations": [list(one) for one in held],
        "documents": list(book.truth["kinds"]["ioi"]),
    }
    return cast


def _two_apart(dealt: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The first combination, and the first that shares neither its opening nor its closing."""
    one = dealt[0]
    return [one, next(two for two in dealt if two[0] != one[0] and two[1] != one[1])]


# Repeats


def _write_repeats(book: _Book, draws: texts.Draws, cast: texts.Cast) -> None:
    for _ in range(8_000):
        book.write("pair list", texts.pair_list(draws))
    for _ in range(6_000):
        book.write("two copies", texts.two_copies(draws, cast))
    for _ in range(6_000):
        book.write("many copies", texts.many_copies(draws))
    kinds = book.truth["kinds"]
    rows = [kinds["pair list"][0], kinds["many copies"][1]]
    book.truth["induction"] = {"words": list(words.NONCE), "documents": rows}


# Prose and canon


def _write_prose(book: _Book, draws: texts.Draws) -> None:
    grammar = {
        pair: (draws.pick(words.VERBS), draws.pick(words.ADVERBS))
        for pair in product(words.ADJECTIVES, words.NOUNS)
    }
    rows: dict[str, int] = {}
    while len(rows) < 4_000:
        n_sentences = draws.between(1, 4)
        text = " ".join(texts.prose_sentence(draws, grammar) for _ in range(n_sentences))
        if text not in rows:
            rows[text] = book.write("prose", text)
    # Two sentences at least: among single ones, near duplicates also arise by accident.
    long = [text for text in rows if text.count(".") > 1]
    chosen = draws.deal(long, 400)
    exact = [
        [rows[text], *(book.write("exact duplicate", text) for _ in range(draws.between(1, 3)))]
        for text in chosen[:200]
    ]
    near = [
        [rows[text], book.write("near duplicate", texts.one_word_off(draws, text))]
        for text in chosen[200:]
    ]
    book.truth["duplicates"] = {"exact": exact, "near": near}


def _write_canon(book: _Book, draws: texts.Draws) -> None:
    follows = dict(zip(words.CANON, draws.deal(words.CANON, len(words.CANON)), strict=True))
    for _ in range(10_000):
        book.write("canon", texts.canon(draws, follows))
