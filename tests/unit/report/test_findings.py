"""What a bill means in words."""

from dataclasses import replace

import pytest

from velodrome.record.bill import Bill
from velodrome.report.findings import find_bottlenecks


def bill(*, wall_s=10.0, callbacks=None, batches=100, facts=None, **parts):
    rest = wall_s - sum(parts.values())
    facts = {"workers": 0, "in_memory": False, "cores": 4} | (facts or {})
    return Bill(
        wall_s=wall_s, parts={"forward": rest, **parts}, callbacks=callbacks or {}, batches=batches, dataset="Scans", facts=facts
    )  # fmt: skip


@pytest.mark.parametrize(
    ("num", "facts", "words"),
    [
        (
            1,
            {"compiled": True},
            "40% of the time is what one batch took longer than usual. The first ones compile the model",
        ),
        (7, {}, "40% of the time is what 7 batches took longer than usual. Look what your code does there"),
    ],
)
def test_batches_that_take_far_longer_now_and_then_are_told(num, facts, words):
    (line,) = find_bottlenecks(replace(bill(facts=facts), num_long=num, long_s=4.0))
    assert line.startswith(words)
    assert find_bottlenecks(replace(bill(facts=facts), num_long=num, long_s=1.0)) == []  # a tenth
    assert find_bottlenecks(replace(bill(wall_s=1.0, facts=facts), num_long=num, long_s=0.4)) == []  # of a short run


def test_waiting_for_data_names_the_dataset_the_time_and_what_to_try():
    (line,) = find_bottlenecks(bill(data_wait=6.2))
    # 6.2 of 10 s; 6.2 s / 100 batches
    assert line.startswith("62% of the time is waiting for data: Scans lets the loop wait 62 ms a batch. ")
    assert line.endswith(
        "try num_workers=4 of a DataLoader (train.num_workers in a recipe), or keep the samples in memory as tensors "
        "(train.in_memory=true in a recipe)."
    )


@pytest.mark.parametrize(
    ("facts", "advice"),
    [
        ({"workers": 1}, "Try num_workers=2 instead of 1"),
        ({"workers": 4}, "4 workers and the loop share 4 cores: do less for each sample"),
        ({"workers": 4}, "disk or a network), more workers than cores help: try num_workers=8."),
        ({"cores": 1}, "There is one core only"),
        ({"cores": 1}, "disk or a network), more workers than cores help: try num_workers=2"),
        ({"in_memory": True}, "in memory already: try larger batches"),
        ({"in_memory": True, "transform": "blur"}, "The function blur changes every batch: do less in it"),
    ],
)
def test_what_to_try_depends_on_how_the_data_are_read(facts, advice):
    assert advice in find_bottlenecks(bill(data_wait=6.2, facts=facts))[0]


@pytest.mark.parametrize(
    ("facts", "advice"),
    [
        ({"workers_are_measured": True}, 'num_workers="auto" took no workers, as far as it has measured: do less for each sample'),
        ({"workers_are_measured": True, "workers": 1}, 'num_workers="auto" took 1 worker, as far'),
        (
            {"workers_are_measured": True, "workers_failed": "start"},
            "No worker could be started: make what they are sent picklable (define dataset, collate_fn and worker_init_fn at the top of a module",
        ),
        ({"workers_are_measured": True, "workers_failed": "run"}, 'The workers that num_workers="auto" tried failed, and the line "train: no workers" says why: mend that'),
        ({"is_stream": True, "takes_workers": False}, "It is a stream, where the number of workers decides the order: do less"),
        ({"takes_workers": False}, "Its batches are made in the training process: do less for each, or give a Dataset"),
    ],
)  # fmt: skip
def test_no_number_of_workers_is_proposed_where_it_was_measured_or_has_no_switch(facts, advice):
    (line,) = find_bottlenecks(bill(data_wait=6.2, facts=facts))
    assert advice in line
    assert "try num_workers" not in line.lower()


def test_auto_with_as_many_workers_as_cores_says_that_it_tries_no_more():
    (line,) = find_bottlenecks(bill(data_wait=6.2, facts={"workers_are_measured": True, "workers": 4}))
    assert (
        'num_workers="auto" took 4 workers, as far as it has measured, and tries no more than there are cores' in line
    )
    assert line.endswith("more workers than cores help: try num_workers=8.")


def test_a_stream_is_not_told_to_lie_in_memory_which_is_refused():
    (line,) = find_bottlenecks(bill(data_wait=6.2, facts={"is_stream": True, "takes_workers": False}))
    assert line.endswith("It is a stream, where the number of workers decides the order: do less for each sample.")


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (
            "transfer",
            "30% of the time is moving batches of Scans to the device, 30 ms a batch. Try smaller values, such as uint8 pixels",
        ),
        ("optimizer", "30% of the time is the optimizer. Try it by name"),
        (
            "saving",
            "30% of the time is saving checkpoints. Try Checkpointing(background=True), in a recipe checkpoint.background=true",
        ),
        ("logging", "30% of the time is logging and metrics. Try a larger log_every"),
    ],
)
def test_each_part_has_a_sentence(part, words):
    assert find_bottlenecks(bill(**{part: 3.0}))[0].startswith(words)
    assert find_bottlenecks(bill(**{part: 0.4})) == []


def test_an_optimizer_that_is_fused_is_not_told_to_be():
    (line,) = find_bottlenecks(bill(optimizer=3.0, facts={"fused_optimizer": True}))
    assert (
        line == "30% of the time is the optimizer. It is fused already: try larger batches, which need fewer updates."
    )


def test_where_processes_wait_for_one_another_the_optimizer_alone_is_not_blamed():
    (line,) = find_bottlenecks(bill(optimizer=4.0, facts={"fused_optimizer": True, "processes": 2}))
    assert line.startswith("40% of the time is the optimizer, where the 2 processes wait for the slowest of them")
    assert "It is fused already" not in line


def test_saves_in_the_background_are_not_told_to_be():
    (line,) = find_bottlenecks(bill(saving=3.0, facts={"saves_in_background": True}))
    assert line == "30% of the time is saving checkpoints. They are written in the background already: save less often."


def test_evaluation_has_a_sentence():
    assert find_bottlenecks(bill(evaluation=5.0))[0].startswith(
        "50% of the time is evaluation. Try a larger eval_batch_size"
    )


def test_the_most_expensive_comes_first_and_lines_that_wait_last():
    lines = find_bottlenecks(
        bill(data_wait=2.5, callbacks={"Uploads": 4.0, "Quick": 0.1}, logging=0.0), ["a.py:3 waits."]
    )
    assert [line.split()[0] for line in lines] == ["40%", "25%", "a.py:3"]
    assert "the callback Uploads, 4 s" in lines[0]


def test_a_run_without_batches_says_nothing():
    assert find_bottlenecks(Bill(wall_s=0.0)) == []
