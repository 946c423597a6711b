"""Import and export of models: Hugging Face folders, nanoGPT checkpoints and GGUF files."""

from typing import TYPE_CHECKING

from train.front_door import names_on_first_use


if TYPE_CHECKING:
    from train.convert.gguf import gguf_to_huggingface
    from train.convert.huggingface import (
        export_huggingface,
        import_huggingface,
        import_nanogpt,
        to_huggingface,
    )
    from train.convert.imported_run import export_run, import_run
    from train.convert.pretrained import fetch_pretrained
    from train.convert.safe_loading import refuse_pickle

__all__ = [
    "export_huggingface",
    "export_run",
    "fetch_pretrained",
    "gguf_to_huggingface",
    "import_huggingface",
    "import_nanogpt",
    "import_run",
    "refuse_pickle",
    "to_huggingface",
]

__getattr__ = names_on_first_use(__name__, __file__)
