"""Lines of JSON files that are found without reading the whole file."""

import json
import random

import pytest

from furnace_hpc.host import batch
from furnace_hpc.host.json_lines import find_in_order


def write(path, numbers, chance):
    lines = [json.dumps({"row": n, "run_id": "x" * chance.randint(0, 90)}) for n in numbers]
    path.write_text("".join(line + "\n" for line in lines))


def test_every_line_of_a_sorted_file_is_found(tmp_path):
    chance, path = random.Random(1), tmp_path / "rows.jsonl"
    for count in (0, 1, 2, 3, 7, 50, 200):
        numbers = sorted(chance.sample(range(2 * count), count))
        write(path, numbers, chance)
        for number in range(-1, 2 * count + 1):
            found = find_in_order(path, "row", number)
            assert (found["row"] if found else None) == (number if number in numbers else None)


def test_few_lines_are_read_of_a_long_file(tmp_path, monkeypatch):
    """A job of a large submission does not parse the rows of all others."""
    chance, path = random.Random(2), tmp_path / "rows.jsonl"
    write(path, range(5000), chance)
    parsed, parse = [], json.loads
    monkeypatch.setattr(json, "loads", lambda text: parsed.append(text) or parse(text))
    assert batch._find_row(str(tmp_path), "row", 4321)["row"] == 4321
    assert len(parsed) <= 20


@pytest.mark.parametrize(
    "text",
    [
        '{"row": 1}\n{"row": 0}\n{"row": 2}\n',
        '{"row": 0}\n{"row": 1}\n\n{"row": 2}\n{"ro',
        '{"run_id": "x"}\n[]\n{"row": 0}\n{"row": 1}\n{"row": 2}\n',
    ],
    ids=["not sorted", "damaged", "without a number"],
)
def test_other_files_are_read_from_their_beginning(tmp_path, text):
    (tmp_path / "rows.jsonl").write_text(text)
    for number in range(3):
        assert batch._find_row(str(tmp_path), "row", number)["row"] == number
    assert batch._find_row(str(tmp_path), "row", 3) == {}
