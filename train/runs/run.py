"""The class `Run`: a training run on disk, with its recipe, data, order and checkpoints.

    run/ manifest.json     inputs, recipe and digests (train.runs.manifest)
         ledger.jsonl      one row per training step (train.runs.ledger)
         watch.jsonl       scores measured during training (train.runs.monitor_log)
         checkpoints/      weights by step (train.runs.checkpoints)

`open` reads only the manifest. Weights are loaded only if their digest is right.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Int64

from train import html_panel, recipes, storage
from train.data import (
    DataOrder,
    DocumentRemoval,
    LateOrder,
    Order,
    PublishedOrder,
    RecordedOrder,
    RemovalChoice,
    Tokenizer,
    TokenStore,
    documents_read,
    first_steps_reading,
    load_tokenizer,
    open_published_order,
    open_store,
    record_nanogpt_order,
)
from train.errors import DamagedError, StoreError, TrainError, nearest_path
from train.model import GPT, GPTConfig
from train.numerics import Numerics
from train.recipes import Recipe
from train.runs import checkpoints, ledger, manifest, monitor_log
from train.runs.checkpoints import Checkpoint
from train.runs.tuning_base import Base


__all__ = ["SCHEDULE", "Origin", "Run", "open", "order_of", "record_schedule"]

SCHEDULE = manifest.SCHEDULE
MOST_BYTES = 1 << 28  # of a tokenizer
NPY_HEADER = 1 << 12  # at most, of an array of numpy


@dataclass(frozen=True)
class Origin:
    """The origin of a model's weights; every result computed from the model records it.

    Attributes:
        run_id: Id of the run, or name of the folder for weights that are not a run.
        step: Step of the checkpoint.
        checkpoint_sha256: Digest of the weights file that was loaded.
        knowledge: Knowledge level: `full`, `data-known` or `weights-only`.
    """

    run_id: str
    step: int
    checkpoint_sha256: str
    knowledge: str


@dataclass(frozen=True)
class Run:
    """A run on disk; everything but the manifest is read on first use.

    Examples:
        >>> run.recipe.steps, run.config.n_layers, run.store.n_documents
        (2100, 2, 28993)
        >>> run.ledger[0].step, round(run.ledger[0].loss, 1)
        (0, 7.0)
        >>> run.documents_read(0)[:3].tolist()
        [2223, 2224, 2225]
        >>> run.steps_reading(28867).tolist()
        [1513, 1625, 1670, 1795, 1838, 1929, 2025]
        >>> run.load(600).origin.step
        600
    """

    path: Path
    manifest: storage.JsonObject
    store_path: Path | None = None

    @property
    def _manifest_path(self) -> Path:
        return self.path / manifest.MANIFEST

    meaning: ClassVar[str] = (
        "A run holds weights and, at knowledge level `full`, everything that they were computed "
        "from; opening it does not show that its files are intact, which `trainer.verify` does."
    )

    def _repr_html_(self) -> str:
        model, saved = self.config, self.steps
        facts: list[tuple[str, object]] = [
            ("knowledge", self.knowledge),
            ("finished", self.finished),
            ("layers", model.n_layers),
            ("heads", model.n_heads),
            ("d_model", model.d_model),
            ("vocabulary", model.d_vocab),
            ("checkpoints", f"{len(saved)}, to step {saved[-1]}" if saved else "none"),
        ]
        if self.knowledge == "full":
            recipe = self.recipe
            facts += [("steps", recipe.steps), ("batch_size", recipe.batch_size)]
            facts += [("init_seed", recipe.init_seed), ("order_seed", recipe.order_seed)]
        if self.removal is not None:
            facts.append(("without", f"{len(self.removal.documents):,} documents"))
        origin = {name: self.predicate.get(name) for name in ("data", "numerics", "origin")}
        return html_panel.Panel(
            "Run",
            f"{self.id} in {self.path}",
            tuple(facts),
            meaning=self.meaning,
            origin=tuple(html_panel.origin_rows(origin)),
        ).html()

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, id={self.id}, knowledge={self.knowledge!r})"

    @property
    def predicate(self) -> storage.JsonObject:
        """The part of the manifest that says how the run was made."""
        return self.manifest["predicate"]

    @property
    def id(self) -> str:
        """Run id: 12 hex digits over recipe, numerics, data, order, parent and removal.

        For an imported run they are over model, origin and files.
        """
        return self.predicate["run_id"]

    @property
    def knowledge(self) -> str:
        """Knowledge level: `full`, `data-known` or `weights-only`."""
        return self.predicate["knowledge"]

    @property
    def finished(self) -> bool:
        """True if the run has reached its last step."""
        return self.predicate["finished"]

    @cached_property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        self._must_be_trained_here("a recipe")
        return recipes.from_dict(self.predicate["recipe"], self._manifest_path)

    @cached_property
    def numerics(self) -> Numerics:
        """Device, precision, threads and kernels with which the run was trained."""
        self._must_be_trained_here("numerics")
        with storage.reading(self._manifest_path):
            return Numerics(**self.predicate["numerics"])

    @cached_property
    def removal(self) -> DocumentRemoval | None:
        """The documents removed from training, for a counterfactual run; else None."""
        removed = self.predicate.get("removed")
        with storage.reading(self._manifest_path):
            return (
                DocumentRemoval(tuple(removed["documents"]), removed["mode"]) if removed else None
            )

    @cached_property
    def removal_choice(self) -> RemovalChoice | None:
        """Choice of the removed documents; None if nothing was removed or it is not recorded.

        It is the choice for which the run was trained first. A run that lacks the same documents
        for another reason is not trained again.
        """
        choice = self.predicate.get("removal_choice")
        with storage.reading(self._manifest_path):
            return RemovalChoice.from_dict(choice) if choice else None

    @cached_property
    def base(self) -> Base | None:
        """The checkpoint that a tuned run began with; None for a run that began at random."""
        identity = self.predicate.get("base")
        if identity is None:
            return None
        with storage.reading(self._manifest_path):
            return self._base_of(identity)

    def _base_of(self, identity: storage.JsonObject) -> Base:
        places = {
            name: manifest.located(self.path, path)
            for name, path in self.predicate["base_places"].items()
        }
        return Base(path=places["run"], store_path=places.get("store"), **identity)

    def open_base(self) -> "Run":
        """Open the run that a tuned run began with.

        Raises:
            TrainError: The run was not tuned, or no run is at the place of its base.
            DamagedError: The run there is another one, or has other weights at that step.
        """
        if self.base is None:
            raise TrainError(f"the run {self.path} began with random weights; it has no base")
        found = open(self.base.path, store=self.base.store_path)
        if found.id != self.base.run_id:
            raise DamagedError(
                f"{found.path} holds run {found.id}, and {self.path} began with run "
                f"{self.base.run_id}; put that one there"
            )
        sha256 = found.saved_at(self.base.step).files["model.safetensors"]
        if sha256 != self.base.weights_sha256:
            raise DamagedError(
                f"{found.path} has weights {sha256[:12]}... at step {self.base.step}, and "
                f"{self.path} began with {self.base.weights_sha256[:12]}...; they were changed"
            )
        return found

    def lineage(self) -> "list[Run]":
        """Return the runs from the first one to this one, each the base of the next.

        Raises:
            TrainError: A base is missing.
            DamagedError: A base is another run, or its weights were changed.

        Examples:
            >>> [stage.id for stage in run.lineage()] == [run.id]
            True
        """
        return [self] if self.base is None else [*self.open_base().lineage(), self]

    @property
    def store(self) -> TokenStore:
        """The token store that the run was trained on.

        Raises:
            StoreError: There is no store at that path, or it is another one.
        """
        return self._store

    @property
    def store_place(self) -> Path:
        """The folder in which the token store is expected, whether it is there or not."""
        return self.store_path or manifest.located(self.path, self.predicate["store_path"])

    @cached_property
    def _store(self) -> TokenStore:
        self._must_be_trained_here("a token store")
        path = self.store_place
        if not path.exists():
            raise StoreError(
                f"the token store of the run {self.path} is not at {path}; say where it is with "
                "--store (store= in Python), or put it there"
            )
        store = open_store(path)
        expected = self.predicate["data"]["fingerprint"]
        if store.fingerprint != expected:
            raise StoreError(
                f"the store {path} is {store.fingerprint[:12]}... ({store.tokenizer.kind} "
                f"tokenizer), the run {self.path} was trained on {expected[:12]}...; give the "
                "right one with --store"
            )
        return store

    @property
    def teacher(self) -> "Run | None":
        """The run whose probabilities were distilled into this one; None for other runs.

        Raises:
            TrainError: The teacher is not where it was.
        """
        if not self.predicate.get("teacher"):
            return None
        path = manifest.located(self.path, self.predicate["teacher_path"])
        if not (path / manifest.MANIFEST).is_file():
            raise TrainError(
                f"the run {self.path} was taught by run {self.predicate['teacher']['run_id']}, "
                f"which is no longer at {path}; put it back there"
            )
        found = open(path)
        data = found.predicate.get("data", {})
        same_store = data.get("fingerprint") == self.predicate["data"]["fingerprint"]
        # The store may have moved since the teacher was trained; this run knows where it is now.
        return replace(found, store_path=self.store.path) if same_store else found

    @property
    def order(self) -> Order:
        """The data order: which windows are read at which step."""
        return self._order

    @cached_property
    def _order(self) -> Order:
        if self.recipe.sampler == "nanogpt":
            path = self._intact(SCHEDULE)
            with storage.reading(path):
                schedule = np.load(path, mmap_mode="r", allow_pickle=False)
                whole = isinstance(schedule, np.ndarray) and schedule.dtype.kind in "iu"
                if not whole or schedule.ndim != 2:
                    raise ValueError("it is no array of whole numbers, windows by step")
                return RecordedOrder(schedule, self.recipe.model.n_ctx)
        return order_of(self.recipe, self.store)

    @property
    def saved(self) -> list[Checkpoint]:
        """The checkpoints by ascending step; [] if the run was stopped before the first."""
        listing = self.path / checkpoints.CHECKPOINTS / checkpoints.CHECKPOINT_INDEX
        if not self.finished and not listing.exists():
            return []
        return checkpoints.index(self.path)

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints, ascending."""
        return [one.step for one in self.saved]

    @cached_property
    def _ledger_reader(self) -> ledger.LedgerReader:
        return ledger.LedgerReader(self.path / ledger.LEDGER, whole=self.finished)

    @property
    def ledger(self) -> list[ledger.LedgerRow]:
        """The ledger: one row per step; [] if the run was stopped before it had one.

        The file is read at every access, and parsed and checked anew only if it was changed.
        """
        path = self.path / ledger.LEDGER
        # A run that continues another one has its rows from the beginning.
        if not self.finished and not self.predicate["parent"] and not path.exists():
            return []
        return self._ledger_reader.rows()

    @property
    def watched(self) -> monitor_log.MonitorLog | None:
        """The monitor log: scores measured during training; None if the run has none."""
        return monitor_log.read_monitor_log(self.path, whole=self.finished)

    @property
    def config(self) -> GPTConfig:
        """The architecture of the model, without the extra block that only training uses."""
        if self.knowledge != "full":
            return recipes.model_from_dict(self.predicate["model"], self._manifest_path)
        return replace(self.recipe.model, mtp=False)

    def saved_at(self, step: int | None) -> Checkpoint:
        """Return the checkpoint of a step (None: the last one).

        Raises:
            TrainError: The run has no checkpoint at that step.
        """
        saved = self.saved
        if not saved:
            raise TrainError(f"the run {self.path} has no checkpoint yet")
        if step is None:
            return saved[-1]
        for one in saved:
            if one.step == step:
                return one
        near = min(self.steps, key=lambda known: abs(known - step))
        raise TrainError(f"the run {self.path} has no checkpoint at step {step}; nearest is {near}")

    def load(
        self, step: int | None = None, *, weights: Literal["trained", "ema"] = "trained"
    ) -> GPT:
        """Load the model of a checkpoint (None: the last one), and check the weights' digest.

        Args:
            weights: `trained`, or `ema` for the moving average of the weights over training.

        Raises:
            TrainError: The run has no checkpoint at that step, or keeps no average.
            DamagedError: The weights are missing or differ from their digest.
        """
        saved = self.saved_at(step)
        name = "model.safetensors" if weights == "trained" else checkpoints.EMA
        if name not in saved.files:
            raise TrainError(
                f"the run {self.path} keeps no moving average of its weights at step {saved.step}; "
                "train it with ema_decay above 0"
            )
        model = checkpoints.load_model(self.config, self.path, saved, name)
        model.tokenizer = self.tokenizer
        if model.tokenizer is None:
            model.no_tokenizer = str(self.predicate["origin"]["description"])
        model.origin = Origin(self.id, saved.step, saved.files[name], self.knowledge)
        return model

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of the store; for an imported run its own, or None."""
        if self.knowledge == "full":
            return self.store.tokenizer
        path = self.path / "tokenizer.json"
        return load_tokenizer(self._intact(path.name)) if path.is_file() else None

    def known_tokenizer(self) -> Tokenizer:
        """Return the tokenizer.

        Raises:
            TrainError: The weights were imported without one.

        Examples:
            >>> run.known_tokenizer().kind
            'word'
        """
        if self.tokenizer is None:
            raise TrainError(
                f"the run {self.path} was imported without a tokenizer, so no text can be encoded "
                "for it; import a folder with tokenizer.json"
            )
        return self.tokenizer

    @property
    def steps_done(self) -> int:
        """Number of steps in the ledger, read once; a stopped run has fewer than its recipe."""
        return self._steps_done

    @cached_property
    def _steps_done(self) -> int:
        return self.recipe.steps if self.finished else len(self.ledger)

    def documents_read(self, step: int) -> Int64[np.ndarray, " document"]:
        """Return the indices of the documents with a token as target at `step`; O(log documents).

        Documents removed from this run do not count as read.

        Raises:
            TrainError: The run has no such step, or has not reached it.
        """
        if not 0 <= step < self.recipe.steps:
            raise TrainError(f"step {step} is not one of the {self.recipe.steps} steps of the run")
        if step >= self.steps_done:
            raise TrainError(
                f"step {step} has read nothing: {self.steps_done} of the {self.recipe.steps} steps "
                f"of {self.path} are done; go on with `openbook run resume`"
            )
        read = documents_read(self.order, self.store.table, step)
        return read if self.removal is None else np.setdiff1d(read, self.removal.documents)

    def steps_reading(self, document: int) -> Int64[np.ndarray, " step"]:
        """Return the steps done so far with a token of the document as target, ascending.

        Raises:
            StoreError: The store has no such document.
        """
        if not 0 <= document < self.store.n_documents:
            raise StoreError(
                f"document {document} is not one of the {self.store.n_documents} of the store"
            )
        start = int(self.store.starts[document])
        return self.steps_reading_tokens(start, start + int(self.store.lengths[document]))

    def steps_learned(self, document: int) -> Int64[np.ndarray, " step"]:
        """Return the steps before the last checkpoint at which the document was read, ascending.

        A stopped run may have read documents after its last checkpoint, but no saved weights have
        learned from them.
        """
        steps = self.steps_reading(document)
        return steps if self.finished else steps[steps < self.saved_at(None).step]

    def first_steps_learned(
        self, documents: Sequence[int] | Int64[np.ndarray, " document"]
    ) -> Int64[np.ndarray, " document"]:
        """Return the first of `steps_learned` of each document, or -1 if it was not learned.

        Thousands of documents take as long as a few calls of `steps_learned`.

        Raises:
            StoreError: The store has no such document.

        Examples:
            >>> run.first_steps_learned([28867, 2456]).tolist()
            [1513, 223]
        """
        asked = np.asarray(documents, dtype=np.int64)
        outside = asked[(asked < 0) | (asked >= self.store.n_documents)]
        if len(outside):
            raise StoreError(
                f"document {outside[0]} is not one of the {self.store.n_documents} of the store"
            )
        n_steps = self.steps_done
        if not self.finished:
            n_steps = min(n_steps, self.saved_at(None).step)
        starts = self.store.starts[asked]
        stops = starts + self.store.lengths[asked]
        found = first_steps_reading(self.order, starts, stops, n_steps)
        # Removed documents share no token with the others.
        removed = self.removal.documents if self.removal else ()
        found[(found == n_steps) | np.isin(asked, removed)] = -1
        return found

    def steps_reading_tokens(self, start: int, stop: int) -> Int64[np.ndarray, " step"]:
        """Return the steps done so far with a target in tokens [start, stop), ascending.

        Tokens of documents removed from this run do not count as read.
        """
        pieces = [(start, stop)] if self.removal is None else self._left_of(start, stop)
        found = [self.order.steps_reading(*piece, self.steps_done) for piece in pieces]
        return np.unique(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)

    def _left_of(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return [start, stop) without removed documents and their end-of-text, as ranges."""
        starts, stops = self._removed_spans
        first = int(np.searchsorted(stops, start, side="right"))
        last = int(np.searchsorted(starts, stop, side="left"))
        edges = [start]
        for one in range(first, last):
            edges += [int(starts[one]), int(stops[one])]
        edges.append(stop)
        pieces = zip(edges[::2], edges[1::2], strict=True)
        return [(begin, end) for begin, end in pieces if begin < end]

    @cached_property
    def _removed_spans(self) -> tuple[np.ndarray, np.ndarray]:
        documents = np.array(self.removal.documents if self.removal else (), dtype=np.int64)
        starts = self.store.starts[documents]
        return starts, starts + self.store.lengths[documents] + 1

    def _intact(self, name: str) -> Path:
        """Return the path of a file of the run, after its digest was checked.

        The manifest lists the digest if the run has finished, and that of the schedule always.
        """
        listed = {one["name"]: one["digest"]["sha256"] for one in self.manifest["subject"]}
        if name == SCHEDULE and self.predicate.get("schedule_sha256"):
            listed[name] = self.predicate["schedule_sha256"]
        if name in listed:
            size = (self.path / name).stat().st_size if (self.path / name).is_file() else 0
            most = MOST_BYTES
            if name == SCHEDULE:
                most = NPY_HEADER + 8 * self.recipe.steps * self.recipe.batch_size
            if size > most:  # before it is hashed
                raise DamagedError(
                    f"{self.path / name}: {size:,} bytes, and at most {most:,} are read"
                )
            storage.check_once(
                self.path / name, listed[name], manifest.MANIFEST, "put the file of this run back"
            )
        return self.path / name

    @cached_property
    def published_order(self) -> PublishedOrder:
        """The token sequences that an imported run read, step by step.

        Raises:
            TrainError: The run is not one of knowledge level `data-known`, or the index is missing.
            DamagedError: The index is another one.
        """
        if self.knowledge != "data-known":
            raise TrainError(f"the run {self.path} has no published order: it is {self.knowledge}")
        about = self.predicate["order"]
        path = manifest.located(self.path, self.predicate["order_path"])
        if not path.exists():
            raise TrainError(f"the index of the run {self.path} is not at {path}; put it there")
        found = open_published_order(path, batch=about["batch"])
        if found.n_sequences != about["sequences"]:
            raise DamagedError(
                f"{path}: {found.n_sequences:,} sequences, and {self.path} was imported with "
                f"{about['sequences']:,}"
            )
        return found

    def _must_be_trained_here(self, what: str) -> None:
        if self.knowledge != "full":
            origin = self.predicate["origin"]
            raise TrainError(
                f"the run {self.path} has no {what.removeprefix('a ')}: knowledge is "
                f"{self.knowledge} (imported from {origin.get('layout', 'elsewhere')})"
            )


