"""Square roots of portable runs: correctly rounded, with torch's gradient."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from furnace_hpc.model.square_root import round_correctly, square_root

VALUES = torch.cat(
    [torch.rand(20_000, generator=torch.Generator().manual_seed(0)) * scale for scale in (1, 1e-9)]
)


@pytest.fixture
def exact() -> Iterator[None]:
    round_correctly(True)
    yield
    round_correctly(False)


def test_portable_roots_are_correctly_rounded(exact):
    """numpy uses the CPU's instruction, which IEEE 754 defines to the last bit."""
    np.testing.assert_array_equal(square_root(VALUES).numpy(), np.sqrt(VALUES.numpy()))


def test_the_gradient_is_that_of_torch(exact):
    mine, theirs = (VALUES[VALUES > 0].clone().requires_grad_() for _ in range(2))
    square_root(mine).sum().backward()
    theirs.sqrt().sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-6, atol=0)
    root = torch.from_numpy(np.sqrt(mine.detach().numpy()))
    assert torch.equal(mine.grad, 1 / (2 * root))


def test_other_runs_keep_the_bits_of_torch():
    assert torch.equal(square_root(VALUES), VALUES.sqrt())
