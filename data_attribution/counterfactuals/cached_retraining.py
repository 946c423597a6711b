"""Retraining in memory, of which only the final weights are kept.

`train.trainer.retrain_without` makes a run of every retraining: ledger, manifest, regular
checkpoints. Evaluations need many retrainings and only the final weights of each, so here the same
step function (`train.trainer.training_steps`) is called on a state in memory. The weights are
bit-identical to those of a retrained run.

The two are not one function with an option, because a run must be resumable and verifiable: its
manifest records a removal that holds for all steps, and it is trained with its parent's numerics;
here a removal may begin at a later step (`first`), and the CPU stands in for a missing device.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import safetensors.torch

from data_attribution.counterfactuals import document_sets
from train import storage, trainer
from train.data import DocumentRemoval
from train.errors import DamagedError
from train.model import GPT, gpt_with_weights
from train.numerics import Numerics, applied, on_this_machine
from train.progress import Progress
from train.runs import Run
from train.trainer import TrainState


__all__ = ["Retrainings"]


MOST_BYTES = 1 << 37  # of weights, which are read whole


@dataclass(frozen=True)
class Retrainings:
    """Retrainer of one run without documents, for any number of document sets.

    Attributes:
        mode: How documents are removed: `blank` or `loss`, as in `train.data.DocumentRemoval`.
        first: Step from which the documents are removed; None: wherever they were read. If given,
            only the steps from there on are trained again, and what was read before stays.
        out: Folder where final weights are stored, and reused if the same documents were removed
            before; None: they are not stored.
    """

    run: Run
    mode: str = "blank"
    first: int | None = None
    out: Path | None = None

    def without(self, documents: Sequence[int], progress: Progress | None = None) -> GPT:
        """Return the model at the end of training without `documents`.

        Raises:
            CounterfactualError: There are no documents, or one that is not read in these steps.
            DamagedError: Stored weights do not match the digest in their file's name.
        """
        removed = document_sets.checked_documents(self.run, documents, first=self.first or 0)
        kept = self._kept(removed)
        if kept:
            return self._read(kept)
        state = self._begun(removed)
        joined = DocumentRemoval(removed, self.mode).joined(self.run.removal)
        self._advance(state, self._last, joined, progress)
        self._keep(removed, state.model)
        return self._named(state.model)

    def _begun(self, removed: tuple[int, ...]) -> TrainState:
        """Return the state before the first step that differs from the run's."""
        if self.first is None:
            first = trainer.first_step_reading(self.run, removed)
            return trainer.load_state(self.run, first, self._numerics)
        # One state is the start of all retrainings. The optimizer's keys are the parameters, so
        # both must be copied together.
        return copy.deepcopy(self._window)

    @cached_property
    def _window(self) -> TrainState:
        state = trainer.load_state(self.run, self.first or 0, self._numerics)
        self._advance(state, self.first or 0, self.run.removal, None)
        return state

    @cached_property
    def _last(self) -> int:
        """Return the step of the run's last checkpoint, where retraining ends.

        If a run was stopped, its weights are those of that step.
        """
        return self.run.saved_at(None).step

    @cached_property
    def _numerics(self) -> Numerics:
        return on_this_machine(self.run.numerics)

    def _advance(
        self,
        state: TrainState,
        stop: int,
        removal: DocumentRemoval | None,
        progress: Progress | None,
    ) -> None:
        run, numerics = self.run, self._numerics
        with applied(numerics):
            for row in trainer.run_steps(run, state, stop, numerics=numerics, removal=removal):
                if progress:
                    progress("retraining", row.step + 1, stop)

    def _name(self, removed: tuple[int, ...]) -> str:
        asked = f"{self.run.id} {self.mode} {self.first} {self._numerics} {removed}"
        if not self.run.finished:
            asked += f" to {self._last}"
        return sha256(asked.encode()).hexdigest()[:16]

    def _kept(self, removed: tuple[int, ...]) -> Path | None:
        """Return the file of these weights, or None.

        Its name holds digests of the request and of the content.
        """
        if self.out is None:
            return None
        return next(self.out.glob(f"{self._name(removed)}-*.safetensors"), None)

    def _keep(self, removed: tuple[int, ...], model: GPT) -> None:
        if self.out is None:
            return
        weights = {name: one.cpu().contiguous() for name, one in model.state_dict().items()}
        content = safetensors.torch.save(weights)
        self.out.mkdir(parents=True, exist_ok=True)
        name = f"{self._name(removed)}-{sha256(content).hexdigest()[:16]}.safetensors"
        storage.write_bytes(self.out / name, content)

    def _read(self, path: Path) -> GPT:
        content = storage.read_foreign_bytes(path, most_bytes=MOST_BYTES)
        if path.stem.rpartition("-")[2] != sha256(content).hexdigest()[:16]:
            raise DamagedError(
                f"{path}: the weights are not what the file's name says; remove it, and it is "
                "trained again"
            )
        with storage.reading(path):
            weights = safetensors.torch.load(content)
        return self._named(gpt_with_weights(self.run.recipe.model, weights, path))

    def _named(self, model: GPT) -> GPT:
        """Return the model as `Run.load` does; its origin is not a checkpoint."""
        model = model.cpu().eval()
        model.tokenizer = self.run.tokenizer
        model.origin = None
        return model
