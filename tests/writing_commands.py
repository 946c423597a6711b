"""Every command that writes, with tiny inputs: what it is given, what it replaces, how it goes on.

`build_world` makes the inputs once, in a folder `world`. A trial runs beside it, in a folder
`trial` that begins as a copy of the case's own beginning; commands name both by relative paths, so
that every trial reads and writes the same names.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np


if TYPE_CHECKING:
    from torch import Tensor

    from interp.behaviours import Behaviour
    from interp.probing import ProbeTask


__all__ = ["CASES", "Case", "build_planted", "build_world", "command"]

N_PAIRS = 12
# One that learns the pairs by heart, and one that is quickly trained, with as many files.
RECIPE = """\
name = "{name}"
steps = {steps}
batch_size = {batch}
lr = 1e-2
min_lr = 1e-3
warmup_steps = {warmup}
checkpoint_every = {every}
optimizer_every = {every}

[model]
n_layers = 1
n_heads = 2
d_model = 32
n_ctx = {context}
d_vocab = 1
init_std = 0.1
"""
W = "../world"
RUN, STORE, BEHAVIOUR = f"{W}/run", f"{W}/store", f"{W}/behaviour.json"
TRAINED = ("--precision", "fp32", "--threads", "1", "--device", "cpu")
FEW = ("--prompts", "4")
LADDER = (
    "retro-nano", "modern-nano", STORE, "--out", "ladder", "--seeds", "1", "--steps", "2",
    "--recipe", f"{W}/recipe.toml", "--set", "model.d_model=16", "--set", "model.n_layers=1",
    "--set", "model.n_heads=2", *TRAINED,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A command that writes.

    Attributes:
        name: The command, and what is special about this case behind a comma.
        arguments: Its arguments.
        inputs: Entries of the world that are copied into the trial, because the command writes
            into them.
        before: Commands that are run in the trial first; what they write is there already.
        older: Files that an earlier call of the same command has written.
        results: Names that hold something old or something whole at every moment.
        retry: How the command is repeated if the first file is there already; the second: the
            arguments.
        check: As `retry`, for a command that finds nothing wrong with what a failure has left.
        variables: Variables of the environment.
        most: Largest number of trials of each kind, for a command that takes seconds.
        same_again: Whether a second one at the same time may succeed too, by the same result.
        call: A function to call instead of a command.
    """

    name: str
    arguments: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    before: tuple[tuple[str, ...], ...] = ()
    older: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    retry: tuple[str, tuple[str, ...]] | None = None
    check: tuple[str, tuple[str, ...]] | None = None
    variables: Mapping[str, str] | None = None
    most: int = 1000
    same_again: bool = False
    call: Callable[[], object] | None = None

    @property
    def command(self) -> str:
        """The command's name, as the app has it."""
        return self.name.partition(",")[0]

    @property
    def planted(self) -> bool:
        """Whether the case needs the released run."""
        return PLANTED in self.arguments or FACTS in self.arguments

    @property
    def work(self) -> Callable[[], object]:
        """The command, as the executable runs it."""
        return self.call or command(*self.command.split(), *self.arguments)


def command(*arguments: str) -> Callable[[], None]:
    """Return what runs `openbook` with these arguments in this process.

    The matrix product is not measured, as each process does otherwise: the two products round
    differently, and trials are compared byte by byte.
    """

    def run() -> None:
        from data_attribution.cli.app import main
        from train import numerics

        measured = numerics.choose
        numerics.choose = lambda **options: replace(measured(**options), matmul="highest")
        sys.argv = ["openbook", *arguments]
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise

    return run


def sealed(name: str, *arguments: str, **options: Any) -> Case:
    """A command that only reads, but for the result that `--out` replaces."""
    files = ("out.json",)
    if "--plot" in arguments:
        files += ("plot.html",)
    if "--page" in arguments:
        files += ("page.html",)
    if "--mib" in arguments:
        files += ("mib.json",)
    arguments = (*arguments, "--out", "out.json")
    return Case(name, arguments, older=files, results=files, same_again=True, **options)


