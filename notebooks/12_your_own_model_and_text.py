# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Bring your own model and text
#
# **Question.** You have a folder of text, a model from elsewhere, or both. How much of what the other notebooks show works on them?
#
# **Answer.** With your text, all of it: train on it, state a behaviour in strings, patch it, and name the documents. With a model alone, everything inside the model; which documents taught it cannot be asked, because nothing is known about what it read.
#
# **Needs.** No GPU and no download. About 7 seconds on one core of an Intel Xeon. The text here is a stand-in of 900 lines written by the notebook; put your own in its place. Every number below is computed here.

# %%
import json
import random
import tempfile
from dataclasses import replace
from pathlib import Path

from data_attribution import attribution, token_index
from data_attribution.errors import AttributionError
from interp import behaviours, models, patching
from train import convert, numerics, progress, recipes, storage, trainer
from train.data import build_store, open_corpus
from train.errors import TrainError


folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## 1. Your text
#
# openbook reads a folder of `.txt`, `.jsonl`, `.parquet` and compressed files. The stand-in is one file with a JSON object on every line: sentences about twelve animals and where they live, mixed with sentences about the weather.

# %%
HOMES = {
    "otter": "river", "bat": "cave", "camel": "desert", "seal": "coast", "wolf": "forest",
    "goat": "mountain", "frog": "pond", "mole": "meadow", "crab": "beach", "heron": "marsh",
    "lion": "plain", "monkey": "jungle",
}  # fmt: skip
draw = random.Random(0)
FORMS = ["the {} lives in the {}", "every {} is at home in the {}", "look for the {} in the {}"]
lines = [draw.choice(FORMS).format(*pair) for pair in HOMES.items() for _ in range(50)]
lines += [f"on day {n} the weather was {draw.choice(['dry', 'wet', 'cold'])}" for n in range(300)]
draw.shuffle(lines)
rows = "".join(json.dumps({"text": line}) + "\n" for line in lines)
storage.write_text(folder / "animals.jsonl", rows)

# %% [markdown]
# A *token store* holds the tokens of all documents and where each document begins. The tokenizer `word` has one token for every word; real text takes `bpe` or `gpt2`.

# %%
corpus = open_corpus(folder / "animals.jsonl")
store = build_store(corpus, out=folder / "store", tokenizer="word")
store.n_documents, store.n_tokens, store.text(0)

# %% [markdown]
# ## 2. A model of your own
#
# A recipe is a frozen dataclass, and every field can be changed. This one trains for seconds; the recipe `text-small` suits a few megabytes of text.

# %%
small = replace(recipes.TEXT_SMALL.model, n_layers=2, n_ctx=64)
with progress.bar("training") as advance:
    run = trainer.train(
        replace(recipes.TEXT_SMALL, steps=100, warmup_steps=10, batch_size=4, model=small),
        store,
        out=folder / "run",
        numerics=numerics.choose(threads=1),
        progress=advance,
    )
f"loss {run.ledger[0].loss:.2f} at first, {run.ledger[-1].loss:.2f} after {len(run.ledger)} steps"

# %% [markdown]
# ## 3. Your behaviour, in strings
#
# A row is a clean prompt, a corrupt prompt of the same length, the answer to the clean prompt, and the foil: a wrong answer to compare with. `check` raises an error if the model cannot tell answers from foils.

# %%
animals = list(HOMES)
others = animals[1:] + animals[:1]


def homes(model):
    """Return the behaviour: where an animal lives."""
    clean, corrupt = ([f"the {one} lives in the" for one in names] for names in (animals, others))
    answers, foils = ([HOMES[one] for one in names] for names in (animals, others))
    return behaviours.from_strings(model, clean, corrupt, answers, foils, name="homes")


model = models.load(run)
behaviour = homes(model)
check = behaviours.check(model, behaviour)
check

# %% [markdown]
# ## 4. What every other notebook does, on yours
#
# **Where is the animal?** The residual stream entering each layer is patched, one position at a time.

# %%
residual = patching.residual(model, behaviour)
residual.plot()

# %% [markdown]
# **Which heads move it to the last position?**

# %%
heads = patching.heads(model, behaviour)
heads.plot()

# %% [markdown]
# **Which documents taught it?** Words and gradients rank the documents for one of the prompts, and each comes with the steps that read it.

# %%
token_index.build(store)
otter = behaviour.of([0])
sources = attribution.documents(run, otter, limit=6)
sources.show(6)

# %% [markdown]
# ## 5. A model from elsewhere
#
# A *Hugging Face folder* holds `config.json`, `model.safetensors` and a tokenizer. GPT-2, Llama, GPT-NeoX (Pythia), Mistral, Qwen2 and Qwen3 are opened; anything that the decoder does not compute is refused by name. To stay without a download, the notebook writes such a folder and opens it as if somebody else had made it.

# %%
foreign_folder = convert.export_run(run, out=folder / "somebody-elses-model")
foreign = models.load(foreign_folder)
sorted(path.name for path in foreign_folder.iterdir()), foreign.origin

# %% [markdown]
# **Everything inside the model works the same.** The behaviour is stated again with the foreign model's tokenizer.

# %%
foreign_heads = patching.heads(foreign, homes(foreign))
difference = (foreign_heads.values - heads.values).abs().max().item()
difference

# %% [markdown]
# **Its documents cannot be asked for.** The knowledge level of such a model is `weights-only`, and a question about its training is refused.

# %%
imported = convert.import_run(foreign_folder, out=folder / "imported")
try:
    attribution.documents(imported, otter)
    refusal = ""
except (TrainError, AttributionError) as error:
    refusal = str(error).removeprefix(f"the run {imported.path} ")
imported.knowledge, refusal

# %% [markdown]
# *Limits.* Twelve prompts in one wording, and one seed. A text of a few sentences is learned by heart; on real text a model of this size knows few facts, so expect `check` to refuse what you ask at first. More: [state your own behaviours](../docs/how-to/own-behaviours.md), [use your own text](../docs/how-to/use-your-own-text.md), [open a Hugging Face model](../docs/how-to/open-a-hugging-face-model.md).
#
# ## All claims checked

# %%
assert check.accuracy == 1
# The first sources name the animal and its home.
assert all({"otter", "river"} <= set(store.text(one).split()) for one in sources.documents[:3])
assert all(source.steps for source in sources)
# The foreign model computes the same, and has no documents.
assert difference < 1e-5
assert imported.knowledge == "weights-only"
assert refusal
