"""Weights of a run that was trained again without some documents, and nothing of it kept but them.

`train.trainer.retrain_without` makes a run of every retraining: ledger, manifest, a checkpoint
every so often. Evaluations need many retrainings and of each the last weights only, so here the
same step function (`train.trainer.training_steps`) is called on a state in memory. The weights are
the branch's to the last bit.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import safetensors.torch

from data_attribution.counterfactuals import document_sets
from train import storage, trainer
from train.data import DocumentRemoval
from train.errors import DamagedError
from train.model import GPT
from train.numerics import Numerics, applied, on_this_machine
from train.runs import Run
from train.trainer import TrainState


__all__ = ["Retrainings"]

Progress = Callable[[str, int, int | None], None] | None


@dataclass(frozen=True)
class Retrainings:
    """Trains one run again without documents, as often as it is asked to.

    Attributes:
        mode: `blank` or `loss`, as `train.data.DocumentRemoval` has it.
        first: The step from which the documents are left out; None: wherever they were read.
            With it only the steps from there on are done again, and what was read before stays.
        out: Folder where last weights are kept, and taken from when they were asked for before.
    """

    run: Run
    mode: str = "blank"
    first: int | None = None
    out: Path | None = None

    def without(self, documents: Sequence[int], progress: Progress = None) -> GPT:
        """The model at the end of training without `documents`.

        Raises:
            CounterfactualError: No documents, or one that is not read in these steps.
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
        """The state before the first step that differs from the run's."""
        if self.first is None:
            first = trainer.first_step_reading(self.run, removed)
            return trainer.load_state(self.run, first, self._numerics)
        # One state serves all; the optimizer's keys are the parameters, so both are copied at once.
        return copy.deepcopy(self._window)

    @cached_property
    def _window(self) -> TrainState:
        state = trainer.load_state(self.run, self.first or 0, self._numerics)
        self._advance(state, self.first or 0, self.run.removal, None)
        return state

    @cached_property
    def _last(self) -> int:
        """As far as the run went: a run that was stopped has its weights from there."""
        return self.run.saved_at(None).step

    @cached_property
    def _numerics(self) -> Numerics:
        return on_this_machine(self.run.numerics)

    def _advance(
        self, state: TrainState, stop: int, removal: DocumentRemoval | None, progress: Progress
    ) -> None:
        run, numerics = self.run, self._numerics
        with applied(numerics):
            rows = trainer.training_steps(
                state, run.recipe, run.store, run.order, numerics, stop, removal
            )
            for row in rows:
                if progress:
                    progress("retraining", row.step + 1, stop)

    def _name(self, removed: tuple[int, ...]) -> str:
        asked = f"{self.run.id} {self.mode} {self.first} {self._numerics} {removed}"
        if not self.run.finished:
            asked += f" to {self._last}"
        return sha256(asked.encode()).hexdigest()[:16]

    def _kept(self, removed: tuple[int, ...]) -> Path | None:
        """The file of these weights; its name holds what was asked and the content's sha256."""
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
        content = path.read_bytes()
        if path.stem.rpartition("-")[2] != sha256(content).hexdigest()[:16]:
            raise DamagedError(
                f"{path}: the weights are not what the file's name says; remove it, and it is "
                "trained again"
            )
        model = GPT(self.run.recipe.model)
        model.load_state_dict(safetensors.torch.load(content))
        return self._named(model)

    def _named(self, model: GPT) -> GPT:
        """The model as `Run.load` gives it; its origin is no checkpoint."""
        model = model.cpu().eval()
        model.tokenizer = self.run.tokenizer
        model.origin = None
        return model
