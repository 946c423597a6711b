"""MIB's format is read and written without loss, and what is no such file is refused."""

import bz2
import gzip
import json
import lzma
import math

import pytest
import torch

from interp import circuits
from interp.circuits import Graph
from interp.circuits.edge_selection import select
from interp.circuits.mib_format import EdgeFile
from interp.errors import CircuitError


GRAPH = Graph(2, 2, 8)


def example() -> EdgeFile:
    generator = torch.Generator().manual_seed(0)
    worth = torch.randn(GRAPH.n_edges, generator=generator, dtype=torch.float64)
    kept = GRAPH.holding(["input->m0", "m0->logits"])
    return EdgeFile(GRAPH, worth, kept, ("input", "m0", "logits"))


@pytest.fixture
def reference(shared_data):
    path = shared_data / "ground_truth" / "mib_gpt2_ioi_eap-ig_circuit.json.xz"
    if not path.is_file():
        pytest.skip("the circuit file of MIB is not at hand")
    return path


@pytest.mark.parametrize("name", ["circuit.json", "circuit.json.xz"])
def test_what_is_written_is_read_again(tmp_path, name: str):
    wrote = example()
    circuits.write_mib(tmp_path / name, wrote)
    found = circuits.read_mib(tmp_path / name)
    assert found.graph == GRAPH
    assert found.worth.equal(wrote.worth)
    assert found.kept.equal(wrote.kept)
    assert found.nodes == wrote.nodes


def test_the_reference_file_has_mibs_counts(reference):
    found = circuits.read_mib(reference)
    assert len(found.graph.nodes) == 158
    assert found.graph.n_edges == 32_491
    assert (int(found.kept.sum()), len(found.nodes)) == (756, 81)


def test_the_reference_file_is_written_again_byte_for_byte(reference, tmp_path):
    circuits.write_mib(tmp_path / "again.json", circuits.read_mib(reference))
    assert (tmp_path / "again.json").read_bytes() == lzma.decompress(reference.read_bytes())


def test_the_800_strongest_edges_of_the_reference_are_pruned_to_its_756(reference):
    """The file's own membership, found again from its scores: our pruning is MIB's."""
    found = circuits.read_mib(reference)
    again = select(found.graph, found.worth.float(), 800, selection="top")
    assert again.equal(found.kept)


def test_a_file_of_a_parallel_model_is_written_and_read(tmp_path):
    graph = Graph(2, 2, 8, parallel=True)
    worth, kept = torch.arange(graph.n_edges).double(), torch.arange(graph.n_edges) % 3 == 0
    written = EdgeFile(graph, worth, kept, graph.nodes)
    circuits.write_mib(tmp_path / "parallel.json", written)
    assert json.loads((tmp_path / "parallel.json").read_text())["cfg"]["parallel_attn_mlp"] is True
    found = circuits.read_mib(tmp_path / "parallel.json")
    assert found.graph == graph
    assert found.worth.equal(worth)
    assert found.kept.equal(kept)


def test_a_file_of_membership_without_scores_is_read_and_written(tmp_path):
    content = json.loads(json.dumps(example().to_dict()))
    for edge in content["edges"].values():
        del edge["score"]
    (tmp_path / "members.json").write_text(json.dumps(content))
    found = circuits.read_mib(tmp_path / "members.json")
    assert found.worth.isnan().all()
    assert int(found.kept.sum()) == 2
    circuits.write_mib(tmp_path / "again.json", found)
    assert json.loads((tmp_path / "again.json").read_text()) == content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("edges"), "needs the keys cfg, nodes and edges"),
        (lambda c: c["cfg"].update(n_heads=3), "fewer than its cfg asks for|18 edges|differs"),
        (lambda c: c["cfg"].update(n_layers="2"), "cfg has n_layers '2'"),
        (lambda c: c["cfg"].update(n_layers=99_999), "fewer than its cfg asks for"),
        (lambda c: c["cfg"].update(parallel_attn_mlp=True), "first that differs is 'a0.h0->m0'"),
        (lambda c: c["cfg"].update(parallel_attn_mlp="no"), "parallel_attn_mlp 'no'"),
        (lambda c: c["edges"].update({"m0->m0": {"in_graph": True}}), "differs is 'm0->m0'"),
        (lambda c: c["edges"]["input->m0"].update(score="0.1"), "a score that is a number"),
        (lambda c: c["edges"]["input->m0"].update(in_graph=1), "in_graph"),
        (lambda c: c["nodes"].pop("m1"), "differs is 'm1'"),
    ],
)
def test_what_is_no_circuit_of_such_a_model_is_refused(tmp_path, change, message: str):
    content = example().to_dict()
    change(content)
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(content))
    with pytest.raises(CircuitError, match=message):
        circuits.read_mib(path)


@pytest.mark.parametrize("pack", [bytes, lzma.compress, bz2.compress, gzip.compress])
def test_a_byte_order_mark_and_every_compression_are_read(tmp_path, pack):
    circuits.write_mib(tmp_path / "a.json", example())
    ending = {bytes: "", lzma.compress: ".xz", bz2.compress: ".bz2", gzip.compress: ".gz"}[pack]
    path = tmp_path / f"b.json{ending}"
    path.write_bytes(pack(b"\xef\xbb\xbf" + (tmp_path / "a.json").read_bytes()))
    assert circuits.read_mib(path).worth.equal(example().worth)


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff\xfe", b"{" * 100_000, b'{"cfg": '])
def test_damaged_bytes_are_refused(tmp_path, data: bytes):
    for name in ("damaged.json", "damaged.json.xz"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CircuitError, match="damaged"):
            circuits.read_mib(tmp_path / name)


def test_a_score_that_is_no_number_is_left_out(tmp_path):
    one = example()
    one.worth[0] = math.nan
    circuits.write_mib(tmp_path / "nan.json", one)
    assert "NaN" not in (tmp_path / "nan.json").read_text()
    assert circuits.read_mib(tmp_path / "nan.json").worth[0].isnan()
