"""When documents were read, asked of many at once, is what each of them says alone."""

import numpy as np
import pytest

from tests.test_golden_files import GOLDEN
from train import runs
from train.errors import StoreError


@pytest.mark.parametrize("kind", ["run", "nanogpt", "stopped", "run/counterfactuals/*"])
def test_first_steps_of_many_documents_are_those_of_each(kind):
    """A finished run, one of a recorded order, a stopped one, and one without two documents."""
    (path,) = GOLDEN.glob(kind)
    run = runs.open(path)
    documents = np.random.default_rng(0).permutation(run.store.n_documents)
    alone = [run.steps_learned(int(one)) for one in documents]
    expected = [int(steps[0]) if len(steps) else -1 for steps in alone]
    assert run.first_steps_learned(documents).tolist() == expected
    assert len({*expected}) > 1
    assert -1 in expected
    assert run.first_steps_learned([]).tolist() == []


def test_a_document_that_the_store_does_not_have_is_refused():
    run = runs.open(GOLDEN / "run")
    with pytest.raises(StoreError, match="document 120 is not one of the 120 of the store"):
        run.first_steps_learned([3, 120])
