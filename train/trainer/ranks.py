"""The processes that train one run together ("ranks"), and the sum of their gradients.

Every rank holds the whole model and computes the gradient of its share of each batch (data parallel
training). The shares' gradients are added in the order of the ranks, in one vector after the
backward pass. One process that computes the shares in turn therefore gets the same bits: a run of
several ranks is replayed, verified and retrained by one process.

Every rank also holds the whole optimizer, or (`shards_optimizer`) the state of its share of the
parameters: it updates these and sends them to the others, as in stage 1 of ZeRO (Rajbhandari et al.
2020, https://arxiv.org/abs/1910.02054). AdamW updates every number by itself, so the bits are the
same. torch's ZeroRedundancyOptimizer collects the state for a checkpoint by pickles that pass
through the memory of every device.

torch's DistributedDataParallel adds in the order of its backend's algorithm, which one process
cannot repeat for three ranks or more. What it would save is waiting: it sends gradients during the
backward pass. Rank 0 writes all files; the others wait for it at the next sum.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn

from train.data import Batch
from train.errors import LostRankError, RecipeError
from train.numerics import Numerics


__all__ = ["Ranks", "join_ranks", "ranks_of"]

# How long a rank waits for the others: rank 0 may take minutes to write a large checkpoint. A lost
# rank is noticed earlier: with gloo its connections close, and the process that started the ranks
# ends them.
RANK_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Ranks:
    """The number of this process among those that train one run; by default it is the only one.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
        shards_optimizer: Whether each rank keeps only its share of AdamW's state.
    """

    rank: int = 0
    size: int = 1
    shards_optimizer: bool = False

    def sum_gradients(
        self, parameters: Sequence[nn.Parameter], batch: Batch, world_size: int,
        backward: Callable[[Batch], Float[Tensor, ""]],
    ) -> Float[Tensor, ""]:  # fmt: skip
        """Compute the gradients of a batch in `world_size` shares, and return its loss.

        Args:
            parameters: Parameters of the model; their gradients are those of the whole batch
                afterwards.
            backward: Function that accumulates the gradients of a share and returns its loss.
        """
        if world_size == 1:
            return backward(batch)
        shares = batch.shares(world_size)
        trained: list[nn.Parameter] = []
        total = None
        for share in shares if self.size == 1 else [shares[self.rank]]:
            loss = backward(share)
            trained = [parameter for parameter in parameters if parameter.grad is not None]
            gradients = (one.grad.flatten() for one in trained if one.grad is not None)
            vector = torch.cat([*gradients, loss.view(1)])
            for parameter in trained:
                parameter.grad = None
            total = vector if total is None else total.add_(vector)
        assert total is not None
        if self.size > 1:
            total = self._sum(total)
        *gradients, loss = total.split([*map(torch.numel, trained), 1])
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient.view_as(parameter)
        return loss[0]

    def owners(self, parameters: Sequence[nn.Parameter]) -> list[int]:
        """Return the rank that updates each parameter and keeps its optimizer state.

        The largest parameters are given away first, each to the rank with the fewest numbers.
        Without `shards_optimizer` every rank owns all parameters.
        """
        owners, loads = [self.rank] * len(parameters), [0] * self.size
        if self.shards_optimizer:
            for index in sorted(range(len(owners)), key=lambda k: -parameters[k].numel()):
                owners[index] = loads.index(min(loads))
                loads[owners[index]] += parameters[index].numel()
        return owners

    def update(self, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
        """Update all parameters by their gradients, which become None."""
        owners = self.owners(parameters)
        for parameter, owner in zip(parameters, owners, strict=True):
            if owner != self.rank:
                parameter.grad = None  # AdamW passes over it and makes no state for it.
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if self.shards_optimizer and self.size > 1:
            with _lost_rank_errors():
                for parameter, owner in zip(parameters, owners, strict=True):
                    distributed.broadcast(parameter.detach(), owner)

    def send_to_rank_0(self, tensor: Tensor, owner: int) -> None:
        """Overwrite a tensor of rank 0 by that of its owner; both call this together."""
        if owner != 0 and self.rank in (0, owner):
            with _lost_rank_errors():
                if self.rank == owner:
                    distributed.send(tensor, 0)
                else:
                    distributed.recv(tensor, owner)

    def run_on_rank_0(self, work: Callable[[], object]) -> None:
        """Run a function on rank 0 once all ranks have called this; the others wait for its end.

        An error of the function is raised on all ranks.
        """
        if self.size == 1:
            work()
            return
        self.wait()
        errors: list[Exception | None] = [None]
        if self.rank == 0:
            try:
                work()
            except Exception as error:
                errors = [error]
        with _lost_rank_errors():
            distributed.broadcast_object_list(errors)
        if errors[0] is not None:
            raise errors[0]

    def unequal(self, digest: str) -> list[int]:
        """Return the ranks that hold another digest than rank 0; all ranks call this together."""
        digests = [digest] * self.size
        if self.size > 1:
            with _lost_rank_errors():
                distributed.all_gather_object(digests, digest)
        return [rank for rank, other in enumerate(digests) if other != digests[0]]

    def wait(self) -> None:
        """Wait until all ranks have called this."""
        if self.size > 1:
            with _lost_rank_errors():
                distributed.barrier()

    def _sum(self, vector: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return the sum of all ranks' vectors, added in the order of the ranks."""
        with _lost_rank_errors():
            if self.size == 2:  # a + b and b + a are the same bits
                distributed.all_reduce(vector)
                return vector
            # Every rank adds one piece of all vectors: as many bytes as an all-reduce sends.
            padded = nn.functional.pad(vector, (0, -len(vector) % self.size))
            received = torch.empty_like(padded)
            distributed.all_to_all_single(received, padded)
            piece, *others = received.view(self.size, -1)
            for other in others:
                piece += other
            distributed.all_gather_single(padded, piece.clone())
        return padded[: len(vector)]


