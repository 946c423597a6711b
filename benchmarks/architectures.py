"""What each tool does on each architecture, and how fast exact patching is there.

    python benchmarks/architectures.py                       # the table of docs/architectures.md
    python benchmarks/architectures.py --runs runs/nano      # and the trained small models

The first part needs no training. Every tool is called on every small preset with random weights: it
gives numbers, or it refuses and says why. Patching is compared with whole forward passes in fp64,
and a sweep over heads is timed side by side with the same sweep by whole passes (CPU time, one
thread).

The second part trains the small recipes on the planted corpus, unless they are there already:
the first half of it is killed (SIGKILL) and resumed. Every run is judged as `planted_acceptance.py`
judges the planted run; the criteria are those of the planted recipe, printed and not asked for,
because nobody chose the settings of these recipes for them. The steps around the kill are replayed
from a checkpoint before it. Then the same commands run on each: verify, detect, patch a fact, trace
it to documents, and train again without the documents that state it. That fact is read late, so the
two trainings without documents take a third of the steps.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import machine
import torch

from data_attribution import component_queries
from data_attribution.errors import AttributionError
from data_attribution.gradients import select_weights
from interp import attribution_patching, circuits, heads, lenses, patching, probing
from interp.behaviours import Behaviour
from interp.components import Component
from interp.errors import InterpError
from interp.metrics import logit_difference
from interp.patching import engine
from interp.patching.engine import reference
from interp.probing import ProbeTask
from train import convert, progress, recipes
from train.errors import TrainError
from train.model import GPT, PRESETS, GPTConfig, init_gpt, preset


SMALL = tuple(name for name in PRESETS if name.endswith("-nano"))
N_PROMPTS, N_POS = 8, 24
TOLERANCE = 1e-10
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Support:
    """Whether a tool gives numbers on an architecture, and if not, what it says."""

    works: bool
    says: str = ""


def random_weights(cfg: GPTConfig) -> GPT:
    """Return a model with random weights, gates and scales, so that every part does something."""
    model, draw = init_gpt(replace(cfg, init_std=0.1), seed=0).eval(), torch.Generator()
    draw.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2 or not parameter.any():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    return model


def prompts_for(model: GPT) -> Behaviour:
    """Return random prompts whose answer is the token that the model finds likeliest."""
    draw = torch.Generator().manual_seed(1)
    shape, vocabulary = (N_PROMPTS, N_POS), model.cfg.d_vocab
    clean = torch.randint(vocabulary, shape, generator=draw)
    corrupt = torch.randint(vocabulary, shape, generator=draw)
    with torch.inference_mode():
        last, other = model(clean)[:, -1], model(corrupt)[:, -1]
    answer = (last - other).argmax(-1)
    return Behaviour("random", clean, corrupt, answer, (other - last).argmax(-1))


def said_twice(vocabulary: int) -> torch.Tensor:
    """Return sequences of an end-of-text token and twelve random tokens, said twice."""
    draw = torch.Generator().manual_seed(2)
    words = torch.stack([torch.randperm(vocabulary - 1, generator=draw)[:12] + 1 for _ in range(8)])
    return torch.cat([torch.zeros(8, 1, dtype=torch.long), words, words], dim=1)


def half_of_vocabulary(model: GPT, prompts: Behaviour) -> ProbeTask:
    """Return a probe task on the prompts: in which half of the vocabulary a token lies."""
    rows, positions = (one.flatten() for one in torch.where(prompts.clean >= 0))
    tokens = prompts.clean.flatten().tolist()
    labels = tuple("low" if token < model.cfg.d_vocab // 2 else "high" for token in tokens)
    # Types that repeat: the last two digits of a token.
    types = tuple(str(token % 100) for token in tokens)
    return ProbeTask("half", prompts.clean, positions, labels, types, rows)


def _exact_patching(model: GPT, behaviour: Behaviour) -> None:
    if not engine.engine_runs(model):
        raise InterpError("retention is run by whole forward passes, exact and slower")


TOOLS: Mapping[str, Callable[[GPT, Behaviour], object]] = MappingProxyType(
    {
        "activation patching": lambda model, prompts: patching.heads(model, prompts),
        "the fast patch engine": _exact_patching,
        "causal tracing with noise": lambda model, prompts: patching.causal_trace(
            model, replace(prompts, subject=(N_POS - 6, N_POS - 4)), damage="noised"
        ),
        "ablation": lambda model, prompts: patching.ablate(model, prompts),
        "path patching": lambda model, prompts: patching.senders(model, prompts),
        "attribution patching": lambda model, prompts: attribution_patching.attribution(
            model, prompts
        ),
        "AtP* (QK fix)": lambda model, prompts: attribution_patching.atp_star(
            model, prompts, over="queries", grad_drop=False
        ),
        "circuits (edges)": lambda model, prompts: circuits.find(
            model, prompts, n_edges=circuits.graph_of(model).n_edges // 2, checked=False
        ),
        "direct logit attribution": lambda model, prompts: heads.decompose_logits(model, prompts),
        "direct effect of a head": lambda model, prompts: component_queries.direct_effect(
            model, prompts, "L0H0"
        ),
        "GradDrop": lambda model, prompts: attribution_patching.atp_star(
            model, prompts, qk_fix=False
        ),
        "head detectors": lambda model, prompts: heads.induction_heads(
            model, said_twice(model.cfg.d_vocab)
        ),
        "OV circuits": lambda model, prompts: heads.ov_copying(model, [1, 2, 3, 4]),
        "logit lens": lambda model, prompts: lenses.logit(model, prompts),
        "linear probes": lambda model, prompts: probing.linear(
            model, half_of_vocabulary(model, prompts), fit="ridge"
        ),
        "gradient attribution": lambda model, prompts: select_weights(model.cfg),
        "Hugging Face, TransformerLens": lambda model, prompts: convert.to_huggingface(model),
    }
)


def supported(cfg: GPTConfig) -> dict[str, Support]:
    """Return what each tool does on a small architecture with random weights."""
    model = random_weights(cfg)
    prompts, found = prompts_for(model), {}
    for tool, call in TOOLS.items():
        try:
            call(model, prompts)
        except (InterpError, AttributionError, TrainError) as error:
            found[tool] = Support(works=False, says=str(error))
        else:
            found[tool] = Support(works=True)
    return found


def as_table(support: Mapping[str, Mapping[str, Support]]) -> str:
    """Return the Markdown table of docs/architectures.md."""
    names = list(support)
    lines = [f"| tool | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for tool in TOOLS:
        cells = ["yes" if support[name][tool].works else "no" for name in names]
        lines.append(f"| {tool} | {' | '.join(cells)} |")
    return "\n".join(lines)


@torch.inference_mode()
def compared(cfg: GPTConfig) -> tuple[float, float]:
    """Return the largest difference from whole passes in fp64, and the ratio of their times."""
    model = random_weights(cfg)
    prompts = prompts_for(model)
    patches = [[Component("head", i, head=h)] for i in range(cfg.n_layers) for h in (0, 3)]
    sites = ("resid_pre", "resid_mid", "resid_post", "attn", "mlp")
    sites = tuple(site for site in sites if site != "resid_mid" or not cfg.parallel_residual)
    for layer in range(cfg.n_layers):
        patches += [[Component(site, layer, pos=N_POS - 4)] for site in sites]
        patches += [[Component(site, layer, head=1)] for site in ("q", "k", "v", "pattern")]
    names = sorted({place.hook for patch in patches for place in patch})
    worst = 0.0
    seconds: dict[str, float] = {}
    for precision in (torch.float64, torch.float32):
        model = model.to(precision)
        _, cache = model.run_with_cache(prompts.clean, names_filter=names)
        source = {hook: cache[hook] for hook in names}
        scored = {}
        for way, call in (("engine", engine.scores), ("passes", reference.reference_scores)):
            begin = time.process_time()
            metrics = [logit_difference(prompts)]
            scored[way] = call(model, prompts.corrupt, patches, source, metrics).scores
            seconds[way] = time.process_time() - begin
        if precision == torch.float64:
            worst = float((scored["engine"] - scored["passes"]).abs().max())
    return worst, seconds["passes"] / seconds["engine"]


def main() -> int:
    """Print the tables; 1 if patching differs from whole passes."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--runs", type=Path, help="folder of the trained small models")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine.described('torch')}, 1 thread\n")
    support = {name: supported(preset(name)) for name in SMALL}
    print(as_table(support))
    for name in SMALL:
        for tool, one in support[name].items():
            if not one.works:
                print(f"{name}, {tool}: {one.says}")
    failed = 0
    print("\npatching against whole passes: largest difference in fp64, ratio of CPU time in fp32")
    for name in SMALL:
        worst, ratio = compared(preset(name))
        failed += worst > TOLERANCE
        print(f"  {name:<16} {worst:.1e}   {ratio:.1f} times as fast")
    if arguments.runs:
        trained(arguments.runs)
    return min(failed, 1)


