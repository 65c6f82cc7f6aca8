"""Splitting runs into arrays and waves: each run once, within the site's limits."""

import random

import pytest

from furnace_hpc.launch.arrays import DEFAULT_MAX_ARRAY_SIZE, Array, Limits, next_wave, ranges
from furnace_hpc.launch.planning.plan import Shape

SMALL = Shape(1, 4, 60, None)
LARGE = Shape(8, 4, 60, None)
LONG = Shape(1, 4, 600, "long")


def check(shapes: dict[Shape, list[int]], limits: Limits, arrays: list[Array]) -> None:
    """Check what holds for every wave."""
    for array in arrays:
        assert array.rows
        assert set(array.rows) <= set(shapes[array.shape])
        assert list(array.rows) == sorted(set(array.rows))
        assert [index + array.base for index in array.indices] == list(array.rows)
        assert all(0 <= index < limits.max_array_size for index in array.indices)
        assert array.base == 0 or array.indices[0] == 0
        if array.rows[-1] < limits.max_array_size:
            assert array.base == 0
    sent = [row for array in arrays for row in array.rows]
    assert len(sent) == len(set(sent))
    everything = sum(map(len, shapes.values()))
    if limits.free_jobs is None:
        assert len(sent) == everything
    else:
        assert len(sent) == min(max(0, limits.free_jobs), everything)


def rows_of(arrays: list[Array]) -> list[tuple[int, ...]]:
    return [array.rows for array in arrays]


def test_the_index_of_a_small_row_is_the_row():
    [array] = next_wave({SMALL: [5, 0, 3]}, Limits())
    assert array == Array(SMALL, 0, (0, 3, 5))
    assert array.indices == [0, 3, 5]


def test_the_last_allowed_index_is_used():
    """The next row begins another array."""
    size = DEFAULT_MAX_ARRAY_SIZE
    whole, rest = next_wave({SMALL: list(range(size + 1))}, Limits())
    assert (whole.base, whole.indices) == (0, list(range(size)))
    assert (rest.base, rest.indices) == (size, [0])


def test_2500_rows_are_three_arrays_by_default():
    arrays = next_wave({SMALL: list(range(2500))}, Limits())
    assert [(array.base, len(array.rows)) for array in arrays] == [
        (0, 1001),
        (1001, 1001),
        (2002, 498),
    ]


def test_large_rows_close_together_are_one_array():
    [array] = next_wave({SMALL: [70_000, 70_009, 70_003]}, Limits(10))
    assert (array.base, array.indices) == (70_000, [0, 3, 9])
    assert rows_of(next_wave({SMALL: [70_000, 70_010]}, Limits(10))) == [(70_000,), (70_010,)]


def test_a_retry_of_small_rows_keeps_its_numbers():
    [first] = next_wave({SMALL: list(range(20))}, Limits(100))
    [again] = next_wave({SMALL: [17, 4]}, Limits(100))
    assert (
        dict(zip(again.rows, again.indices, strict=True)).items()
        <= dict(zip(first.rows, first.indices, strict=True)).items()
    )


def test_shapes_are_never_mixed():
    shapes = {SMALL: [0, 2, 4], LARGE: [1, 3], LONG: [5]}
    arrays = next_wave(shapes, Limits())
    assert {array.shape: list(array.rows) for array in arrays} == shapes
    assert len(arrays) == 3


@pytest.mark.parametrize(
    ("free", "sent"),
    [
        (0, []),
        (-5, []),
        (1, [(0,)]),
        (3, [(0, 2, 4)]),
        (4, [(0, 2, 4), (1,)]),
        (6, [(0, 2, 4), (1, 3), (5,)]),
        (99, [(0, 2, 4), (1, 3), (5,)]),
    ],
)
def test_a_wave_keeps_the_limit_of_jobs(free, sent):
    shapes = {SMALL: [0, 2, 4], LARGE: [1, 3], LONG: [5]}
    arrays = next_wave(shapes, Limits(1001, free))
    assert rows_of(arrays) == sent
    check(shapes, Limits(1001, free), arrays)


def test_nothing_to_send_is_no_array():
    assert next_wave({}, Limits()) == []
    assert next_wave({SMALL: []}, Limits(2, 5)) == []


def random_case(chance: random.Random) -> tuple[dict[Shape, list[int]], Limits]:
    count = chance.randint(0, 60)
    rows = chance.sample(range(chance.choice([count + 1, 200, 5000])), count)
    shapes: dict[Shape, list[int]] = {}
    for row in rows:
        shapes.setdefault(chance.choice([SMALL, LARGE, LONG]), []).append(row)
    free = chance.choice([None, chance.randint(-3, 70)])
    return shapes, Limits(chance.choice([2, 3, 10, 64, 1001]), free)


def test_random_waves():
    chance = random.Random(1)
    for _ in range(2000):
        shapes, limits = random_case(chance)
        check(shapes, limits, next_wave(shapes, limits))


def test_waves_submit_every_row_exactly_once():
    chance = random.Random(2)
    for _ in range(500):
        left, limits = random_case(chance)
        wanted = sorted(row for rows in left.values() for row in rows)
        sent: list[int] = []
        while any(left.values()):
            free = None if limits.free_jobs is None else chance.randint(1, 20)
            wave = next_wave(left, Limits(limits.max_array_size, free))
            check(left, Limits(limits.max_array_size, free), wave)
            now = {row for array in wave for row in array.rows}
            sent += now
            left = {shape: [row for row in rows if row not in now] for shape, rows in left.items()}
        assert sorted(sent) == wanted


def test_the_order_of_rows_changes_nothing():
    chance = random.Random(3)
    for _ in range(200):
        shapes, limits = random_case(chance)
        shuffled = {shape: chance.sample(rows, len(rows)) for shape, rows in shapes.items()}
        assert next_wave(shuffled, limits) == next_wave(shapes, limits)


def read(text: str) -> list[int]:
    """Return the indices that Slurm reads in 0-3,7."""
    parts = [part.partition("-") for part in text.split(",") if part]
    return [
        index for first, _, last in parts for index in range(int(first), int(last or first) + 1)
    ]


def test_ranges_are_read_back_unchanged():
    chance = random.Random(4)
    for _ in range(500):
        indices = chance.sample(range(chance.choice([5, 40, 900])), chance.randint(0, 5))
        assert read(ranges(indices)) == sorted(indices)
    assert ranges(list(range(1000))) == "0-999"
    assert ranges([8, 9, 0, 2, 1, 5]) == "0-2,5,8-9"
