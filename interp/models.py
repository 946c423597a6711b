"""A model ready to be opened up, and the bridge to TransformerLens, which is met here only.

What is loaded is the very module that was trained: no weights are folded, centred or converted, so
a number read from it is the checkpoint's. `transformer_lens` hands the same weights to a
`TransformerBridge` for code that wants one, and to our tests as an oracle.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from interp.errors import ModelError
from train import convert, runs
from train.data import Tokenizer
from train.errors import TrainError
from train.model import GPT
from train.runs import Origin, Run


if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerFast

__all__ = ["load", "open", "transformer_lens"]


def load(
    source: Run | str | Path,
    *,
    step: int | None = None,
    device: str = "cpu",
    store: str | Path | None = None,
) -> GPT:
    """The hooked model of a run at a step, or of a local Hugging Face folder.

    Args:
        source: A run, the folder of one, or a folder with `config.json` and `model.safetensors`.
        step: A checkpoint of the run (None: the last).
        store: The run's token store, when it has moved since training.

    Returns:
        The model in evaluation mode, fp32, with `tokenizer` and `origin` set; results computed from
        it carry the origin, so an import says `weights-only` wherever it is shown.

    Raises:
        TrainError: There is no run and no Hugging Face model at `source`, or no such step.
        DamagedError: The weights are not what their digest says, or a pickle.
    """
    return open(source, step=step, device=device, store=store)[0]


def open(
    source: Run | str | Path,
    *,
    step: int | None = None,
    device: str = "cpu",
    store: str | Path | None = None,
) -> tuple[GPT, Run | GPT]:
    """The model as `load` gives it, and whatever its behaviours are to be worded by.

    That is the run, which knows its tokenizer and what was planted; or the model itself, when all
    that is known of its training is its weights.
    """
    run = source if isinstance(source, Run) else _run_at(Path(source), store)
    if run is not None:
        model = run.load(step).to(device)
        return model, model if run.knowledge == "weights-only" else run
    path = Path(str(source))
    if step is not None:
        raise TrainError(f"{path} is a Hugging Face folder: it has no steps, and {step} was asked")
    imported = convert.import_huggingface(path)
    model = imported.model
    model.tokenizer = imported.tokenizer
    model.origin = Origin(path.resolve().name, 0, imported.sha256, "weights-only")
    model = model.eval().to(device)
    return model, model


def _run_at(path: Path, store: str | Path | None) -> Run | None:
    """The run in a folder; None for a Hugging Face model."""
    convert.refuse_pickle(path)
    if path.is_file() or (path / runs.MANIFEST).is_file():
        return runs.open(path, store=store)
    if not (path / "config.json").is_file():
        raise TrainError(
            f"neither a run ({runs.MANIFEST}) nor a Hugging Face model (config.json) lies at {path}"
        )
    return None


def transformer_lens(
    source: Run | GPT | str | Path, *, step: int | None = None
) -> "TransformerBridge":
    """The same weights as a TransformerLens 4 `TransformerBridge`, unprocessed; asks no hub.

    Only architectures that Hugging Face has a class for can cross: GPT-2's (learned positions,
    pre-LayerNorm) and Llama's (rotary, RMSNorm, SwiGLU). The model's tokenizer goes along, and
    `to_tokens` means the same on both sides, with one exception: there the literal text of
    end-of-text becomes the separator, here it is ordinary text. Without a tokenizer the bridge has
    none either, and takes ids only.

    Raises:
        ModelError: The architecture has no counterpart.
    """
    model = source if isinstance(source, GPT) else load(source, step=step)
    try:
        twin = convert.to_huggingface(model)
    except TrainError as error:
        raise ModelError(f"TransformerLens cannot hold this model: {error}") from error
    # Five seconds and 240 MB: only who asks for a bridge pays for it.
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    bridge = build_bridge_from_module(
        twin, type(twin).__name__, hf_config=twin.config, tokenizer=None, model_name="openbook"
    )
    if model.tokenizer is not None:
        # Set afterwards: given at once, the bridge would open it again by name, and encode the text
        # "a", which a vocabulary of words may not hold, to learn what is said here.
        bridge.cfg.tokenizer_prepends_bos = bridge.cfg.tokenizer_appends_eos = False
        bridge.tokenizer = _fast(model.tokenizer)
    return bridge


def _fast(tokenizer: Tokenizer) -> "PreTrainedTokenizerFast":
    """The same tokenizer as a class of `transformers`."""
    from tokenizers import Tokenizer as Engine
    from transformers import PreTrainedTokenizerFast

    eot = tokenizer.eot_text
    return PreTrainedTokenizerFast(
        tokenizer_object=Engine.from_str(tokenizer.json),
        name_or_path="openbook",
        bos_token=eot,
        eos_token=eot,
        pad_token=eot,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