def trained(folder: Path) -> None:
    """Train every small recipe that is not there yet, and judge it as the planted run."""
    from planted_acceptance import judged

    from train import runs, trainer
    from train.data import build_store, open_corpus

    if not (folder / "store").exists():
        with progress.bar("store") as advance:
            build_store(open_corpus("planted"), out=folder / "store", progress=advance)
        openbook("index", "build", folder / "store")
    for name in SMALL:
        recipe = recipes.by_name("planted" if name == "gpt2-nano" else name)
        if not (folder / name).exists():
            killed_halfway(recipe.name, folder, name)
        openbook("run", "resume", folder / name)
        run = runs.open(folder / name)
        spent = sum(row.seconds for row in run.ledger)
        print(f"\n{name}: {recipe.model.n_params:,} parameters, {spent:.0f} s, run {run.id}")
        for one in judged(run):
            print(f"  {'    ' if one.holds else 'not '}{one.name:<44} {one.value:7.3f}")
        for segment in run.predicate["segments"][1:]:
            killed = segment["first_step"]
            replayed = trainer.replay(run, killed - 2, killed + 2)
            print(f"  killed and resumed at step {killed}; replayed across it: {replayed.exact=}")
        for command in COMMANDS:
            ended = openbook(*(folder / name if one == "RUN" else one for one in command))
            said = (ended.stdout or ended.stderr).strip().splitlines()
            print(f"  openbook {' '.join(command)}: exit {ended.returncode}")
            print("\n".join(f"    {line[:110]}" for line in said[:SHOWN]))
        sys.stdout.flush()


FACT = "fact:runethi"
SHOWN = 8  # lines of a command's output
COMMANDS = (
    ("run", "verify", "RUN", "--spans", "1"),
    ("detect", "RUN"),
    ("patch", "RUN", FACT, "--over", "heads"),
    ("trace", "documents", "RUN", FACT, "--method", "lexical", "--limit", "3"),
    ("forget", "RUN", "capital of runethi"),
)


def openbook(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, on one thread."""
    call = [sys.executable, "-m", "train", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(call, env=environment, capture_output=True, text=True, check=False)


def killed_halfway(recipe: str, folder: Path, name: str) -> None:
    """Train a recipe, and kill the process when half of its steps are in the ledger."""
    call = [sys.executable, "-m", "train", "train", recipe, folder / "store"]
    call += ["--out", folder / name, "--threads", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(list(map(str, call)), env=environment, stdout=quiet, stderr=quiet)
    ledger, half = folder / name / "ledger.jsonl", recipes.by_name(recipe).steps // 2
    while process.poll() is None:
        time.sleep(0.5)
        if ledger.exists() and ledger.read_bytes().count(b"\n") >= half:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