def open(path: str | Path, *, store: str | Path | None = None) -> Run:
    """Open a run by its folder.

    Args:
        path: Folder of the run.
        store: Folder of its token store, if that has moved since training.

    Raises:
        TrainError: There is no run at `path`.
        DamagedError: `path` is a file, or the manifest differs from its seal.

    Examples:
        >>> opened = runs.open(run.path)
        >>> opened.id == run.id, opened.steps
        (True, [0, 600, 800, 1000, 2100])
    """
    path = Path(path)
    if not (path / manifest.MANIFEST).is_file():
        if path.is_file():
            raise DamagedError(
                f"{path}: a run is a folder with {manifest.MANIFEST}, this is a file"
            )
        raise TrainError(
            f"no run at {path}: no {manifest.MANIFEST} there; `openbook train` makes one"
            + nearest_path(path, manifest.MANIFEST)
        )
    return Run(path, manifest.read_manifest(path), Path(store) if store else None)


def order_of(recipe: Recipe, store: TokenStore) -> DataOrder | LateOrder:
    """Return the invertible data order of a recipe over a store.

    Examples:
        >>> order = runs.order_of(run.recipe, store)
        >>> order.batch, order.context, order.starts(0)[:3].tolist()
        (32, 64, [583744, 131392, 216768])
    """

    def order(n_windows: int, batch: int) -> DataOrder:
        return DataOrder(recipe.order_seed, n_windows, window, batch)

    window = store.window(recipe.model.n_ctx)
    n_windows = ((recipe.data_budget or store.train_tokens) - 1) // window
    if not recipe.late_batch:
        return order(n_windows, recipe.batch_size)
    # The window that contains the first late token is a late window as a whole.
    n_early = (store.early_tokens - 1) // recipe.model.n_ctx
    return LateOrder(
        early=order(n_early, recipe.batch_size),
        late=order(n_windows - n_early, recipe.late_batch),
        begin=recipe.late_begin,
    )


def record_schedule(run_path: Path, recipe: Recipe, store: TokenStore) -> None:
    """Draw nanoGPT's order and save it with the run, as it cannot be computed step by step."""
    drawn = record_nanogpt_order(
        seed=recipe.order_seed,
        n_tokens=recipe.data_budget or store.train_tokens,
        context=recipe.model.n_ctx,
        batch=recipe.batch_size,
        steps=recipe.steps,
    )
    content = io.BytesIO()
    np.save(content, drawn.schedule)
    storage.write_bytes(run_path / SCHEDULE, content.getvalue())
