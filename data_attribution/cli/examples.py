"""An example of every command, which its help shows last."""

import typer


__all__ = ["EXAMPLES", "add_examples"]

EXAMPLES = {
    "demo": "--quick",
    "demo-code": "--steps 200",
    "train": "planted-nano data/planted --out runs/mine",
    "ladder": "retro-nano modern-nano data/owt --out runs/ladder",
    "chain": "mine.toml data/owt --out runs/chain",
    "ensemble": "runs/seed0 runs/seed1",
    "generate": "runs/planted --prompt 'the capital of' --tokens 20",
    "behaviours": "runs/planted ioi",
    "patch": "runs/planted ioi --over heads --out heads.json",
    "paths": "runs/planted ioi --to L1H0.q",
    "estimate": "runs/planted ioi --method atp-star --verify 20",
    "ablate": "runs/planted ioi --components heads.json --take 3",
    "decompose": "runs/planted ioi",
    "probe": "runs/planted word-class --layers 0,1",
    "erase": "runs/planted subject-name ioi --layer 0",
    "circuit": "runs/planted ioi --out circuit.json",
    "faithfulness": "runs/planted ioi circuit.json",
    "emergence": "runs/planted copying",
    "recall": "runs/planted",
    "evaluate": "runs/planted --on lambada=lambada_test.jsonl",
    "detect": "runs/planted",
    "report": "runs/planted fact:runethi --out page.html",
    "counterfactual": "runs/planted fact:runethi --without sources.json --top 16 --unrelated ioi",
    "forget": "runs/planted",
    "corpus build": "texts.jsonl --tokenizer bpe --vocab-size 2048 --out data/mine",
    "corpus show": "data/mine --document 0",
    "recipes list": "",
    "recipes show": "text-small",
    "run show": "runs/planted",
    "run verify": "runs/planted --spans 3",
    "run resume": "runs/planted",
    "run documents": "runs/planted 400",
    "run steps": "runs/planted 28867",
    "run replay": "runs/planted --from 100 --to 110",
    "run import": "path/to/folder --out runs/imported",
    "run export": "runs/planted --out exported",
    "tune data": "runs/planted examples.jsonl --folder data/tuning",
    "tune sft": "runs/planted data/tuning --out runs/sft",
    "tune dpo": "runs/sft data/preferences --out runs/dpo",
    "lens logit": "runs/planted ioi",
    "lens fit": "runs/factbook --out lens.json",
    "lens tuned": "runs/factbook induction lens.json",
    "cache documents": "runs/planted --sites L1.mlp --documents 100 --out activations",
    "cache windows": "runs/planted --sites L1.mlp --documents 100 --out activations",
    "cache prompts": "runs/planted ioi --sites 'L*.resid_post' --out activations",
    "cache verify": "activations",
    "index build": "data/planted",
    "index plan": "data/planted",
    "index cost": "9000000000",
    "index verify": "data/planted",
    "index bm25": "data/planted",
    "index count": "data/planted 'the capital of'",
    "index find": "data/planted 'the capital of runethi'",
    "index spans": "data/planted 'the capital of runethi is koreskul .'",
    "trace components": "runs/planted capital",
    "trace documents": "runs/planted fact:runethi --out sources.json",
    "trace stages": "runs/dpo fact:runethi",
    "trace sentence": "runs/planted 'the capital of runethi is koreskul .'",
    "trace head": "runs/planted prefix-matching:L1H0",
    "trace text": "runs/planted 'the capital of runethi' --generate 40 --page text.html",
    "exposure text": "runs/planted 'the capital of runethi is koreskul .'",
    "exposure documents": "runs/planted 28867",
    "gradients build": "runs/planted",
    "gradients plan": "runs/planted",
    "gradients verify": "runs/planted",
    "attribution evaluate": "runs/planted",
}


def add_examples(app: typer.Typer) -> None:
    """Give every command of the application its example as the last line of its help."""
    groups = [("", app), *((f"{one.name} ", one.typer_instance) for one in app.registered_groups)]
    for prefix, group in groups:
        for command in group.registered_commands if group else ():
            name = f"{prefix}{command.name}"
            command.epilog = f"Example: openbook {name} {EXAMPLES[name]}".rstrip()
