"""A benchmark that asks for a bound says on what it was measured, and fails when it is missed."""

import importlib.util
import os
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest


FOLDER = Path(__file__).parents[1] / "benchmarks"
BOUND = ("attention_cpu", "corpus_build", "forgetting", "order_lookups", "planted_acceptance")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def test_the_machine_is_named_by_its_processor_and_its_cores(script):
    said = script("machine").described("numpy")
    assert f"of {os.cpu_count()} cores" in said
    assert f"numpy {np.__version__}" in said
    if Path("/proc/cpuinfo").is_file():
        assert said.split(",")[0] in Path("/proc/cpuinfo").read_text()


@pytest.mark.parametrize(
    ("seconds", "loaded", "code"), [(0.1, "[]", 0), (0.5, "[]", 1), (0.1, "['torch']", 1)]
)
def test_a_slow_start_or_a_heavy_import_fails(script, monkeypatch, capsys, seconds, loaded, code):
    startup = script("startup")
    monkeypatch.setattr(startup, "timed", lambda _: seconds)
    found = SimpleNamespace(stdout=f"{loaded}\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: found)
    assert startup.main() == code
    assert "cores" in capsys.readouterr().out


@pytest.mark.parametrize(("milliseconds", "holds"), [(0.5, True), (1.5, False)])
def test_a_look_up_over_a_millisecond_fails(script, milliseconds, holds):
    assert script("order_lookups").report("x", [milliseconds] * 10) is holds


@pytest.mark.parametrize(("peak", "ratio", "code"), [(900, 0.9, 0), (1100, 0.9, 1), (900, 0.7, 1)])
def test_a_build_that_is_large_or_slow_fails(script, monkeypatch, peak, ratio, code):
    build = script("corpus_build")
    monkeypatch.setattr("sys.argv", ["corpus_build", "--megabytes", "0", "--rounds", "1"])
    monkeypatch.setattr(build, "_round", lambda *_: {"peak_mb": peak, "ratio": ratio})
    assert build.main() == code


@pytest.mark.parametrize("name", BOUND)
def test_a_script_ends_with_the_code_of_its_main(name):
    text = (FOLDER / f"{name}.py").read_text()
    assert "machine.described(" in text
    assert text.endswith('if __name__ == "__main__":\n    sys.exit(main())\n')
