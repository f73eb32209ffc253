"""How a batch lies in the pinned ring; the ring itself needs CUDA: tests/gpu/test_pinned_ring.py."""

import pytest
import torch

from velodrome.data.pinned import laid_out_like

PICTURES = torch.arange(4 * 3 * 5 * 6.0).view(4, 3, 5, 6)


@pytest.mark.parametrize(
    ("tensor", "strides"),
    [
        (PICTURES, (90, 30, 6, 1)),
        (PICTURES.to(memory_format=torch.channels_last), (90, 1, 18, 3)),
        (torch.arange(12.0).view(3, 4).t(), (1, 4)),
        (torch.arange(24.0).view(4, 6)[:, ::2], (3, 1)),  # with gaps: packed
        (torch.arange(3.0).expand(2, 3), (3, 1)),  # one row that stands for two
        (torch.tensor(3, dtype=torch.int16), ()),
    ],
)
def test_a_copy_keeps_the_order_of_numbers_where_there_are_no_gaps(tensor, strides):
    memory = torch.zeros(128 + tensor.nbytes, dtype=torch.uint8)[128:]
    staged = laid_out_like(tensor, memory)
    staged.copy_(tensor)

    assert staged.stride() == strides
    assert torch.equal(staged, tensor)
    assert staged.untyped_storage().data_ptr() == memory.untyped_storage().data_ptr()
    assert staged.numel() * staged.element_size() == len(memory)
