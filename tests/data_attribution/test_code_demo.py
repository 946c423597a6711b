"""The demo on code chooses what it shows by counts, and its page says what was found, null or not.

The whole command runs on sixty modules of the running Python, half of them held out, with a model
that learns nothing in twenty steps: its page must say so.
"""

import html
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data_attribution import demo, token_index
from data_attribution.counterfactuals import Change
from data_attribution.demo import CodeDemo, Demo, Formation, KnownLine, code_demo, stages
from data_attribution.demo.code_demo import HeadEffects, formation_window
from data_attribution.demo.code_lines import (
    groups_of,
    known_lines,
    largest_groups,
    line_behaviour,
    line_foils,
    line_readings,
)
from data_attribution.report import code_page, copying_sections, demo_page
from interp import behaviours
from interp.behaviours import Baselines, Behaviour, Check
from interp.patching import Effects
from interp.training_dynamics import Trajectory, TrajectoryPoint
from train import numerics, recipes, runs, trainer
from train.data import Corpus, Document, build_store, open_corpus
from train.runs import Run
from train.statistics import wilson


STEPS = 20
RECIPE = replace(
    recipes.CODE_SMALL,
    name="code-tiny",
    model=replace(
        recipes.CODE_SMALL.model, n_layers=2, d_model=32, d_head=16, d_mlp=128, n_ctx=160
    ),
    batch_size=24,
    checkpoint_every=10,
    optimizer_every=10,
    eval_every=0,
)


def few_modules(name: str):
    return replace(open_corpus(name, limit=60), held_out=0.5)


# --- the rules -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "window"),
    [
        ([0.01, 0.05, 0.15, 0.25, 0.3], (1, 3)),
        ([0.01, 0.05, 0.25, 0.05, 0.28, 0.3], (3, 4)),  # for good, not at the first rise
        ([0.01, 0.3], (0, 1)),
        ([0.01, 0.01, 0.09], None),  # below what is called a head
        ([0.2, 0.25, 0.3], None),  # never below a third
    ],
)
def test_a_head_forms_between_a_third_and_two_thirds_of_its_last_score(scores, window):
    assert formation_window(range(len(scores)), scores) == window


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """The index of 24 documents of 40 lines from a pool of 90, made of ten words; half held out."""
    draw = np.random.default_rng(0)
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]
    pool = [" ".join(draw.choice(words, draw.integers(4, 16))) for _ in range(90)]
    texts = ["\n    ".join(draw.choice(pool, 40)) + "\n" for _ in range(24)]
    documents = [
        Document(id=f"d/{row}", text=text, source="d", shard=f"{row}.py", row=row)
        for row, text in enumerate(texts)
    ]
    corpus = Corpus("alike", "tests", "1", lambda: iter(documents), n_documents=24)
    store = build_store(
        corpus, out=tmp_path_factory.mktemp("alike") / "store", tokenizer="bpe", vocab_size=280,
        held_out=0.5, threads=1,
    )  # fmt: skip
    return token_index.build(store)


