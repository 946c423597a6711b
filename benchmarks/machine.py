"""What a number was measured on: the processor's name, its cores, the versions that matter."""

import os
import platform
from importlib.metadata import version
from pathlib import Path


__all__ = ["described"]


def described(*packages: str) -> str:
    """One line: processor, cores this process may use of all, python and `packages`."""
    versions = [f"python {platform.python_version()}"]
    versions += [f"{package} {version(package)}" for package in packages]
    free = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_processor()}, {free} of {os.cpu_count()} cores, {', '.join(versions)}"


def _processor() -> str:
    """The model as Linux names it, else what the platform knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
    return ", ".join(sorted(names)) or platform.processor() or platform.machine()