def trained(name: str, *arguments: str, out: str = "out", **options: Any) -> Case:
    """A command that trains a run, which `run resume` continues."""
    manifest = f"{out}/manifest.json"
    return Case(
        name,
        arguments,
        retry=(manifest, ("run", "resume", out)),
        check=(manifest, ("run", "verify", out, "--spans", "0")),
        **options,
    )


def saved(name: str, save: Callable[[], object]) -> Case:
    """A result that Python saves; an error is printed as the command line prints it."""

    def call() -> None:
        from train.errors import TrainError

        try:
            save()
        except TrainError as error:
            sys.stderr.write(f"error: {error}\n")
            sys.exit(error.exit_code)

    return Case(f"python, {name}", (), older=("saved.json",), results=("saved.json",),
                same_again=True, call=call)  # fmt: skip


PLOT = ("--plot", "plot.html")
PLANTED, FACTS = f"{W}/planted", f"{W}/facts"
CASES = (
    # --- made from text
    Case(
        "corpus build",
        (f"{W}/texts.jsonl", "--out", "made", "--tokenizer", "word", "--held-out", "0.1",
         "--threads", "1"),
        results=("made",),
    ),
    Case(
        "corpus build, packed",
        (f"{W}/texts.jsonl", "--out", "made", "--tokenizer", "bpe", "--vocab-size", "260",
         "--layout", "packed", "--row-length", "32", "--threads", "1"),
        results=("made",),
    ),
    Case(
        "tune data",
        (RUN, f"{W}/instructions.jsonl", "--folder", "made"),
        results=("made",),
    ),
    Case("index build", ("plain", "--workers", "1"), inputs=("plain",), results=("plain/index",),
         same_again=True),
    Case("index build, two workers", ("plain", "--shards", "3", "--workers", "2"),
         inputs=("plain",), results=("plain/index",), same_again=True),
    Case(
        "index build, again", ("plain", "--workers", "1"), inputs=("plain",),
        before=(("index", "build", "plain", "--shards", "2", "--workers", "1"),),
        results=("plain/index",), same_again=True,
    ),
    Case("index bm25", ("plain",), inputs=("plain",), results=("plain/bm25",), same_again=True),
    Case("index bm25, again", ("plain",), inputs=("plain",), before=(("index", "bm25", "plain"),),
         results=("plain/bm25",), same_again=True),
    # --- trained
    trained("train", f"{W}/recipe.toml", STORE, "--out", "out", *TRAINED),
    trained("train, watched", f"{W}/recipe.toml", STORE, "--out", "out", "--watch", "--eval-every",
            "4", "--set", "ema_decay=0.9", *TRAINED),
    trained("run resume", "stopped", inputs=("stopped", "store"), out="stopped"),
    trained("tune sft", RUN, f"{W}/sft", "--out", "out", "--steps", "4", "--batch-size", "4"),
    trained("tune dpo", RUN, f"{W}/dpo", "--out", "out", "--steps", "4", "--batch-size", "4"),
    Case("chain", (f"{W}/recipe.toml", STORE, "--out", "chain", "--members", "2", "--steps", "4",
                   *TRAINED)),
    Case("ladder", LADDER, same_again=True),
    Case("counterfactual", ("run", BEHAVIOUR, "--without", "3", "--seeds", "1", *FEW,
                            "--out", "out.json"),
         inputs=("run", "store"), older=("out.json",), results=("out.json",)),
    Case("forget", (FACTS, "32", "--runs", "runs", "--out", "out.json"), older=("out.json",),
         results=("out.json",), most=20),
    Case("attribution evaluate",
         (FACTS, "--facts", "2", "--candidates", "20", "--tail-patch", "0", "--replay", "0",
          "--within", "L0.mlp", "--lds", "4", "--steps", "4", "--runs", "kept", "--out",
          "out.json"),
         older=("out.json",), results=("out.json",), most=10, same_again=True),
    # --- converted
    Case("run export", (RUN, "--out", "made"), results=("made",)),
    Case("run import", (f"{W}/exported", "--out", "made"), results=("made",)),
    # --- stored
    Case("cache documents", (RUN, "--out", "cache", "--sites", "L*.mlp", "--documents", "8"),
         retry=("cache/manifest.json", ("cache", "documents", RUN, "--out", "cache", "--sites",
                                        "L*.mlp", "--documents", "8", "--resume"))),
    Case("cache windows", (RUN, "--out", "cache", "--sites", "L*.mlp", "--documents", "8"),
         retry=("cache/manifest.json", ("cache", "windows", RUN, "--out", "cache", "--sites",
                                        "L*.mlp", "--documents", "8", "--resume"))),
    Case("cache prompts", (RUN, BEHAVIOUR, "--out", "cache", "--sites", "L*.mlp", *FEW),
         retry=("cache/manifest.json", ("cache", "prompts", RUN, BEHAVIOUR, "--out", "cache",
                                        "--sites", "L*.mlp", *FEW, "--resume"))),
    Case("gradients build", (RUN, "--folder", "gradients", "--rank", "2"), results=("gradients",)),
    Case("emergence", ("run", f"score:{BEHAVIOUR}", *FEW, *PLOT, "--out", "out.json"),
         inputs=("run", "store"), older=("out.json", "plot.html"),
         results=("out.json", "plot.html"), same_again=True),
    Case("report", ("run", BEHAVIOUR, *FEW, "--steps", "0,160", "--out", "page.html"),
         inputs=("run", "store"), older=("page.html",), results=("page.html",), same_again=True,
         most=20),
    Case("evaluate", (RUN, "--on", "heldout", "--results", "kept", "--out", "out.json"),
         older=("out.json",), results=("out.json",), same_again=True),
    Case("lens fit", (RUN, "--out", "lens.json", "--fit-steps", "2", "--train-tokens"),
         before=(("lens", "fit", RUN, "--out", "lens.json", "--fit-steps", "1", "--train-tokens"),),
         check=("lens.json", ("lens", "tuned", RUN, BEHAVIOUR, "lens.json", *FEW)),
         same_again=True),
    Case("demo", ("--quick", "--out", "page.html"), results=("page.html",),
         variables={"OPENBOOK_CACHE": "cache"}, most=20),
    Case("demo-code", ("--steps", "3", "--controls", "1"), most=2),
    # --- saved by Python
    saved("Behaviour", lambda: _behaviour(Path(W)).save("saved.json")),
    saved("ProbeTask", lambda: _task(Path(W)).save("saved.json")),
    # --- computed
    sealed("ensemble", f"{RUN}@120", f"{RUN}@160"),
    sealed("behaviours", RUN, BEHAVIOUR, *FEW),
    sealed("patch", RUN, BEHAVIOUR, *FEW, *PLOT),
    sealed("paths", RUN, BEHAVIOUR, *FEW, *PLOT),
    sealed("estimate", RUN, BEHAVIOUR, *FEW, *PLOT),
    sealed("ablate", RUN, BEHAVIOUR, *FEW, *PLOT),
    sealed("decompose", RUN, BEHAVIOUR, *FEW, *PLOT),
    sealed("probe", RUN, f"{W}/task.json", *PLOT),
    sealed("erase", RUN, f"{W}/task.json", BEHAVIOUR, "--layer", "0", *PLOT),
    sealed("circuit", RUN, BEHAVIOUR, *FEW, *PLOT, "--mib", "mib.json"),
    sealed("faithfulness", RUN, BEHAVIOUR, f"{W}/circuit.json", *FEW),
    sealed("recall", PLANTED),
    sealed("detect", RUN, "--sequences", "2", "--length", "4", *PLOT),
    sealed("corpus show", STORE),
    sealed("recipes list"),
    sealed("recipes show", "text-small"),
    sealed("run show", RUN),
    sealed("run verify", RUN, "--spans", "1"),
    sealed("run documents", RUN, "2"),
    sealed("run steps", RUN, "2"),
    sealed("run replay", RUN, "--from", "9", "--to", "10"),
    sealed("lens logit", RUN, BEHAVIOUR, *FEW, *PLOT),
    sealed("lens tuned", RUN, BEHAVIOUR, f"{W}/lens.json", *FEW, *PLOT),
    sealed("index plan", STORE),
    sealed("index cost", "1000"),
    sealed("index verify", STORE),
    sealed("index count", STORE, "k3 is"),
    sealed("index find", STORE, "k3 is"),
    sealed("index spans", STORE, "k3 is v3"),
    sealed("trace components", RUN, BEHAVIOUR, *FEW, *PLOT),
    sealed("trace documents", RUN, BEHAVIOUR, *FEW, "--page", "page.html"),
    sealed("trace stages", f"{W}/tuned", BEHAVIOUR, *FEW, "--rank", "2", "--candidates", "8"),
    sealed("trace sentence", RUN, "k3 is v3", "--page", "page.html"),
    sealed("trace head", RUN, "previous-token:L0H0", "--page", "page.html"),
    sealed("trace text", RUN, "k3 is", "--generate", "2", "--page", "page.html"),
    sealed("exposure text", RUN, "k3 is v3"),
    sealed("exposure documents", RUN, "3"),
    sealed("gradients plan", RUN),
    sealed("gradients verify", RUN, "--folder", f"{W}/gradients"),
    sealed("cache verify", f"{W}/activations"),
    sealed("generate", RUN, "--prompt", "k3 is", "--tokens", "2"),
)  # fmt: skip
# What else lies in the world, and the command that makes it.
INPUTS: dict[str, tuple[str, ...]] = {
    "activations": ("cache", "prompts", RUN, BEHAVIOUR, "--out", f"{W}/activations", "--sites",
                    "L*.mlp", *FEW),
    "circuit.json": ("circuit", RUN, BEHAVIOUR, *FEW, "--out", f"{W}/circuit.json"),
    "dpo": ("tune", "data", RUN, f"{W}/preferences.jsonl", "--kind", "preferences", "--folder",
            f"{W}/dpo"),
    "exported": ("run", "export", RUN, "--out", f"{W}/exported"),
    "gradients": ("gradients", "build", RUN, "--folder", f"{W}/gradients", "--rank", "2"),
    "lens.json": ("lens", "fit", RUN, "--out", f"{W}/lens.json", "--fit-steps", "2",
                  "--train-tokens"),
    "sft": ("tune", "data", RUN, f"{W}/instructions.jsonl", "--folder", f"{W}/sft"),
    "tuned": ("tune", "sft", RUN, f"{W}/sft", "--out", f"{W}/tuned", "--steps", "4",
              "--batch-size", "4"),
}  # fmt: skip


