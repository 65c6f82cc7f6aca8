"""Slurm's outputs, damaged at random: no traceback, and states come from lines of their job."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_parsing import BANNERS, BETWEEN, recorded

from furnace_hpc.config.errors import UnavailableError
from furnace_hpc.diagnostics.slurm_info import read_associations, read_partitions, read_version
from furnace_hpc.runs.records.attempts import Attempt
from furnace_hpc.slurm import accounting, client
from furnace_hpc.slurm.gres import gpus
from furnace_hpc.slurm.job_states import Phase, meaning
from furnace_hpc.slurm.nodelist import array_elements, node_names
from furnace_hpc.slurm.parsing import (
    array_id,
    parse_count,
    parse_minutes,
    read_accounting,
    read_config,
    read_queue,
    separator,
    submitted_id,
)

ODD = st.text(st.characters(codec="utf-8"), max_size=30) | st.sampled_from(BANNERS)


@st.composite
def damaged(draw: st.DrawFn, name: str) -> str:
    """A recorded output with lines inserted, cut, left out or doubled, and characters changed."""
    lines = recorded(name).split("\n")
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        match draw(st.sampled_from(["insert", "cut", "drop", "double", "change"])):
            case "insert":
                lines.insert(at, draw(ODD))
            case "cut":
                lines[at] = lines[at][: draw(st.integers(0, len(lines[at])))]
            case "drop" if len(lines) > 1:
                del lines[at]
            case "double":
                lines.insert(at, lines[at])
            case "change" if lines[at]:
                place = draw(st.integers(0, len(lines[at]) - 1))
                lines[at] = lines[at][:place] + draw(ODD) + lines[at][place + 1 :]
    return "\n".join(lines)


@pytest.mark.fuzz
@given(damaged("squeue"))
def test_queued_states_are_of_the_jobs_line(text):
    if BETWEEN not in text:
        return
    lines = [[part.strip() for part in line.split(BETWEEN)] for line in text.split("\n")]
    whole_lines = [parts for parts in lines if len(parts) > 6]
    ids = [[p[0]] if p[1] == "N/A" else array_elements(f"{p[0]}_[{p[1]}]") for p in whole_lines]
    own = {
        (job_id, parts[2])
        for of_line, parts in zip(ids, whole_lines, strict=True)
        for job_id in of_line
    }
    assert {(job.job_id, job.word) for job in read_queue(text, BETWEEN) if job.job_id} <= own


@pytest.mark.fuzz
@given(damaged("sacct"))
def test_accounted_states_are_of_the_jobs_line(text):
    if BETWEEN not in text:
        return
    lines = [line.split(BETWEEN) for line in text.split("\n")]
    own = {
        (job_id, parts[1].strip())
        for parts in lines
        if len(parts) > 3
        for job_id in array_elements(parts[0].strip())
    }
    assert {(job.job_id, job.word) for job in read_accounting(text, BETWEEN) if job.job_id} <= own


JOBS = st.lists(
    st.tuples(
        st.integers(1, 30),
        st.integers(0, 3) | st.none(),
        st.sampled_from(["RUNNING", "FAILED", "TIMEOUT"]),
        ODD,
    ),
    max_size=6,
    unique_by=lambda job: job[:2],
)


def _index(number: int | None) -> str:
    return "N/A" if number is None else str(number)


@pytest.mark.fuzz
@given(JOBS, st.lists(ODD, max_size=3))
def test_odd_job_names_mix_up_no_states(jobs, banners):
    between = separator()
    lines = [
        between.join((str(base), _index(index), word, "None", "N/A", "a100", name))
        for base, index, word, name in jobs
    ]
    text = "\n".join([*banners, *lines])
    found = {job.job_id: job.word for job in read_queue(text, between)}
    if jobs:
        assert found == {
            f"{base}" if i is None else f"{base}_{i}": word for base, i, word, _ in jobs
        }


@pytest.mark.fuzz
@given(damaged("partition"), damaged("nodes"))
def test_damaged_partitions(partitions, nodes):
    for part in read_partitions(partitions, nodes):
        assert part.usable <= part.nodes <= len(nodes.split("\n"))
        assert part.gpus >= 0


@pytest.mark.fuzz
@given(damaged("assoc"), damaged("config"))
def test_damaged_settings(associations, config):
    assert all(
        one.max_submit is None or one.max_submit >= 0 for one in read_associations(associations)
    )
    assert all(isinstance(value, str) for value in read_config(config).values())


@pytest.mark.fuzz
@given(damaged("accounted"))
def test_damaged_allocations(text):
    attempts = [
        Attempt(attempt=1, job_id="9", cluster="devcluster"),
        Attempt(attempt=1, job_id="12_2", cluster=""),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "has_slurm", lambda: True)
        patch.setattr(client, "run_checked", lambda *command: text)
        found = accounting.sum_allocations(attempts)
    assert found is None or (found.hours >= 0 and found.jobs <= 2)


@pytest.mark.fuzz
@given(ODD)
def test_any_text_is_parsed_or_nothing(text):
    for value in (parse_minutes(text), parse_count(text)):
        assert value is None or value >= 0
    assert all(number > 0 for number in gpus(text).values())
    assert gpus(f"gpu:3090:8(S:0-1),{text}")["3090"] >= 8
    assert meaning(text).phase in Phase
    assert all(part.startswith(text.partition("_[")[0]) for part in array_elements(text))
    for found in (submitted_id(text), array_id(text)):
        assert found is None or found.isdigit()
    assert all(number >= 0 for number in read_version(text))


@pytest.mark.fuzz
@given(ODD | st.text("an019[]-,", max_size=25))
def test_any_node_list_is_names_or_nothing(text):
    assert all(name and not set(name) & set("[], ") for name in node_names(text))


@pytest.mark.fuzz
@settings(max_examples=max(1, settings().max_examples // 10))
@given(st.binary(max_size=200), st.binary(max_size=50), st.sampled_from([0, 0, 0, 1]))
def test_any_output_of_any_command(tmp_path_factory, out, error, code):
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "out").write_bytes(out)
    (folder / "error").write_bytes(error)
    for name in ("squeue", "sacct", "sinfo", "sacctmgr", "scontrol", "sbatch", "scancel"):
        (folder / name).write_text(
            f"#!/bin/sh\n/bin/cat {folder}/out\n/bin/cat {folder}/error >&2\nexit {code}\n"
        )
        (folder / name).chmod(0o755)
    asked = [client.queue, lambda: client.accounting(["1"]), lambda: client.find_job("furnace-x")]
    asked += [client.configuration.__wrapped__, lambda: client.longest_min.__wrapped__("gpu,a40")]
    client.forget_answers()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(folder))
        patch.setattr(
            client,
            "configuration",
            lambda: {"AccountingStorageType": "accounting_storage/slurmdbd"},
        )
        for ask in [*asked, lambda: client.submit_limit.__wrapped__("MyLab", None)]:
            try:
                ask()
            except UnavailableError:
                assert code or ask in asked[:3]
    client.forget_answers()
