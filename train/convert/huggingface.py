"""Import and export of Hugging Face folders, and import of nanoGPT checkpoints.

An import is checked: every tensor must be used, none may be missing, and a configuration that the
decoder does not compute exactly is an error. Its training data are unknown, so its knowledge level
is `weights-only`.

Pickles can run code. nanoGPT's `ckpt.pt` is read by torch's restricted reader (`weights_only`);
every other pickle is refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save
from torch import Tensor

from train import storage
from train.convert import foreign_weights, layouts, safe_loading
from train.convert.foreign_config import ForeignConfig, Keys
from train.convert.foreign_weights import Weights
from train.convert.layouts import LAYOUTS, Layout, Place
from train.convert.safe_loading import NOT_READ, WEIGHTS
from train.data import TOKENIZER_FILES, Tokenizer, load_tokenizer
from train.errors import DamagedError, RecipeError, TokenizerError, TrainError
from train.model import GPT, GPTConfig
from train.short_repr import short_repr


if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Imported", "export_huggingface", "import_huggingface", "import_nanogpt"]
__all__ += ["to_huggingface"]

UNEMBED = "lm_head.weight"  # whatever it is called in the file (`Layout.unembed`)
# nanoGPT's default: GPT-2's 50,257 rounded up to a multiple of 64; 47 rows are never a target.
NANOGPT_PADDED, GPT2_VOCABULARY = 50_304, 50_257
NANOGPT_KEYS = Keys(
    read=frozenset(("n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size")),
    harmless=frozenset(("dropout",)),  # off in evaluation
)


@dataclass(frozen=True)
class Imported:
    """An imported model.

    Attributes:
        tokenizer: Its tokenizer, or None if there is no readable one; `model.no_tokenizer` says
            why.
        description: One line with the model's kind, its size and its knowledge level.
        sha256: Digest of the weights file, or of the files' digests if there are several.
    """

    model: GPT
    tokenizer: Tokenizer | None
    description: str
    sha256: str

    __repr__ = short_repr


def import_huggingface(folder: str | Path) -> Imported:
    """Import a local Hugging Face folder of a known model type; weights become fp32.

    Known are gpt2, llama, gpt_neox (Pythia), mistral, qwen2 and qwen3.

    Raises:
        TrainError: There is no such folder.
        DamagedError: A file is missing, damaged, or a pickle.
        RecipeError: The decoder does not have the architecture of the configuration.

    Examples:
        >>> path = convert.export_run(run, out=folder / "gpt2")
        >>> imported = convert.import_huggingface(path)
        >>> imported.model.cfg.n_layers, imported.tokenizer.vocab_size
        (2, 976)
    """
    folder = Path(folder)
    safe_loading.refuse_pickle(folder)
    if not folder.is_dir():
        raise TrainError(f"{folder} is no folder; give one with config.json and {WEIGHTS}")
    config = safe_loading.read_json(folder / "config.json")
    layout = _layout(config, folder)
    paths = safe_loading.weight_paths(folder)
    checked = ForeignConfig(config, layout.keys, folder / "config.json")
    cfg = _architecture(layout, checked)
    with foreign_weights.safetensors_weights(paths) as weights:
        theirs = _whole(layout, cfg, weights)
        theirs = _with_zeros(layout.without(checked, cfg), theirs, paths[0])
        model = _filled_model(cfg, layout.places(cfg), theirs, paths[0])
    model.tokenizer, said = _read_tokenizer(folder, cfg)
    if model.tokenizer is None:
        model.no_tokenizer, said = said, f"without a tokenizer ({said})"
    precision = str(next(iter(theirs.values())).dtype).removeprefix("torch.")
    description = (
        f"Hugging Face {config['model_type']} folder {folder.name}, {cfg.n_layers} layers, "
        f"{cfg.n_params:,} parameters saved as {precision}, {said}; weights only"
    )
    return Imported(model, model.tokenizer, description, safe_loading.digest(paths))


def import_nanogpt(path: str | Path, *, d_vocab: int | None = None, mlp: str = "gelu") -> Imported:
    """Import nanoGPT's `ckpt.pt`, compiled or not, with torch's restricted reader.

    Args:
        d_vocab: Size of the vocabulary without padding. None means 50,257 (GPT-2's) if there are
            50,304 rows, and otherwise the number of rows. The logits of padding are dropped.
        mlp: Kind of MLP. nanoGPT computes the exact GELU; use "gelu-tanh" for a checkpoint from
            its first months.

    Raises:
        DamagedError: The file is another pickle, or is incomplete.
        RecipeError: No padding leads from `d_vocab` to the rows of the checkpoint.
    """
    path = Path(path)
    saved = safe_loading.read_restricted(path)
    if not isinstance(saved, dict) or not {"model", "model_args"} <= saved.keys():
        raise DamagedError(
            f"{path}: a pickle that is no nanoGPT checkpoint (no `model` and `model_args`); "
            "safetensors is accepted, as a Hugging Face folder"
        )
    args, weights = saved["model_args"], saved["model"]
    if not isinstance(args, dict) or not isinstance(weights, dict):
        raise DamagedError(f"{path}: `model` and `model_args` are no dictionaries")
    pairs = weights.items()
    if odd := [key for key, one in pairs if not isinstance(one, Tensor) or type(key) is not str]:
        raise DamagedError(f"{path}: {odd[0]!r} in `model` is no tensor")
    for name, one in weights.items():
        safe_loading.refuse_hollow(one, f"{path}: {name}")
    if missing := NANOGPT_KEYS.read - args.keys():
        raise DamagedError(f"{path}: model_args does not say {', '.join(sorted(missing))}")
    said = ForeignConfig(args, NANOGPT_KEYS, path)
    rows = said.integer("vocab_size")
    d_vocab = d_vocab or (GPT2_VOCABULARY if rows == NANOGPT_PADDED else rows)
    cfg = GPTConfig(
        n_layers=said.integer("n_layer"),
        n_heads=said.integer("n_head"),
        d_model=said.integer("n_embd"),
        n_ctx=said.integer("block_size"),
        d_vocab=d_vocab,
        # The smallest multiple that pads to these rows; any other such one gives the same model.
        vocab_multiple=1 if rows == d_vocab else _multiple(d_vocab, rows),
        bias=said.flag("bias", default=True),
        mlp=mlp,
    )
    step = saved.get("iter_num", "unknown")
    del saved, weights  # the file is mapped anew from time to time

    def weights_again() -> dict[str, Tensor]:
        content = safe_loading.read_restricted(path)
        assert isinstance(content, dict)
        return content["model"]

    theirs = foreign_weights.mapped_weights(path, weights_again)
    model = _filled_model(cfg, layouts.gpt2_places(cfg, turned=False), theirs, path)
    description = (
        f"nanoGPT checkpoint {path.name} at step {step}, "
        f"{cfg.n_layers} layers, {cfg.n_params:,} parameters, no tokenizer in it; weights only"
    )
    return Imported(model, None, description, storage.sha256_file(path))


def export_huggingface(model: GPT, tokenizer: Tokenizer | None, out: str | Path) -> Path:
    """Write a folder that `transformers` opens with the class that computes the same.

    The classes of GPT-2 and GPT-NeoX always have biases, so a model without biases gets zeros.
    Padding is cut off.

    Raises:
        RecipeError: No Hugging Face class computes this architecture.
        TrainError: `out` exists.

    Examples:
        >>> path = convert.export_huggingface(model, store.tokenizer, folder / "gpt2")
        >>> sorted(file.name for file in path.iterdir())
        ['config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json']
    """
    out = Path(out)
    config, weights = _export(model, tokenizer)
    if out.exists():
        raise TrainError(f"{out} exists; choose a folder that does not")
    if UNEMBED in weights:
        weights[LAYOUTS[str(config["model_type"])].unembed] = weights.pop(UNEMBED)
    with storage.new_folder(out) as folder:
        storage.write_json(folder / "config.json", config)
        storage.write_bytes(folder / WEIGHTS, save(weights, metadata={"format": "pt"}))
        if tokenizer is not None:
            tokenizer.save(folder / "tokenizer.json")
            storage.write_json(
                folder / "tokenizer_config.json", _tokenizer_config(model, tokenizer)
            )
    return out


def to_huggingface(model: GPT) -> "PreTrainedModel":
    """Copy the weights into an instance of the `transformers` class that computes the same.

    Raises:
        RecipeError: No Hugging Face class computes this architecture.
    """
    # Imported here, because it takes half a second.
    import transformers

    config, weights = _export(model, model.tokenizer)
    if config["tie_word_embeddings"]:
        weights[UNEMBED] = next(iter(weights.values()))  # the embedding comes first
    kind = getattr(transformers, LAYOUTS[str(config["model_type"])].class_name)
    # The constructor draws random weights, which `load_state_dict` then replaces.
    with torch.random.fork_rng(devices=[]):
        twin = kind(kind.config_class.from_dict(config))
    twin.load_state_dict(weights)
    return twin.eval()


# --- reading -------------------------------------------------------------------------------------


def _layout(config: storage.JsonObject, folder: Path) -> Layout:
    kind = config.get("model_type")
    if kind not in LAYOUTS:
        raise RecipeError(
            f"{folder.name} is a {kind!r} model, which is not computed here; "
            f"{', '.join(LAYOUTS)} are"
        )
    return LAYOUTS[kind]


def _architecture(layout: Layout, config: ForeignConfig) -> GPTConfig:
    try:
        return layout.architecture(config)
    except RecipeError as error:  # also those of GPTConfig, which know no file
        said = str(error).removeprefix(f"{config.path}: ")
        raise RecipeError(f"{config.path}: {said}") from None


def _filled_model(cfg: GPTConfig, places: Iterator[Place], theirs: Weights, path: Path) -> GPT:
    """Return a model with the weights; they are read only if all are there with right shapes."""
    listed = list(places)
    with torch.device("meta"):  # without memory for sizes that the tensors do not have
        expected = {name: value.shape for name, value in GPT(cfg).state_dict().items()}
    try:
        layouts.check_shapes(listed, theirs, expected)
    except TrainError as error:
        raise DamagedError(f"{path}: {error}") from None
    assert expected.keys() == {place.ours for place in listed}, "a weight has no place"
    unused = theirs.keys() - {name for place in listed for name in place.theirs}
    model = GPT(cfg)
    ours = model.state_dict()
    # A tied unembedding may also be saved separately, but then it must equal the embedding.
    if not unused - {"lm_head.weight"}:
        layouts.copy_theirs(listed, theirs, ours)
        unused = {name for name in unused if not theirs[name].equals(ours["embed.weight"])}
    if unused:
        raise DamagedError(
            f"{path}: {len(unused)} tensors have no place in this architecture: {min(unused)}"
        )
    return model.eval()


def _whole(layout: Layout, cfg: GPTConfig, theirs: Weights) -> Weights:
    """Return the weights under the names of the model with its head.

    A base model, saved without its head, lacks a prefix. Of two tied tensors one may be missing.
    """
    if layout.unembed in theirs and UNEMBED not in theirs:
        theirs = {UNEMBED if k == layout.unembed else k: value for k, value in theirs.items()}
    table = f"{layout.base}{layout.table}"
    if table not in theirs and layout.table in theirs:
        theirs = {
            name if name.startswith("lm_head.") else f"{layout.base}{name}": value
            for name, value in theirs.items()
        }
    if cfg.tie and table not in theirs and "lm_head.weight" in theirs:
        theirs = {**theirs, table: theirs["lm_head.weight"]}
    return theirs


def _with_zeros(names: list[str], theirs: Weights, path: Path) -> Weights:
    """Return the weights with zeros for biases that the configuration says there are not."""
    if odd := theirs.keys() & set(names):
        raise DamagedError(f"{path}: holds {min(odd)}, and config.json says that it has no bias")
    weights = {name: name.removesuffix("bias") + "weight" for name in names}
    found = {name: theirs[one].shape for name, one in weights.items() if one in theirs}
    return theirs | {
        name: foreign_weights.zeros(path, name, shape[0] if shape else 1)
        for name, shape in found.items()
    }


def _read_tokenizer(folder: Path, cfg: GPTConfig) -> tuple[Tokenizer | None, str]:
    """Return the tokenizer of a folder and a phrase that describes it; or None and the reason.

    A tokenizer that cannot be read never keeps the weights from being opened.
    """
    if (folder / NOT_READ).is_file():
        return None, storage.read_foreign_text(folder / NOT_READ).strip()
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None, f"there is no {' and no '.join(TOKENIZER_FILES)}"
    try:
        found = load_tokenizer(folder)
    except (TokenizerError, DamagedError) as error:
        return None, str(error)
    if found.vocab_size > cfg.d_vocab:
        return None, (
            f"the tokenizer in {folder.name} has {found.vocab_size} tokens, the model "
            f"{cfg.d_vocab}: they do not belong together"
        )
    return found, f"{found.kind} tokenizer of {found.vocab_size}"


def _multiple(d_vocab: int, rows: int) -> int:
    multiples = (m for m in range(1, rows + 1) if -(-d_vocab // m) * m == rows)
    found = next(multiples, None)
    if found is None:
        raise RecipeError(f"d_vocab is {d_vocab}, and the checkpoint has {rows} rows")
    return found


# --- writing -------------------------------------------------------------------------------------


def _export(model: GPT, tokenizer: Tokenizer | None) -> tuple[dict[str, object], dict[str, Tensor]]:
    """Return configuration and weights under Hugging Face's names."""
    kind = layouts.layout_of(model.cfg)
    layout = LAYOUTS[kind]
    eot = None if tokenizer is None else tokenizer.eot
    config = {
        "model_type": kind,
        "architectures": [layout.class_name],
        "vocab_size": model.cfg.d_vocab,
        "tie_word_embeddings": model.cfg.tie,
        "initializer_range": model.cfg.init_std,
        "bos_token_id": eot,
        "eos_token_id": eot,
        "dtype": "float32",
        **layout.config(model.cfg),
    }
    # With `bias=True` biases are listed as well; `to_theirs` fills missing ones with zeros.
    named = replace(model.cfg, bias=True) if layout.always_biased else model.cfg
    return config, layouts.to_theirs(model.cfg, layout.places(named), model.state_dict())


def _tokenizer_config(model: GPT, tokenizer: Tokenizer) -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokenizer.eot_text,
        "eos_token": tokenizer.eot_text,
        "model_max_length": model.cfg.n_ctx,
        "clean_up_tokenization_spaces": False,
    }