def test_known_lines_are_those_that_a_reading_of_all_files_finds(alike):
    store = alike.store
    rows = [
        "".join(map(chr, store.tokens[start : start + length]))
        for start, length in zip(store.starts, store.lengths, strict=True)
    ]
    first = int(np.searchsorted(store.starts, store.train_tokens))
    read = set(range(first)) - {2}
    ends = re.compile(
        "[" + "".join(re.escape(chr(k)) for k, p in enumerate(store.tokenizer.pieces) if b"\n" in p)
        + "]"
    )  # fmt: skip

    def text(tokens: str) -> str:
        return store.tokenizer.decode([ord(one) for one in tokens])

    expected, refusals = (
        {},
        dict.fromkeys(("holders", "unread", "elsewhere", "in the prompt", "too near the start"), 0),
    )
    for document in range(first, store.n_documents):
        row = rows[document]
        for before, end in pairwise(ends.finditer(row)):
            known = row[before.end() : end.start()]
            if not 16 <= len(known) <= 64:
                continue
            holders = tuple(one for one in range(first) if known in rows[one])
            half, rest = known[: len(known) // 2], known[len(known) // 2 :]
            context = (row[: before.end()] + half)[-96:]
            often = sum(len(re.findall(f"(?={re.escape(half)})", one)) for one in rows[:first])
            places = sum(one.count(known) for one in rows[:first])
            if not 1 <= len(holders) <= 3:
                refusals["holders"] += 1
            elif not read.issuperset(holders):
                refusals["unread"] += 1
            elif 2 * places <= often:
                refusals["elsewhere"] += 1
            elif text(rest) in text(context):
                refusals["in the prompt"] += 1
            elif len(context) < 96:
                refusals["too near the start"] += 1
            else:
                expected.setdefault(known, (document, context, rest, holders))
    found = {
        "".join(map(chr, one.tokens)): (
            one.document,
            "".join(map(chr, one.context)),
            "".join(map(chr, one.continuation)),
            one.holders,
        )
        for one in known_lines(alike, read)
    }
    assert found == expected
    assert len(expected) > 5
    assert min(refusals.values()) > 0, refusals  # every part of the rule decides about some line


def test_a_foil_is_the_line_that_is_hardest_to_tell_apart_by_the_last_token(alike):
    store = alike.store
    lines = known_lines(alike, set(range(24)))
    training = store.tokens[: store.train_tokens]
    followed = Counter(pairwise(training.tolist()))
    foils = line_foils(alike, lines)
    choices = []
    for one in lines:
        fitting = [
            other
            for other in lines
            if other.half == one.half
            and other.tokens[: one.half] != one.tokens[: one.half]
            and other.continuation[0] != one.continuation[0]
            and {*other.holders}.isdisjoint(one.holders)
        ]
        assert (one in foils) == bool(fitting)
        if fitting:
            often = {other: followed[one.context[-1], other.continuation[0]] for other in fitting}
            assert foils[one] in often
            assert often[foils[one]] == max(often.values())
            choices.append(len({*often.values()}))
    assert max(choices) > 1  # the rule decides about some line
    assert 0 < len(foils) < len(lines)


def test_the_behaviour_is_of_the_lines_and_only_their_first_halves_are_exchanged(alike):
    store, lines = alike.store, known_lines(alike, set(range(24)))
    foils = line_foils(alike, lines)
    shown = [*foils]
    found = line_behaviour(shown, foils, store)
    assert found.name == "known-lines"
    assert found.clean.shape == (len(shown), 1 + KnownLine.SHOWN)
    for row, one in enumerate(shown):
        other = foils[one]
        clean, corrupt = found.clean[row].tolist(), found.corrupt[row].tolist()
        assert clean == [store.eot, *one.context]
        assert corrupt[: -one.half] == clean[: -one.half]
        assert corrupt[-one.half :] == [*other.tokens[: other.half]]
        assert found.answer[row] == one.tokens[one.half]
        assert found.foil[row] == other.tokens[other.half]


def line(*holders: int, number: int = 0, document: int = 99) -> KnownLine:
    return KnownLine(document, (1, 2), 1, (3, number), holders, (0,))


def test_the_largest_groups_share_no_file_and_the_first_of_equal_ones_is_taken():
    lines = [line(7), line(1), line(1, 2), line(1), line(3), line(1), line(2, 4), line(2, 4)]
    groups = largest_groups(lines, 3)
    assert [(one[0].holders, len(one)) for one in groups] == [((1,), 3), ((2, 4), 2), ((7,), 1)]
    assert [one[0].holders for one in largest_groups(lines, 9)] == [(1,), (2, 4), (7,), (3,)]


def test_lines_that_share_a_file_are_one_group_also_through_a_third_line():
    lines = [
        line(1, document=90), line(2, document=91), line(3, document=92),
        line(4, document=90),  # the held-out file of the first
        line(2, 3, document=93),  # joins the second and the third
        line(5, document=94),
    ]  # fmt: skip
    assert groups_of(lines) == (0, 1, 1, 0, 1, 2)


def test_a_step_that_read_a_line_in_several_places_counts_once():
    steps = {10: [3, 5], 20: [5, 3], 30: [3]}
    run = fake(Run, steps_reading_tokens=lambda start, stop: np.array(steps[start]))
    known = KnownLine(99, (1, 2), 1, (3, 4), (7,), (10, 20, 30))
    assert line_readings(run, known) == 2


def test_lines_of_few_files_tell_as_much_as_so_many_groups():
    """Each file is known or not: its 14 lines are right in .95 or in .05. Three in four are known.

    An interval over 56 lines of four files misses the truth in most draws; over groups it holds.
    """
    lines = [line(k, document=90 + k, number=j) for k in range(4) for j in range(14)]
    n_groups = max(groups_of(lines)) + 1
    draw = np.random.default_rng(0)
    of_files = draw.choice([0.95, 0.05], (1000, 4), p=[0.75, 0.25])
    right = draw.binomial(14, of_files).sum(axis=1) / len(lines)

    def covered(n: int) -> float:
        ends = np.array([wilson(one, n) for one in right])
        return float(((ends[:, 0] <= 0.725) & (ends[:, 1] >= 0.725)).mean())

    assert covered(len(lines)) < 0.6
    assert covered(n_groups) > 0.93


def change(shift: float, controls: int = 3, name: str = "known lines") -> Change:
    """Thirty prompts that fall by `shift` without the documents, and hardly in the controls."""
    before = np.linspace(-2.0, -1.0, 30)
    drawn = np.array([before + 0.001 * (number - 1) for number in range(controls)])
    after = before + shift + 0.001 * np.sin(np.arange(30))  # hardly the same on all prompts
    return Change(name, "nats a token", True, before, after, drawn)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (change(-0.5), "does not hold 0: without these files it is less probable"),
        (change(0.5), "does not hold 0: without these files it is more probable"),
        (change(0.0), "holds 0: no effect was shown"),
        (change(-0.5, controls=1), "does not hold 0; how far chance alone moves the number is "),
    ],
)
def test_an_effect_is_worded_by_its_interval(found, said):
    text = code_page.effect_sentence(found)
    assert said in text
    assert re.match(
        r"[+-]\d\.\d{3} \[[+-]\d\.\d{3}, [+-]\d\.\d{3}\] nats a token on 30 prompts", text
    )


