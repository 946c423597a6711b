"""Whatever lies at a path or in a file, reading it ends in one error of one line about the file."""

import errno
import gzip
import lzma
import os

import pytest

from train import storage
from train.errors import DamagedError, DiskError, TrainError
from train.storage import foreign_files


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.mkdir(), "a folder, and a file is expected"),
        (os.mkfifo, "a pipe, and a file is expected"),
        (lambda path: path.symlink_to("/dev/zero"), "a device, and a file is expected"),
        (lambda path: path.symlink_to(path.name), "too many levels of symbolic links"),
        (lambda path: path.symlink_to("nothing"), "the file is missing"),
        (lambda path: None, "the file is missing"),
    ],
)
@pytest.mark.parametrize(
    "read", [storage.read_foreign_json, storage.read_sealed, storage.read_chain,
             storage.sha256_file, storage.ChainWriter]
)  # fmt: skip
def test_only_regular_files_are_read(tmp_path, read, make, words):
    make(tmp_path / "a")
    if read is storage.ChainWriter and not os.path.lexists(tmp_path / "a"):
        return  # it creates the file
    with pytest.raises(DamagedError) as error:
        read(tmp_path / "a")
    assert str(error.value) == f"{tmp_path / 'a'}: {words}"


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (KeyError("names"), "not readable (it has no 'names')"),
        (TypeError("two\nlines"), "not readable (TypeError: two lines)"),
        (RuntimeError("x" * 999), "x..."),
        (RecursionError(), "it is nested too deeply"),
        (ZeroDivisionError("zero"), "ZeroDivisionError: zero"),
    ],
)
def test_what_values_raise_becomes_an_error_about_the_file(raised, words):
    with pytest.raises(DamagedError, match=r"^a\.json: ") as error, storage.reading("a.json"):
        raise raised
    assert words in str(error.value)
    assert len(str(error.value)) < 250


@pytest.mark.parametrize(
    "raised",
    [
        TrainError("known"),
        DiskError("full"),
        MemoryError("no room"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"),
        OSError(errno.EIO, "Input/output error"),
        KeyboardInterrupt(),
    ],
)
def test_what_is_no_fault_of_the_file_passes(raised):
    with pytest.raises(type(raised)) as error, storage.reading("a.json"):
        raise raised
    assert error.value is raised


def test_a_file_is_unpacked_in_bounded_memory(tmp_path):
    for ending, pack in ((".gz", gzip.compress), (".xz", lzma.compress)):
        path = tmp_path / f"a.json{ending}"
        path.write_bytes(pack(b"[1,") + pack(b" 2]"))  # two streams, as `cat` leaves them
        assert storage.read_foreign_json(path) == [1, 2]
        assert storage.read_foreign_bytes(path, most_bytes=7 << 10) == b"[1, 2]"
        path.write_bytes(pack(b" " * (1 << 20)))
        with pytest.raises(DamagedError, match="and at most"):
            storage.read_foreign_bytes(path, most_bytes=1 << 16)
        path.write_bytes(b"")
        os.truncate(path, 1 << 40)
        with pytest.raises(DamagedError, match="at most"):
            storage.read_foreign_json(path)
        path.write_bytes(b"\0" * 1000)
        with pytest.raises(DamagedError, match="cut off or changed"):
            storage.read_foreign_json(path)
        path.write_bytes(pack(b"[1, 2]")[:-5])
        with pytest.raises(DamagedError, match="cut off or changed"):
            storage.read_foreign_json(path)


def test_a_json_text_of_too_many_values_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setattr(foreign_files, "MOST_VALUES", 100)
    with pytest.raises(DamagedError, match="here: about 201 values, and at most 100 are read"):
        storage.parse_json("[" + "[]," * 100 + "1]", "here")


@pytest.mark.parametrize("text", ["a" + ".a" * 500 + " = 1", "a = " + "[" * 500 + "]" * 500])
def test_toml_that_is_nested_too_deeply_is_refused(text, tmp_path):
    storage.write_text(tmp_path / "a.toml", text)
    with pytest.raises(DamagedError, match=r"a\.toml: not readable as TOML \(nested too deeply\)"):
        storage.read_foreign_toml(tmp_path / "a.toml")
    storage.write_text(tmp_path / "a.toml", "a" + ".a" * 50 + " = [[1]]")
    assert storage.read_foreign_toml(tmp_path / "a.toml")


SHAPE = {"counts": {str: int}, "names": [(None, str)], "size?": float, "whole": bool}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"counts": {}, "names": [], "whole": True}, ""),
        ({"counts": {"a": 1}, "names": ["a", None], "whole": False, "size": 1, "more": []}, ""),
        ([], "the content is list, and an object is expected"),
        ({"names": [], "whole": True}, "counts is missing"),
        ({"counts": {"a": "1"}, "names": [], "whole": True}, "counts.a is '1', and a whole number"),
        ({"counts": {"a": True}, "names": [], "whole": True}, "counts.a is True, and a whole"),
        ({"counts": {"a": 2**63}, "names": [], "whole": True}, "and a whole number is expected"),
        ({"counts": {}, "names": [3], "whole": True}, "names[0] is 3, and null is expected"),
        ({"counts": {}, "names": "a", "whole": True}, "names is 'a', and a list is expected"),
        ({"counts": {}, "names": [], "whole": 1}, "whole is 1, and true or false is expected"),
        ({"counts": {}, "names": [], "whole": True, "size": "x" * 99}, "and a number is expected"),
    ],
)
def test_the_shape_of_a_json_value(content, words):
    if not words:
        storage.check_shape(content, SHAPE, "a.json")
        return
    with pytest.raises(DamagedError, match=r"^a\.json: ") as error:
        storage.check_shape(content, SHAPE, "a.json")
    assert words in str(error.value)


@pytest.mark.parametrize("name", ["../a", "/dev/zero", "", ".", "a/b"])
def test_a_listing_names_files_of_its_own_folder_only(tmp_path, name):
    with pytest.raises(DamagedError, match="no file of its folder"):
        storage.listed_file(tmp_path / "index.json", name)


def test_a_message_is_cut_in_the_middle_whatever_a_file_put_into_it():
    said = str(DamagedError(f"a.json: the key {'x' * 100_000} is not known"))
    assert len(said) < 1_000
    assert said.startswith("a.json: the key xxx")
    assert said.endswith("xxx is not known")


@pytest.mark.parametrize("n", [1, 100, 10_000])
def test_a_message_is_one_line_without_control_characters_whatever_a_file_put_into_it(n):
    key = "\n" * n + "\x1b\u202e" * n + "\u2028"
    said = str(DamagedError(f"a.json: the key {key} is 3"))
    assert len(said) < 1_000
    assert len(said.splitlines()) == 1
    assert said.isprintable()
    assert said.startswith("a.json: the key")
    assert said.endswith("is 3")
    assert n > 1 or said == "a.json: the key \\x1bU+202E is 3"


@pytest.mark.parametrize("begin", [b"", b"\0" * 8, (1 << 40).to_bytes(8, "little")])
def test_a_large_file_that_is_no_safetensors_is_not_mapped(tmp_path, begin):
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write(begin)
        file.truncate(1 << 40)
    with pytest.raises(DamagedError, match="a header of"):
        storage.TensorFile(path)