def build_world(world: Path, cases: Sequence[Case]) -> None:
    """Make the inputs of some cases; the current folder must be one beside `world`."""
    world.mkdir()
    size = {"batch": 8, "context": 16}
    (world / "pairs.toml").write_text(
        RECIPE.format(name="pairs", steps=160, warmup=10, every=40, **size)
    )
    (world / "recipe.toml").write_text(
        RECIPE.format(name="quick", steps=9, warmup=1, every=4, **size)
    )
    order = np.random.default_rng(0).permutation(N_PAIRS * 10)
    pairs = [f"k{number % N_PAIRS} is v{number % N_PAIRS}" for number in order.tolist()]
    _lines(world / "texts.jsonl", [{"text": text} for text in pairs])
    command("corpus", "build", f"{W}/texts.jsonl", "--out", STORE, "--tokenizer", "word",
            "--held-out", "0.1", "--threads", "1")()  # fmt: skip
    shutil.copytree(world / "store", world / "plain")
    command("index", "build", STORE, "--workers", "1")()
    command("index", "bm25", STORE)()
    command("train", f"{W}/pairs.toml", STORE, "--out", RUN, *TRAINED)()
    _behaviour(world).save(world / "behaviour.json")
    _task(world).save(world / "task.json")
    examples = [{"prompt": f"k{n} is", "response": f"v{n}"} for n in range(N_PAIRS)]
    _lines(world / "instructions.jsonl", examples)
    choices = [
        {"prompt": f"k{n} is", "chosen": f"v{n}", "rejected": f"v{(n + 1) % N_PAIRS}"}
        for n in range(N_PAIRS)
    ]
    _lines(world / "preferences.jsonl", choices)
    _stopped_run(world)
    needed = {part for case in cases for row in (case.arguments, *case.before) for part in row}
    for name, row in sorted(INPUTS.items()):
        if f"{W}/{name}" in needed or (name == "sft" and f"{W}/tuned" in needed):
            command(*row)()