# --- the page of a model that learned ------------------------------------------------------------


def fake(cls, **values):
    """An instance with some of its attributes."""
    made = object.__new__(cls)
    vars(made).update(values)
    return made


def demo_of(scores: list[float], accuracy: float = 0.9) -> CodeDemo:
    """A demo with the curve of one head every 100 steps, and effects of two heads."""
    steps = [100 * number for number in range(len(scores))]
    points = [
        TrajectoryPoint(step, 0, name, value, value - 0.01, value + 0.01, 16)
        for step, score in zip(steps, scores, strict=True)
        for name, value in (
            ("induction L2H0", score), ("previous token L1H1", 0.8), ("copying gap", 2 * score)
        )
    ]  # fmt: skip
    trajectory = Trajectory("watched", {}, "run", "full", tuple(points))
    window = formation_window(steps, scores)
    formation = Formation(
        trajectory, 50, "induction L2H0", "previous token L1H1", window, ((1, 9), (0, 4))
    )
    effects = fake(
        Effects, axes=("layer", "head"), places=(), site="head", n_prompts=128,
        values=torch.tensor([[0.1, 0.7]]), low=torch.tensor([[0.0, 0.6]]),
        high=torch.tensor([[0.2, 0.8]]), control=torch.tensor([[0.01, -0.02]]),
        clean=3.0, corrupt=-2.0,
    )  # fmt: skip
    behaviour = fake(
        Behaviour, name="code-copy", clean=torch.tensor([[0, 1]]),
        answer=torch.tensor([2]), foil=torch.tensor([3]),
    )  # fmt: skip
    check = Check(accuracy, 0.6, 5.0, 128, (accuracy - 0.05, accuracy + 0.05))
    copying = HeadEffects(behaviour, check, Baselines(0.5, 0.5, 0.49, 128), effects)
    files = [SimpleNamespace(shard="abc.py"), SimpleNamespace(shard="json/decoder.py")]
    store = SimpleNamespace(
        path="data/stdlib",
        lengths=np.array([500, 9000]),
        manifest={"counts": {"train_documents": 3}},
        document=files.__getitem__,
        tokenizer=SimpleNamespace(decode=lambda ids: " ".join(map(str, ids))),
    )
    run = SimpleNamespace(store=store, steps=steps, path=Path("runs/stdlib"))
    return fake(CodeDemo, run=run, formation=formation, copying=copying)


