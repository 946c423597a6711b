"""The published order gives the tokens of a step, and says which claims of order hold."""

import os

import numpy as np
import pytest

from tests.worlds.published import write_sequences
from train.data import open_published_order
from train.errors import DamagedError, TrainError


N, LENGTH, BATCH = 24, 65, 4
ROWS = np.random.default_rng(0).integers(1, 500, (N, LENGTH))


def verdicts(order, **sizes) -> dict[str, str]:
    return {one.claim.split(",")[0]: one.verdict for one in order.check(**sizes)}


@pytest.mark.parametrize("pieces", [0, 1, 3, 5])
def test_a_step_read_its_sequences_in_order(pieces, tmp_path):
    order = open_published_order(write_sequences(tmp_path, ROWS, pieces=pieces), batch=BATCH)
    assert (order.n_sequences, order.n_steps) == (N, N // BATCH)
    for step in range(order.n_steps):
        assert (order.tokens_read(step) == ROWS[step * BATCH : (step + 1) * BATCH]).all()
    with pytest.raises(TrainError, match="no step 6; it has steps 0 to 5"):
        order.tokens_read(6)


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.idx")
    for name, said in (("pipe.idx", "a pipe"), ("none.idx", "the file is missing"), (".", "a fol")):
        with pytest.raises(DamagedError, match=said):
            open_published_order(tmp_path / name)


def test_what_is_there_of_pieces_can_be_read(tmp_path):
    index = write_sequences(tmp_path, ROWS, pieces=3)
    (tmp_path / "document-00001-of-00003.bin").unlink()
    order = open_published_order(index, batch=BATCH)
    assert order.steps_there() == [0, 1, 4, 5]
    assert (order.tokens_read(4) == ROWS[16:20]).all()
    with pytest.raises(TrainError, match=r"00001-of-00003\.bin: the file is missing"):
        order.tokens_read(2)
    claim = next(one for one in order.check() if "are there" in one.claim)
    assert (claim.verdict, claim.says) == ("fails", "4 of 6 steps are in the files")
    for path in tmp_path.glob("*.bin"):
        path.unlink()
    assert open_published_order(index, batch=BATCH).steps_there() == []


def test_the_claims_of_an_order_without_separators_and_with_one_epoch(tmp_path):
    order = open_published_order(write_sequences(tmp_path, ROWS), batch=BATCH)
    assert verdicts(order, d_vocab=500, n_ctx=64) == {
        "every sequence is one token longer than the context": "holds",
        "the tokens of every step are there": "holds",
        "every token is in the vocabulary of the model": "holds",
        "documents are separated": "fails",
        "no text is read twice (a single epoch)": "holds",
        "the checkpoints were trained on these tokens in this order": "cannot be checked",
    }
    found = verdicts(order, d_vocab=300, n_ctx=65)
    assert found["every token is in the vocabulary of the model"] == "fails"
    assert found["every sequence is one token longer than the context"] == "fails"
    assert verdicts(order)["every token is in the vocabulary of the model"] == "cannot be checked"


def test_a_second_epoch_is_found_wherever_its_sequences_are_cut(tmp_path):
    text = np.random.default_rng(1).integers(1, 500, 40 * LENGTH)
    # The second half is the same text, cut 17 tokens later.
    twice = np.concatenate([text, np.roll(text, 17)]).reshape(-1, LENGTH)
    order = open_published_order(write_sequences(tmp_path, twice), batch=BATCH)
    claim = next(one for one in order.check() if "twice" in one.claim)
    assert claim.verdict == "fails"
    again, among = [int(word) for word in claim.says.split() if word.isdigit()][:2]
    assert among / 2 * 0.8 < again <= among / 2


def test_separators_are_counted(tmp_path):
    rows = ROWS.copy()
    rows[:, 10] = 0
    order = open_published_order(write_sequences(tmp_path, rows), batch=BATCH)
    claim = next(one for one in order.check() if "separated" in one.claim)
    assert claim.verdict == "cannot be checked"
    assert claim.says.startswith("24 tokens are 0")


HARM = {
    "empty": lambda data: b"",
    "another file": lambda data: b"PK\x03\x04" + data,
    "cut off": lambda data: data[:-8],
    "longer": lambda data: data + b"\x00",
    "another version": lambda data: data[:9] + b"\x02" + data[10:],
    "floating point": lambda data: data[:17] + b"\x06" + data[18:],
    "many sequences": lambda data: data[:18] + b"\xff" * 8 + data[26:],
}


@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_index_is_named(harm, tmp_path):
    index = write_sequences(tmp_path, ROWS)
    index.write_bytes(HARM[harm](index.read_bytes()))
    with pytest.raises(DamagedError, match=r"document\.idx: ") as refusal:
        open_published_order(index, batch=BATCH)
    assert "\n" not in str(refusal.value)


def test_data_of_another_size_and_places_that_are_none_are_refused(tmp_path):
    index = write_sequences(tmp_path, ROWS)
    data = (tmp_path / "document.bin").read_bytes()
    (tmp_path / "document.bin").write_bytes(data[:-2])
    with pytest.raises(DamagedError, match=r"document\.bin: 1 files of 3,118 bytes"):
        open_published_order(index, batch=BATCH).tokens_read(0)
    (tmp_path / "document.bin").write_bytes(data)
    content = bytearray(index.read_bytes())
    content[34 + 4 * N + 8 : 34 + 4 * N + 16] = (10**15).to_bytes(8, "little")
    index.write_bytes(bytes(content))
    with pytest.raises(DamagedError, match="do not lie one after another"):
        open_published_order(index, batch=BATCH).tokens_read(0)
    with pytest.raises(TrainError, match="a batch of 25 of 24 sequences"):
        open_published_order(index, batch=25)