def _tokens(world: Path) -> "tuple[Tensor, Tensor]":
    """Return prompts that end behind a key, and the values of the keys."""
    import torch

    from train import runs

    tokenizer = runs.open(world / "run").tokenizer
    keys, values = (
        torch.tensor([int(tokenizer.encode(f"{letter}{n}")[0]) for n in range(N_PAIRS)])
        for letter in "kv"
    )
    between = torch.full_like(keys, int(tokenizer.encode("is")[0]))
    return torch.stack([torch.full_like(keys, tokenizer.eot), keys, between], dim=1), values


def _behaviour(world: Path) -> "Behaviour":
    from interp.behaviours import Behaviour

    clean, values = _tokens(world)
    return Behaviour(
        name="pairs",
        clean=clean,
        corrupt=clean.roll(1, dims=0),
        answer=values,
        foil=values.roll(1),
        candidates=tuple(values.tolist()),
    )


def _task(world: Path) -> "ProbeTask":
    import torch

    from interp.probing import ProbeTask

    parity = tuple("even" if n % 2 == 0 else "odd" for n in range(N_PAIRS))
    return ProbeTask(
        name="parity",
        tokens=_tokens(world)[0].repeat(2, 1),
        positions=torch.ones(2 * N_PAIRS, dtype=torch.long),
        labels=2 * parity,
        types=2 * tuple(f"k{n}" for n in range(N_PAIRS)),
    )


def _stopped_run(world: Path) -> None:
    """Train a run that stops behind its first checkpoint."""
    from train import recipes, trainer
    from train.data import open_store
    from train.numerics import Numerics

    def stop(_what: str, done: int, _total: int | None) -> None:
        if done == 6:
            raise KeyboardInterrupt

    recipe, store = recipes.load(str(world / "recipe.toml")), open_store(world / "store")
    numerics = Numerics("cpu", "fp32", 1)
    with suppress(KeyboardInterrupt):
        trainer.train(recipe, store, out=world / "stopped", numerics=numerics, progress=stop)


def build_planted(world: Path) -> None:
    """Unpack the released run, and train another on its store that keeps all optimizers."""
    from train import released

    os.environ["OPENBOOK_CACHE"] = str(world / "cache")
    run = released.open("planted")
    (world / "planted").symlink_to(run.path)
    store, recipe = str(run.store.path), world / "facts.toml"
    command("index", "build", store, "--workers", "1")()
    command("index", "bm25", store)()
    size = {"batch": 256, "context": run.config.n_ctx}
    recipe.write_text(RECIPE.format(name="facts", steps=8, warmup=1, every=4, **size))
    command("train", str(recipe), store, "--out", FACTS, *TRAINED)()


def _lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
