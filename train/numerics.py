"""Numerics of a run: device, precision, threads and determinism.

A run is bit-exact only with the same precision, thread count and kernels. They are therefore chosen
once, written into the manifest, and used again by resume and replay. The fastest choice depends on
the processor: bf16 is 2 to 3 times faster on a CPU with AVX512-BF16 and up to 500 times slower on
one without (pytorch#146508), and torch's `medium` matmul precision is oneDNN's true fp32 on one CPU
and bf16 on another (pytorch#125386). `choose` therefore measures the speed and the error of both.
"""

import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any, Literal

import torch
from torch import Tensor

from train.allocator import memory_reuse
from train.errors import RecipeError


__all__ = ["Numerics", "applied", "choose", "environment", "on_this_machine", "refuse_missing"]
__all__ += ["refuse_too_few"]

# torch's type stubs lack the attributes of this module that we assign.
_DETERMINISTIC: Any = torch.utils.deterministic
BF16_ERROR = 0.02
FP32_ERROR = 2e-6
# Fields added after the first runs. A field at this value is not written.
LATER = {"world_size": 1, "kernels": 1}
NEWEST_KERNELS = 2
MOST = 1024  # threads or processes; a million threads never start
ENOUGH = 0.08  # CPU seconds after which no further product is measured
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@dataclass(frozen=True)
class Numerics:
    """The numerical settings of a run; equal settings on one machine give equal bits.

    Attributes:
        precision: `bf16` is autocast over fp32 weights; `fp32` is fp32 throughout.
        matmul: torch's float32 matmul precision. `choose` takes `medium` only if it measured that
            this is true fp32.
        threads: CPU threads of each process.
        compile: Whether the trainer runs the model through torch.compile.
        world_size: Number of shares into which the windows of a step are divided; their gradients
            are added in order. As many processes compute one share each, or one computes them all.
        kernels: Which kernels a step uses (`train.model.kernels`). `choose` takes the newest.

    Raises:
        RecipeError: This version has no kernels of that number, or there are more threads or
            processes than a machine has.
    """

    device: str
    precision: Literal["fp32", "bf16"]
    threads: int
    matmul: Literal["highest", "medium"] = "highest"
    compile: bool = False
    world_size: int = 1
    kernels: int = 1

    def __post_init__(self) -> None:
        for name, said in (("threads", "threads"), ("world_size", "processes")):
            if not 1 <= getattr(self, name) <= MOST:
                raise RecipeError(
                    f"{getattr(self, name)} {said} are asked for; choose from 1 to {MOST}"
                )
        if self.kernels not in range(1, NEWEST_KERNELS + 1):
            raise RecipeError(
                f"kernels are {self.kernels}, and this version of openbook has 1 to "
                f"{NEWEST_KERNELS}; take the version that trained the run"
            )

    def __repr__(self) -> str:
        # Retrainings are cached under a digest of this text, which must stay the same.
        return f"Numerics({', '.join(f'{key}={one!r}' for key, one in self.to_dict().items())})"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as they are written into a manifest.

        A world size and kernels of 1 are left out, so that the ids of older runs stay the same.

        Examples:
            >>> numerics.Numerics("cpu", "fp32", threads=1).to_dict()["threads"]
            1
        """
        content = asdict(self)
        return {key: content[key] for key in content if content[key] != LATER.get(key)}

    def autocast(self) -> torch.autocast:
        """Return the autocast context for the forward pass and the loss."""
        return torch.autocast(
            self.device.split(":")[0], dtype=torch.bfloat16, enabled=self.precision == "bf16"
        )


def choose(
    *,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    world_size: int = 1,
) -> Numerics:
    """Choose numerics for this machine; on a CPU this measures for about a quarter of a second.

    A processor on which one product of the measurement (0.4 billion floating-point operations)
    takes over 0.08 seconds needs about seven times as long as that product.

    Args:
        threads: CPU threads of each process; default: all cores divided among the processes, at
            most 8.
        world_size: Number of processes that train together.

    Raises:
        RecipeError: This machine has no such device or too few, the precision has no such name, or
            CUDA's workspace is not set for determinism.

    Examples:
        >>> how = numerics.choose(device="cpu", precision="fp32", threads=1)
        >>> how.device, how.precision, how.threads
        ('cpu', 'fp32', 1)
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise RecipeError(f"device is 'auto', 'cpu', 'cuda' or 'cuda:0', not {device!r}")
    refuse_missing(device)
    _refuse_loose_workspace(device)
    if device != "cpu" and world_size > 1:
        refuse_too_few(device, world_size)
    if precision not in ("auto", "fp32", "bf16"):
        raise RecipeError(f"precision is 'auto', 'fp32' or 'bf16', not {precision!r}")
    threads = threads or max(min(len(os.sched_getaffinity(0)) // world_size, 8), 1)
    if device != "cpu":
        precision = "bf16" if precision == "auto" else precision
        return Numerics(device, precision, threads, world_size=world_size)
    # Measured on one thread in CPU time, so that other load on the machine does not change the
    # choice.
    with _threads(1):
        matmul, bf16_pays = _calibrate(bf16=precision == "auto")
    if precision == "auto":
        precision = "bf16" if bf16_pays else "fp32"
    return Numerics(
        device, precision, threads, matmul, world_size=world_size, kernels=NEWEST_KERNELS
    )


def refuse_missing(device: str) -> None:
    """Raise a RecipeError if this machine has no such device.

    Examples:
        >>> numerics.refuse_missing("cpu")
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device != "cpu" and int(device.partition(":")[2] or 0) >= count:
        raise RecipeError(
            f"device {device!r} was asked for and this machine has "
            f"{count or 'no'} CUDA device{'s' if count > 1 else ''}"
        )


def refuse_too_few(device: str, world_size: int) -> None:
    """Raise a RecipeError if this machine has not a GPU, or on the CPU a core, for each process.

    Examples:
        >>> numerics.refuse_too_few("cpu", 1)
    """
    gpus, cores = torch.cuda.device_count(), len(os.sched_getaffinity(0))
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        if world_size > cores:
            raise RecipeError(
                f"{world_size} processes were asked for on the CPU, and this machine has {cores} "
                "cores, one for each: choose at most as many processes"
            )
    elif device not in ("auto", "cuda") or world_size > gpus:
        raise RecipeError(
            f"{world_size} processes were asked for on device {device!r}, and each needs a GPU of "
            f"its own; this machine has {gpus}: choose device 'cuda' and at most as many processes"
        )


def on_this_machine(numerics: Numerics) -> Numerics:
    """Return the same numerics, on the CPU if this machine lacks the device.

    Results on the CPU are then never bit-exact. Replay and verification accept that and compare
    within a tolerance; training resumes only on the original kind of device.

    Examples:
        >>> numerics.on_this_machine(run.numerics) == run.numerics
        True
    """
    try:
        refuse_missing(numerics.device)
    except RecipeError:
        return replace(numerics, device="cpu")
    return numerics


@contextmanager
def applied(numerics: Numerics) -> Iterator[None]:
    """Compute with these numerics inside the block, and restore the previous ones after it.

    On a CPU, memory that is freed inside the block is reused and not returned to the kernel.

    Raises:
        RecipeError: The device is CUDA, and the environment does not make cuBLAS deterministic.

    Examples:
        >>> with numerics.applied(run.numerics):
        ...     threads = torch.get_num_threads()
        ...
        >>> threads == run.numerics.threads
        True
    """
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.get_float32_matmul_precision(),
        _DETERMINISTIC.fill_uninitialized_memory,
    )
    _refuse_loose_workspace(numerics.device)
    _set_deterministic(True, warn_only=False, compiled=numerics.compile)
    # Filling new memory protects against kernels that read it uninitialised. None of ours does,
    # and filling costs 5 % of a small step.
    _DETERMINISTIC.fill_uninitialized_memory = False
    torch.set_float32_matmul_precision(numerics.matmul)
    try:
        reuse = memory_reuse() if numerics.device == "cpu" else nullcontext()
        with _threads(numerics.threads), reuse:
            yield
    finally:
        _set_deterministic(before[0], warn_only=before[1], compiled=numerics.compile)
        torch.set_float32_matmul_precision(before[2])
        _DETERMINISTIC.fill_uninitialized_memory = before[3]


def _set_deterministic(mode: bool, *, warn_only: bool, compiled: bool) -> None:
    # torch.use_deterministic_algorithms also imports torch's compiler to set its flag, which takes
    # three seconds; without compilation we set torch's own flag directly.
    if compiled:
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)
    else:
        torch._C._set_deterministic_algorithms(mode, warn_only=warn_only)


def environment() -> dict[str, str | int]:
    """Return the versions and the hardware of this machine, for the manifest.

    Examples:
        >>> {"python", "torch"} <= set(numerics.environment())
        True
    """
    packages = ("torch", "numpy", "safetensors", "tokenizers", "tiktoken")
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        **{name: version(name) for name in packages},
    }


def _refuse_loose_workspace(device: str) -> None:
    # cuBLAS is deterministic only with a fixed workspace, which it reads from the environment on
    # first use. The `openbook` command sets it; the library does not change the environment.
    if device != "cpu" and os.environ.get(WORKSPACE) not in (":4096:8", ":16:8"):
        raise RecipeError(
            f"device {device!r} adds up in the same order every time only with {WORKSPACE}=:4096:8 "
            "in the environment; set it before Python starts, or choose device 'cpu'"
        )


def _calibrate(*, bf16: bool) -> tuple[Literal["highest", "medium"], bool]:
    """Return the matmul precision to use, and whether bf16 is worth using.

    The precision is `medium` if that is true fp32 on this CPU and faster than `highest`. bf16 is
    worth using if it is accurate enough and faster than both. On a processor without bf16 its
    products take a hundred times as long, so a small one decides; with `bf16=False` none is run.
    """
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(768, 512, generator=generator, dtype=torch.float32)
    right = torch.randn(512, 512, generator=generator, dtype=torch.float32)
    exact = left.double() @ right.double()

    def multiply() -> Tensor:
        return left @ right

    narrow = (left.bfloat16(), right.bfloat16())
    highest = _seconds(multiply)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        medium, medium_error = _seconds(multiply), _error(multiply(), exact)
    finally:
        torch.set_float32_matmul_precision(before)
    matmul = "medium" if medium_error < FP32_ERROR and medium < 0.8 * highest else "highest"
    if not bf16:
        return matmul, False
    fastest = min(highest, medium)

    # A 64th of the product comes first, because bf16 may be that slow.
    few, few_narrow = (
        (one[:96].contiguous(), other[:, :64].contiguous())
        for one, other in ((left, right), narrow)
    )
    if _seconds(lambda: few_narrow[0] @ few_narrow[1]) > 10 * _seconds(lambda: few[0] @ few[1]):
        return matmul, False

    def multiply_bf16() -> Tensor:
        return narrow[0] @ narrow[1]

    if _seconds(multiply_bf16, runs=1) > 10 * fastest:
        return matmul, False
    error = _error(multiply_bf16(), exact)
    return matmul, error < BF16_ERROR and _seconds(multiply_bf16) < 0.8 * fastest


def _seconds(work: Callable[[], Tensor], *, runs: int = 12) -> float:
    """Return the least CPU seconds of several runs, which a shared machine disturbs least.

    The first run, which prepares the kernels, counts only if it alone takes `ENOUGH`; no run begins
    after that time.
    """
    best, spent = float("inf"), 0.0
    for run in range(runs + 1):
        begin = time.process_time()
        work()
        seconds = time.process_time() - begin
        spent += seconds
        if run or spent >= ENOUGH:
            best = min(best, seconds)
        if spent >= ENOUGH:
            break
    return best


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            ]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