def test_the_head_that_formed_is_named_with_its_window_and_what_was_read_in_it():
    section = copying_sections.formation_section(demo_of([0.01, 0.05, 0.15, 0.25, 0.3])).body
    assert "L2H0 is the induction head, with a score of 0.30 [0.29, 0.31]" in section
    assert "between steps 100 and 300" in section
    assert "2 of the 3 files were read" in section
    assert "16 sequences of 50 tokens said twice" in section
    assert "<td>json/decoder.py</td><td>9</td><td>9,000</td>" in section
    assert section.index("json/decoder.py") < section.index("abc.py")
    assert "<td>copying gap</td><td>0.02 [0.01, 0.03]</td><td>0.60 [0.59, 0.61]</td>" in section


def test_a_rise_that_was_not_measured_has_no_window_and_no_files():
    section = copying_sections.formation_section(demo_of([0.2, 0.25, 0.3])).body
    assert "the time at which it formed is not known" in section
    assert "files were read" not in section


def test_the_page_of_the_planted_run_shows_the_head_on_real_text_or_how_to_train_it():
    formation = demo_of([0.01, 0.05, 0.15, 0.25, 0.3]).formation
    section = demo_page.real_text_section(fake(Demo, real_text=formation)).body
    assert "L2H0 is the induction head, with a score of 0.30 [0.29, 0.31]" in section
    assert "<svg" in section
    without = demo_page.real_text_section(fake(Demo, real_text=None)).body
    assert "openbook demo-code" in without
    assert "<svg" not in without


def test_a_run_of_another_training_in_its_folder_is_no_formation(monkeypatch, tmp_path):
    (tmp_path / "stdlib").mkdir()
    (tmp_path / "stdlib" / runs.MANIFEST).touch()
    for finished, watches in ((True, ()), (False, ("copies",))):
        log = SimpleNamespace(watches=[SimpleNamespace(reads=one) for one in watches])
        run = SimpleNamespace(finished=finished, watched=log)
        monkeypatch.setattr(runs, "open", lambda path, run=run: run)
        assert demo.finished_formation(tmp_path) is None


def test_heads_are_shown_by_their_effect_beside_the_untrained_model():
    section = copying_sections.copying_section(demo_of([0.3])).body
    first, second = (section.index(f"<td>{name}</td>") for name in ("L0H1", "L0H0"))
    assert first < second
    assert "<td>L0H1</td><td>0.70 [0.60, 0.80]</td><td>-0.02</td>" in section
    assert "in 0.90 [0.85, 0.95], and ranks it first of all tokens in 0.60" in section
    assert "right: &#x27;2&#x27;; wrong: &#x27;3&#x27;" in section


# --- the whole command ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture
def played(openbook, monkeypatch, one_thread_numerics, folder):
    """Run the command with a small recipe, corpus and behaviour; the second run trains nothing."""
    monkeypatch.setattr(code_demo, "open_corpus", few_modules)
    monkeypatch.setattr(recipes, "CODE_SMALL", RECIPE)
    monkeypatch.setattr(code_demo, "N_PROMPTS", 16)
    monkeypatch.setattr(code_demo, "N_SOURCES", 8)
    monkeypatch.setattr(numerics, "choose", lambda **_: one_thread_numerics)

    def play(*arguments):
        return openbook(
            "demo-code", "--out", folder / "page.html", "--data", folder / "data", "--runs",
            folder / "runs", "--steps", STEPS, "--controls", 1, *arguments,
        )  # fmt: skip

    return play


@pytest.mark.integration
@pytest.mark.slow
def test_the_command_goes_from_nothing_to_a_proof_and_opens_it_again(played, folder, monkeypatch):
    ended = played()
    assert ended.code == 0, ended.err
    assert "train 20 steps on the standard library of this Python" in ended.err
    assert "train 40 steps again without a few of its files" in ended.err
    assert f"{STEPS} steps, bit-exact" in ended.out
    page = (folder / "page.html").read_text(encoding="utf-8")
    _check(page, folder)

    run_path = folder / "runs" / f"stdlib-{STEPS}"
    assert demo.finished_formation(folder / "runs") is None
    (folder / "runs" / "stdlib").symlink_to(run_path)
    formation = demo.finished_formation(folder / "runs")
    (folder / "runs" / "stdlib").unlink()
    assert formation == demo.formation_of(runs.open(run_path))

    def refuse(*arguments, **options):
        raise AssertionError("a finished demo trained again")

    monkeypatch.setattr(trainer, "train", refuse)
    monkeypatch.setattr(trainer, "retrain_without", refuse)
    monkeypatch.setattr(stages, "step_seconds", refuse)
    again = played()
    assert (again.code, again.out) == (0, ended.out)
    assert "open what an earlier one trained" in again.err
    assert (folder / "page.html").read_text(encoding="utf-8") == page

    monkeypatch.setattr(
        code_demo, "open_corpus", lambda name: replace(few_modules(name), revision="2.7 abc")
    )
    refused = played()
    assert refused.code == 2
    assert "and this is 2.7 (digest abc); remove" in refused.err


