"""Small evaluation files, as protocols read them, and models that are drawn from a seed."""

import gzip
import json
import zipfile
from pathlib import Path

from train.data import gpt2_tokenizer
from train.model import GPT, GPTConfig, init_gpt


# The last words of the second and fourth text are what the drawn model continues with.
LAMBADA = [
    {"text": "She looked at the old clock and then, without a word, left the house"},
    {"text": "woman door man back old came house in Gaul"},
    {"text": '"I don\'t know," he said. "Ask Harlin about the door."\n\nSo they asked Harlin'},
    {"text": "had in of was opened a had the metabol"},
    {"text": "It was late.  He waited and waited  until dawn"},
    {"text": " ".join(f"word{k}" for k in range(60)) + " and the end"},
]
WIKITEXT = (
    " \n = Robert <unk> = \n \n Robert <unk> is an English film , television and theatre actor . "
    'He had a guest @-@ starring role ( in 2000 ) , with 1 @,@ 500 others : " Craig " . \n'
    " \n = = Career = = \n \n It rose by 3 @.@ 5 ° N in the 's of ' that ' ; [ see ] { it } ! "
    "Students ' books ? \n \n = = = 2000 – 2005 = = = \n \n He said so . \n"
    " = Du Fu = \n \n Du Fu was a prominent Chinese poet of the Tang dynasty . \n "
    + "Along with Li Bai , he is frequently called the greatest of the Chinese poets . " * 6
    + "\n"
)
SST2 = [
    ("one long string of cliches", 0),
    ("it 's a charming and often affecting journey . ", 1),
    ("unflinchingly bleak and desperate", 0),
    ("allows us to hope that nolan is poised to embark a major career", 1),
    ("the acting , costumes , music and sound are all astounding", 1),
]
GSM8K = [
    {"question": f"Ann has {k} apples and buys {k + 2} more. How many?",
     "answer": f"{k} + {k + 2} = <<{k}+{k + 2}={2 * k + 2}>>{2 * k + 2} apples.\n#### {2 * k + 2}"}
    for k in range(3, 15)
]  # fmt: skip
BLIMP = {
    "anaphor_number_agreement": [
        ("Susan revealed herself.", "Susan revealed themselves."),
        ("Many girls insulted themselves.", "Many girls insulted herself."),
        ("This person helped himself.", "This person helped themselves."),
    ],
    "wh_island": [
        ("Who should Derek hug after shocking Richard?",
         "Who should Derek hug Richard after shocking?"),
        ("Who had Karla fought before visiting Bill?", "Who had Karla fought Bill before?"),
        ("What had Theresa walked through?", "What had Theresa walked through that bank?"),
    ],
}  # fmt: skip


def drawn_model(n_ctx: int = 48) -> GPT:
    """A model with GPT-2's tokenizer whose weights are drawn from seed 0; it reads `n_ctx`."""
    cfg = GPTConfig(n_layers=2, n_heads=2, d_model=32, n_ctx=n_ctx, d_vocab=50257, init_std=0.3)
    model = init_gpt(cfg, 0).eval()
    model.tokenizer = gpt2_tokenizer()
    return model


def evaluation_files(folder: Path) -> dict[str, str]:
    """Write a file of every protocol; return what stands behind its name in `NAME=FILES`."""
    lambada, gsm8k, train = (folder / f"{name}.jsonl" for name in ("lambada", "gsm8k", "train"))
    lambada.write_text("\n".join(map(json.dumps, LAMBADA)), encoding="utf-8")
    gsm8k.write_text("\n".join(map(json.dumps, GSM8K[:2])), encoding="utf-8")
    train.write_text("\n".join(map(json.dumps, GSM8K[2:])), encoding="utf-8")
    with gzip.open(folder / "wiki.txt.gz", "wt", encoding="utf-8") as file:
        file.write(WIKITEXT)
    lines = [f"{sentence}\t{label}" for sentence, label in SST2]
    (folder / "sst2.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with zipfile.ZipFile(folder / "blimp.zip", "w") as archive:
        for name, pairs in BLIMP.items():
            rows = [{"sentence_good": good, "sentence_bad": bad} for good, bad in pairs]
            archive.writestr(f"data/{name}.jsonl", "\n".join(map(json.dumps, rows)))
            archive.writestr(f"__MACOSX/data/._{name}.jsonl", b"\x00\x05")
    return {
        "lambada": str(lambada),
        "wikitext": str(folder / "wiki.txt.gz"),
        "sst2": str(folder / "sst2.tsv"),
        "gsm8k": f"{gsm8k},{train}",
        "blimp": str(folder / "blimp.zip"),
    }
