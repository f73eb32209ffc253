"""Results of recorded steps lie in a ring."""

import torch

from velodrome.step.capture.ring import Ring


def test_each_step_has_its_slot_and_the_ring_begins_again():
    ring = Ring(torch.tensor(0.0), slots=3)
    seen = []
    for value in (1.0, 2.0, 3.0, 4.0):
        seen.append(ring.peek())
        ring.write(torch.tensor(value))
        ring.advance()
    # The fourth value lies where the first one was.
    assert [float(view) for view in seen] == [4.0, 2.0, 3.0, 4.0]


def test_steps_that_do_not_count_are_written_over():
    ring = Ring(torch.zeros(2), slots=4)
    ring.write(torch.tensor([1.0, 1.0]))
    ring.advance()
    for value in (7.0, 8.0):
        ring.write(torch.full((2,), value))
    assert ring.written(2).tolist() == [[7.0, 7.0], [8.0, 8.0]]
    ring.rewind()
    own = ring.peek()
    ring.write(torch.tensor([2.0, 2.0]))
    assert own.tolist() == [2.0, 2.0]