def _check(page: str, folder) -> None:
    """Compare the page with the run and its index."""
    run = runs.open(folder / "runs" / f"stdlib-{STEPS}")
    store = run.store
    text = html.unescape(page)
    assert page.endswith("</html>\n")
    assert not re.findall(r"<(?:link|img|iframe)|(?:src|href)=\"(?!#)", page)
    assert page.count("<script") == 2  # its values and its own script
    assert 'Verification: <b class="good">bit-exact</b>' in page
    for shown in (run.id, store.fingerprint, store.manifest["corpus"]["revision"]):
        assert shown in page
    assert f"No induction head formed in {STEPS} steps" in text
    assert f"openbook patch {run.path} code-copy" in text
    assert page.count("<svg") >= 4
    assert "<b>Trained again without it" not in page  # the sources of a section of its own

    index = token_index.open(store)
    read = [one for one in range(store.n_documents) if len(run.steps_learned(one))]
    lines = known_lines(index, read)
    foils = line_foils(index, lines)
    seen = [one for one in foils if line_readings(run, one)]
    assert 1 < len(seen) < len(foils)
    groups = largest_groups(seen, code_demo.GROUPS)
    for one in groups:
        files = [store.document(document).shard for document in (one[0].document, *one[0].holders)]
        assert f"<td>{files[0]}</td><td>{len(one)}</td>" in page
        assert all(file in page for file in files)
    n = max(groups_of([line for group in groups for line in group])) + 1
    counted = f"{n} prompt group{'s' * (n > 1)}"
    _check_that_the_panels_tell_one_story(text, run, [line for one in groups for line in one])
    (numbers,) = re.findall(
        rf"Their whole second halves: ([+-]\d\.\d+) \[([+-]\d\.\d+), ([+-]\d\.\d+)\] "
        rf"nats a token on {counted}\.",
        text,
    )
    mean, low, high = map(float, numbers)
    assert low <= mean <= high
    assert abs(mean) < 0.1


def _check_that_the_panels_tell_one_story(page: str, run: Run, lines: list[KnownLine]) -> None:
    """Compare the panels and their commands with the behaviour of the known lines."""
    decode, file = run.store.tokenizer.decode, run.path / "known-lines.json"
    saved = behaviours.load(file, run)
    assert saved.clean.tolist() == [[run.store.eot, *one.context] for one in lines]
    words = (run.path / "known-lines.txt").read_text(encoding="utf-8")
    assert words == "\n".join(decode(one.tokens) for one in lines)
    panels = re.findall(r'<section class="panel" id="([a-z-]+)".*?</section>', page, re.DOTALL)
    assert panels[:4] == ["behaviour", "components", "documents", "proof"]
    story = page[page.index('id="behaviour"') : page.index('id="run"')]
    n = max(groups_of(lines)) + 1
    counted = f"{n} prompt group{'s' * (n > 1)}"
    assert saved.cases == [*groups_of(lines)]
    assert f"n = {counted}" in story
    assert f"n = {len(lines)} prompts" not in story
    assert f"openbook behaviours {run.path} {file}" in story
    assert f"openbook patch {run.path} {file} --over heads" in story
    assert f'openbook trace sentence {run.path} "$(cat {run.path}/known-lines.txt)"' in story
    n_files = len({document for one in lines for document in one.holders})
    assert (
        f"openbook counterfactual {run.path} {file} --without sources.json --top {n_files}" in story
    )
    assert f"{run.path} code-copy" not in story
    assert f"On {n} prompts" not in story
    # The first row of the proof is of the behaviour, with as many prompts.
    assert re.search(rf"<td>known-lines</td>.*?n = {n} case", story)
