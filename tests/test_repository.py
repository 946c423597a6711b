"""The repository has the files that others need, and its lock file agrees with its dependencies.

No file holds a path of the machine it was written on, or the host of a private package index.
"""

import re
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


ROOT = Path(__file__).parents[1]
PACKAGES = ("train", "interp", "data_attribution")
FILES = (
    "AGENTS.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "README.md",
    "constraints.txt", "uv.lock", ".pre-commit-config.yaml",
)  # fmt: skip
INDEX = "https://pypi.org/simple"
HOSTS = {"pypi.org", "files.pythonhosted.org"}
# A directory of one machine with a name behind it; not part of a longer path or of an address.
MACHINE = re.compile(
    r"(?<![\w.}~/-])/(?:home|root|work|opt|mnt|srv|Users|private)/[\w.]"
    r"|(?<![\w.}~/-])/tmp/(?:tmp|pytest-of)|\b[A-Z]:\\+Users\\"
)
ADDRESS = re.compile(r"https?://(?:[^\s/@\"']*@)?([\w.-]+)(?::\d+)?([^\s\"')>]*)")
INDEX_NAME = re.compile(r"pypi|devpi|artifactory|jfrog|nexus|pythonhosted")


@cache
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@cache
def locked() -> dict[str, list[dict]]:
    """Packages of the lock file by name; one that differs by platform has several versions."""
    found: dict[str, list[dict]] = {}
    for one in tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))["package"]:
        found.setdefault(one["name"], []).append(one)
    return found


def declared() -> dict[str, list[Requirement]]:
    """Requirements of the project by extra; "" for those that everybody needs."""
    extras = {"": project()["dependencies"], **project()["optional-dependencies"]}
    return {extra: [Requirement(line) for line in lines] for extra, lines in extras.items()}


def requirements() -> list[Requirement]:
    return [one for several in declared().values() for one in several]


def as_written(one: Requirement) -> tuple[str, frozenset[str], str]:
    return canonicalize_name(one.name), frozenset(one.extras), str(one.specifier)


def trespasses(text: str) -> list[str]:
    """Paths of a machine, and addresses of package indexes other than PyPI."""
    found = [match[0] for match in MACHINE.finditer(text)]
    for match in ADDRESS.finditer(text):
        host, path = match.groups()
        is_index = INDEX_NAME.search(host) or re.search(r"/simple(?:/|$)", path)
        if is_index and host not in HOSTS:
            found.append(match[0])
    return found


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_others_need_is_there(name):
    assert (ROOT / name).read_text(encoding="utf-8").strip()


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_that_it_has_types(package):
    """PEP 561: type checkers of other projects read the annotations."""
    assert (ROOT / package / "py.typed").is_file()


def test_the_citation_names_this_version():
    lines = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    fields = dict(line.split(": ", 1) for line in lines if re.match(r"[\w-]+: ", line))
    assert fields["title"] == project()["name"]
    assert fields["version"] == project()["version"]
    assert fields["license"] == project()["license"]


def test_the_hooks_run_what_is_installed():
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert re.findall(r"repo: (\S+)", text) == ["local"]
    assert [entry.split("/")[-1] for entry in re.findall(r"entry: \.venv/(\S+)", text)] == [
        "ruff", "ruff", "lint-imports", "pyright",
    ]  # fmt: skip


def test_the_files_that_a_guide_names_exist():
    for guide in ("CONTRIBUTING.md", "AGENTS.md"):
        text = (ROOT / guide).read_text(encoding="utf-8")
        named = re.findall(r"`((?:train|interp|data_attribution|tests|\.ci)/[\w./-]*)`", text)
        assert len(named) > 5
        assert [path for path in named if not (ROOT / path).exists()] == []


# --- dependencies --------------------------------------------------------------------------------


def test_the_lock_was_made_for_these_dependencies():
    """`uv lock` brings it up to date."""
    (own,) = locked()[project()["name"]]
    known = {(one["name"], frozenset(one.get("extras", ())), one.get("specifier", ""))
             for one in own["metadata"]["requires-dist"]}  # fmt: skip
    assert {(name, extras) for name, extras, _ in known} == {
        as_written(one)[:2] for one in requirements()
    }
    assert set(own["metadata"]["provides-extras"]) == set(project()["optional-dependencies"])
    for name, _, specifier in map(as_written, requirements()):
        limits = [set(text.split(",")) for key, _, text in known if key == name]
        assert set(specifier.split(",")) in limits, name


def test_every_dependency_is_locked_at_a_version_that_it_allows():
    for one in requirements():
        versions = [package["version"] for package in locked()[canonicalize_name(one.name)]]
        assert all(one.specifier.contains(version) for version in versions), one


def test_the_lock_and_the_constraints_name_the_same_versions():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    names = {canonicalize_name(pin.name) for pin in pins}
    assert {canonicalize_name(one.name) for one in requirements()} <= names
    for pin in pins:
        versions = {one["version"] for one in locked()[canonicalize_name(pin.name)]}
        assert {f"=={version}" for version in versions} == {str(pin.specifier)}, pin


def test_the_lock_comes_from_pypi_and_every_file_has_a_hash():
    for several in locked().values():
        for one in several:
            if one["name"] == project()["name"]:
                assert one["source"] == {"editable": "."}
                continue
            assert one["source"] == {"registry": INDEX}
            for file in [*one.get("wheels", []), *([one["sdist"]] if "sdist" in one else [])]:
                assert file["url"].startswith("https://files.pythonhosted.org/")
                assert file["hash"].startswith("sha256:")
    addresses = ADDRESS.findall((ROOT / "uv.lock").read_text(encoding="utf-8"))
    assert {host for host, _ in addresses} == HOSTS


# --- no traces of a machine ----------------------------------------------------------------------


def test_no_file_holds_a_path_of_a_machine_or_the_host_of_an_index():
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git repository")
    found = {}
    for name in filter(None, listed.stdout.decode().split("\0")):
        path = ROOT / name
        if path.is_symlink():
            found[name] = [] if not path.readlink().is_absolute() else [str(path.readlink())]
        elif path.is_file() and b"\0" not in (content := path.read_bytes()):
            found[name] = trespasses(content.decode("utf-8", errors="replace"))
    assert len(found) > 100
    assert {name: said for name, said in found.items() if said} == {}


@pytest.mark.parametrize(
    ("parts", "n"),
    [
        (("in ", "/home", "/me/x"), 1), (("'", "/root", "/.venv'"), 1), (("C:", "\\Users\\me"), 1),
        (("https://", "pypi.example.org/simple"), 1), (("https://", "me:x@nexus.example.org"), 1),
        (("https://", "example.org/x", "/simple/torch"), 1), (("a", "/home", "/me"), 0),
        (("https://", "pypi.org/simple"), 0), (("https://", "example.org/home", "/x"), 0),
        (("/tmp/real-text",), 0), (("https://", "files.pythonhosted.org/packages/x"), 0),
    ],
)  # fmt: skip
def test_traces_of_a_machine_are_seen(parts, n):
    """Written in parts, so that this file holds none."""
    assert len(trespasses("".join(parts))) == n
