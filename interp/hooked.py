"""A model ready to be opened up, and the bridge to TransformerLens, which is met here only.

What is loaded is the very module that was trained: no weights are folded, centred or converted, so
a number read from it is the checkpoint's. `transformer_lens` hands the same weights to a
`TransformerBridge` for code that wants one, and to our tests as an oracle.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from interp.errors import ModelError
from train import exchange, runs
from train.errors import TrainError
from train.model import GPT
from train.runs import Origin, Run


if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

__all__ = ["load", "transformer_lens"]


def load(source: Run | str | Path, *, step: int | None = None, device: str = "cpu") -> GPT:
    """The hooked model of a run at a step, or of a local Hugging Face folder.

    Args:
        source: A run, the folder of one, or a folder with `config.json` and `model.safetensors`.
        step: A checkpoint of the run (None: the last).

    Returns:
        The model in evaluation mode, fp32, with `tokenizer` and `origin` set; results computed from
        it carry the origin, so an import says `weights-only` wherever it is shown.

    Raises:
        TrainError: There is no run and no Hugging Face model at `source`, or no such step.
        DamagedError: The weights are not what their digest says.
    """
    if isinstance(source, Run):
        return source.load(step).to(device)
    path = Path(source)
    if (path / "manifest.json").is_file():
        return runs.open(path).load(step).to(device)
    if not (path / "config.json").is_file():
        raise TrainError(
            f"neither a run (manifest.json) nor a Hugging Face model (config.json) lies at {path}"
        )
    if step is not None:
        raise TrainError(f"{path} is a Hugging Face folder: it has no steps, and {step} was asked")
    imported = exchange.import_huggingface(path)
    model = imported.model
    model.tokenizer = imported.tokenizer
    model.origin = Origin(path.name, 0, imported.sha256, "weights-only")
    return model.eval().to(device)


def transformer_lens(
    source: Run | GPT | str | Path, *, step: int | None = None
) -> "TransformerBridge":
    """The same weights as a TransformerLens 4 `TransformerBridge`, unprocessed.

    Only architectures that Hugging Face has a class for can cross: GPT-2's (learned positions,
    pre-LayerNorm) and Llama's (rotary, RMSNorm, SwiGLU). Text must be tokenized by our model: the
    bridge would put end-of-text in front and has no tokenizer here.

    Raises:
        ModelError: The architecture has no counterpart.
    """
    model = source if isinstance(source, GPT) else load(source, step=step)
    try:
        twin = exchange.to_huggingface(model)
    except TrainError as error:
        raise ModelError(f"TransformerLens cannot hold this model: {error}") from error
    # Five seconds and 240 MB: only who asks for a bridge pays for it.
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(
        twin.config.name_or_path or "openbook", hf_model=twin, tokenizer=_NoTokenizer()
    )


class _NoTokenizer:
    """Stands where TransformerLens wants a tokenizer, so that it does not ask a hub for one."""