@contextmanager
def join_ranks(
    device: str, *, rank: int, size: int, local_rank: int, rendezvous: str = "env://"
) -> Iterator[None]:
    """Connect this process with the other ranks inside the block.

    Args:
        device: `cpu` (gloo) or `cuda` (NCCL).
        local_rank: Number of the GPU that this process uses as `cuda`.
        rendezvous: Address at which the ranks find each other: `env://`, as torchrun sets it up,
            or `file://PATH`.
    """
    if device != "cpu":
        torch.cuda.set_device(local_rank)
    with _lost_rank_errors():
        distributed.init_process_group(
            "gloo" if device == "cpu" else "nccl",
            init_method=rendezvous, rank=rank, world_size=size, timeout=RANK_TIMEOUT,
        )  # fmt: skip
    try:
        yield
    finally:
        distributed.destroy_process_group()


def ranks_of(numerics: Numerics) -> Ranks:
    """Return the ranks that train with these numerics: those that were joined, or this one alone.

    A process that is alone computes all shares of a batch, to the same bits.

    Raises:
        RecipeError: Another number of ranks was joined.

    Examples:
        >>> trainer.ranks_of(run.numerics)
        Ranks(rank=0, size=1, shards_optimizer=False)
    """
    if numerics.world_size == 1 or not distributed.is_initialized():
        return Ranks()
    size = distributed.get_world_size()
    if size != numerics.world_size:
        raise RecipeError(
            f"the run is for {numerics.world_size} processes and {size} have joined; start as many "
            "as the run has, because sums of another number differ in their last bits"
        )
    return Ranks(distributed.get_rank(), size)


@contextmanager
def _lost_rank_errors() -> Iterator[None]:
    """Turn an error of the connection inside the block into a LostRankError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        # gloo's reason is followed by advice for developers of gloo.
        reason = str(error).splitlines()[0].split(". This is typically", maxsplit=1)[0]
        raise LostRankError(
            f"the processes of this training cannot reach each other ({reason}); a run that has "
            "begun is kept up to its last checkpoint: go on with `openbook run resume`"
        ) from None
