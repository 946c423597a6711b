"""Loading of models for interpretation, and their conversion to TransformerLens.

`load` returns the module that was trained, with the calls of TransformerLens (`HookedGPT`). No
weights are folded, centred or converted, so every number read from the model is that of the
checkpoint. `transformer_lens` wraps the same weights in a `TransformerBridge`, for code that needs
one and as a reference in our tests.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from interp.errors import ModelError
from interp.hooked_model import HookedGPT
from train import convert, runs
from train.data import Tokenizer, load_tokenizer
from train.errors import TrainError, nearest_path
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
    tokenizer: str | Path | None = None,
) -> HookedGPT:
    """Load the model of a run at a step, or of a local Hugging Face folder.

    Args:
        source: A run, the folder of a run, or a folder with `config.json` and `model.safetensors`.
        step: Step of the run's checkpoint to load; None for the last.
        store: Folder of the run's token store, if it was moved after training.
        tokenizer: File or folder of a tokenizer for a model whose own is missing or not known
            (`train.data.load_tokenizer`); a trained run has its own.

    Returns:
        The model in evaluation mode, in fp32, with `tokenizer` and `origin` set. Results computed
        from the model record its origin, so results of an imported model say `weights-only`.

    Raises:
        TrainError: There is neither a run nor a Hugging Face model at `source`, or no such step.
        DamagedError: The weights do not match their digest, or are a pickle.
        ModelError: A tokenizer was given for a trained run, or it has more tokens than the model.

    Examples:
        >>> model = models.load(run)
        >>> model.cfg.n_layers, model.cfg.n_heads, model.origin.step
        (2, 4, 2100)
        >>> models.load(run, step=600).origin.step
        600
    """
    return open(source, step=step, device=device, store=store, tokenizer=tokenizer)[0]


def open(
    source: Run | str | Path,
    *,
    step: int | None = None,
    device: str = "cpu",
    store: str | Path | None = None,
    tokenizer: str | Path | None = None,
) -> tuple[HookedGPT, Run | HookedGPT]:
    """Load a model as `load` does, and also return the object from which to build its behaviours.

    That object is the run, which knows its tokenizer and its planted facts, or the model itself if
    only the weights are known.

    Examples:
        >>> model, source = models.open(run)
        >>> source is run
        True
    """
    run = source if isinstance(source, Run) else _run_at(Path(source), store)
    if run is not None and run.knowledge == "full":
        if tokenizer is not None:
            raise ModelError(f"{run.path} has the tokenizer of its token store; give no other one")
        return HookedGPT.of(run.load(step).to(device)), run
    if run is not None:
        model = HookedGPT.of(_with_tokenizer(run.load(step), tokenizer).to(device))
        return model, model
    path = Path(str(source))
    if step is not None:
        raise TrainError(f"{path} is a Hugging Face folder: it has no steps, and {step} was asked")
    imported = convert.import_huggingface(path)
    model = imported.model
    model.tokenizer = imported.tokenizer
    model.origin = Origin(path.resolve().name, 0, imported.sha256, "weights-only")
    hooked = HookedGPT.of(_with_tokenizer(model, tokenizer).eval().to(device))
    return hooked, hooked


def _with_tokenizer(model: GPT, path: str | Path | None) -> GPT:
    """Give a model the tokenizer of a file or folder, if one is named."""
    if path is not None:
        found = load_tokenizer(path)
        if found.vocab_size > model.cfg.d_vocab:
            raise ModelError(
                f"{path}: the tokenizer has {found.vocab_size} tokens, the model "
                f"{model.cfg.d_vocab}: they do not belong together"
            )
        model.tokenizer = found
    return model


def _run_at(path: Path, store: str | Path | None) -> Run | None:
    """Open the run in a folder; return None for a Hugging Face model."""
    convert.refuse_pickle(path)
    if path.is_file() or (path / runs.MANIFEST).is_file():
        return runs.open(path, store=store)
    if not (path / "config.json").is_file():
        raise TrainError(
            f"neither a run ({runs.MANIFEST}) nor a Hugging Face model (config.json) lies at {path}"
            + nearest_path(path, runs.MANIFEST, "config.json")
        )
    return None


def transformer_lens(
    source: Run | GPT | str | Path, *, step: int | None = None
) -> "TransformerBridge":
    """Wrap the same, unprocessed weights in a TransformerLens 4 `TransformerBridge`.

    Nothing is downloaded. Only architectures with a Hugging Face class can be converted: those of
    GPT-2, Llama, GPT-NeoX (Pythia), Mistral, Qwen2 and Qwen3. The bridge gets the model's
    tokenizer, and `to_tokens` gives the same tokens on both sides, with one exception: the bridge
    encodes the literal end-of-text string as the separator token, while our tokenizer treats it as
    ordinary text. If the model has no tokenizer, the bridge has none either and accepts token ids
    only.

    Raises:
        ModelError: The architecture has no Hugging Face counterpart.
    """
    model = source if isinstance(source, GPT) else load(source, step=step)
    try:
        twin = convert.to_huggingface(model)
    except TrainError as error:
        raise ModelError(f"TransformerLens cannot hold this model: {error}") from error
    # Imported here because it takes five seconds and 240 MB.
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    bridge = build_bridge_from_module(
        twin, type(twin).__name__, hf_config=twin.config, tokenizer=None, model_name="openbook"
    )
    if model.tokenizer is not None:
        # Set after construction. A tokenizer passed to the constructor would be loaded again by its
        # name and would encode the text "a", which a vocabulary of words may lack, to find out
        # whether it adds end-of-text tokens; the next line states that it does not.
        bridge.cfg.tokenizer_prepends_bos = bridge.cfg.tokenizer_appends_eos = False
        bridge.tokenizer = _fast(model.tokenizer)
    return bridge


def _fast(tokenizer: Tokenizer) -> "PreTrainedTokenizerFast":
    """Return the same tokenizer as a class of `transformers`."""
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
