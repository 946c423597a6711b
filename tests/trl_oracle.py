"""Losses and gradients of trl on one batch, for `tests/train/trainer/test_trl.py`.

It runs in an environment of its own that has trl: `python trl_oracle.py FOLDER`. FOLDER holds
`model` and `reference` (Hugging Face checkpoints) and `batch.json`; it writes `trl.safetensors`.
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]
from trl.trainer.dpo_trainer import DataCollatorForPreference  # pyright: ignore[reportMissingImports]
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling  # pyright: ignore[reportMissingImports]


def words() -> PreTrainedTokenizerFast:
    """A tokenizer that the trainers need to be made; the batches hold ids already."""
    engine = Tokenizer(models.WordLevel({"<eot>": 0, "a": 1, "b": 2, "c": 3}, unk_token="<eot>"))
    engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=engine, eos_token="<eot>", pad_token="<eot>", unk_token="<eot>"
    )


def common(folder: Path) -> dict:
    return {
        "output_dir": str(folder / "trainer"),
        "use_cpu": True,
        "report_to": [],
        "bf16": False,
        "max_length": None,
        "gradient_checkpointing": False,
    }


def gradients(model: torch.nn.Module, loss: torch.Tensor, name: str) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    found = {
        f"{name}/{key}": one.grad.clone().contiguous()
        for key, one in model.named_parameters()
        if one.grad is not None
    }
    return found | {f"{name}.loss": loss.detach()[None]}


def main(folder: Path) -> None:
    batch = json.loads((folder / "batch.json").read_text())
    found = {}
    for name in ("dpo", "sft"):
        model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
        if name == "dpo":
            trainer = DPOTrainer(
                model=model,
                ref_model=AutoModelForCausalLM.from_pretrained(
                    folder / "reference", dtype=torch.float32
                ),
                args=DPOConfig(**common(folder), beta=batch["beta"]),
                train_dataset=Dataset.from_list(
                    [{"prompt": "a", "chosen": " b", "rejected": " c"}] * 2
                ),
                processing_class=words(),
            )
            inputs = DataCollatorForPreference(pad_token_id=batch["eot"])(batch["pairs"])
        else:
            trainer = SFTTrainer(
                model=model,
                args=SFTConfig(**common(folder)),
                train_dataset=Dataset.from_list([{"text": "a b"}] * 2),
                processing_class=words(),
            )
            rows = [
                {
                    "input_ids": row["prompt_ids"] + row["response_ids"],
                    "labels": [-100] * len(row["prompt_ids"]) + row["response_ids"],
                }
                for row in batch["instructions"]
            ]
            inputs = DataCollatorForLanguageModeling(pad_token_id=batch["eot"])(rows)
        trainer.model.eval()
        found |= gradients(trainer.model, trainer.compute_loss(trainer.model, inputs), name)
    save_file(found, folder / "trl.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
