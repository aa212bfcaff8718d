"""Attention of the shared layer."""

from __future__ import annotations

import pytest
import torch

from armd.layers import attend
from armd.masks import Mask


@pytest.mark.parametrize("rendered", [None, torch.tensor([True, False, True, True, False])])
def test_one_row_in_bfloat16_attends_as_in_float32(rendered: torch.Tensor | None) -> None:
    """A row on its own takes another way through the kernels than rows of a batch."""
    q, k, v = (torch.randn(2, 3, rows, 8).bfloat16() for rows in (1, 5, 5))
    see = Mask(rendered=None if rendered is None else rendered.expand(2, 1, 1, 5))
    found, wanted = attend(q, k, v, see, 0.0), attend(q.float(), k.float(), v.float(), see, 0.0)
    assert found.shape == wanted.shape == (2, 3, 1, 8)
    torch.testing.assert_close(found.float(), wanted, rtol=2e-2, atol=2e-2)
