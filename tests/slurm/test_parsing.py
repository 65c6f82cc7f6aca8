"""Parsing of Slurm's outputs: recorded ones, odd names, banners, GRES, times, ids, node lists."""

from pathlib import Path

import pytest

from furnace_hpc.diagnostics.slurm_info import read_associations, read_partitions, read_version
from furnace_hpc.slurm import client
from furnace_hpc.slurm.gres import gpus
from furnace_hpc.slurm.job_states import Phase, meaning
from furnace_hpc.slurm.nodelist import array_elements, node_names
from furnace_hpc.slurm.parsing import (
    Job,
    array_id,
    largest_array,
    parse_minutes,
    read_accounting,
    read_config,
    read_queue,
    read_table,
    submitted_id,
)

OUTPUTS = Path(__file__).with_name("outputs")  # of slurm/devcluster, Slurm 22.05.8
BETWEEN = "|3f9a8c2e|"


def recorded(name: str) -> str:
    return (OUTPUTS / f"{name}.txt").read_bytes().decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gpu:3090:8(S:0-1)", {"3090": 8}),
        ("gpu:2080ti:4", {"2080ti": 4}),
        ("gpu:a100:no_consume:4", {"a100": 4}),
        ("gpu:1g.5gb:7", {"1g.5gb": 7}),
        ("gpu:8", {"": 8}),
        ("gpu:no_consume:2", {"": 2}),
        ("gpu:a100:4(IDX:0-3)", {"a100": 4}),
        ("gpu:(null):4(IDX:0,2-3)", {"": 4}),
        ("gpu:a100:4(S:0,2),gpu:v100:2(S:1),shard:32,mps:400,tmp:1T", {"a100": 4, "v100": 2}),
        ("tmp:1,gpu:h100-sxm:8", {"h100-sxm": 8}),
        ("gpu:1g.10gb+me:3", {"1g.10gb+me": 3}),
        ("gres:gpu:2", {"": 2}),
        ("gres/gpu:h100:4", {"h100": 4}),
        ("gpu", {"": 1}),
        ("gpu:tesla", {"tesla": 1}),
        ("gpu:a100:1K", {"a100": 1024}),
        ("bandwidth:lustre:no_consume:4G,gpu:1", {"": 1}),
        ("cpu=8,mem=16G,gres/gpu:a100=4,gres/gpu=4,node=1", {"a100": 4}),
        ("gres/gpu=4,gres/gpu:a100=3", {"a100": 3, "": 1}),
        ("billing=8,gres/gpu=2", {"": 2}),
        ("gres/gpu:3090=2", {"3090": 2}),
        ("gres/gpumem=40G,gres/gpuutil=10,gres/shard=3", {}),
        ("shard:a100:8", {}),
        ("mps:400", {}),
        ("(null)", {}),
        ("N/A", {}),
        ("", {}),
        ("gpu:a100:0", {}),
    ],
)
def test_gpus_in_gres_and_tres(text, expected):
    assert gpus(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1-02:03:04", 1563),
        ("02:03:04", 123),
        ("00:05:00", 5),
        ("5:00", 5),
        ("0:30", 0),
        ("30", 30),
        ("1-12", 2160),
        ("1-12:30", 2190),
        ("1-12:30:00", 2190),
        ("7-00:00:00", 10080),
        ("UNLIMITED", None),
        ("infinite", None),
        ("Partition_Limit", None),
        ("n/a", None),
        ("Unknown", None),
        ("", None),
        ("INVALID", None),
    ],
)
def test_times_in_minutes(text, expected):
    assert parse_minutes(text) == expected


@pytest.mark.parametrize(
    ("job_id", "elements"),
    [
        ("12", ["12"]),
        ("12_3", ["12_3"]),
        ("123+1", ["123+1"]),
        ("123_[0-5%2]", [f"123_{number}" for number in range(6)]),
        ("12_[0-3,7,8-12:2%5]", ["12_0", "12_1", "12_2", "12_3", "12_7", "12_8", "12_10", "12_12"]),
        ("12_[0,2,...]", []),  # cut off by Slurm
        ("12_[0-3", []),
        ("12_[0-4000000000]", []),
        ("12_[0-3:0]", ["12_0", "12_1", "12_2", "12_3"]),
        ("12_[]", []),
    ],
)
def test_array_elements(job_id, elements):
    assert array_elements(job_id) == elements


@pytest.mark.parametrize(
    ("word", "same"),
    [
        ("RUNNING+COMPLETING", "COMPLETING"),
        ("PENDING+REQUEUE_HOLD", "REQUEUE_HOLD"),
        ("CANCELLED+COMPLETING by 1000", "COMPLETING"),
        ("PENDING+REQUEUED+COMPLETING", "COMPLETING"),
        ("RUNNING,CONFIGURING", "CONFIGURING"),
        ("CANCELLED by 1000", "CANCELLED"),
    ],
)
def test_states_with_flags(word, same):
    assert meaning(word) is meaning(same)


@pytest.mark.parametrize(
    "word", ["RUNNING+FOO", "RUNNING+FAILED", "+", "RUNNING++FOO", ",", "PENDING,FOO"]
)
def test_impossible_flags_are_unknown(word):
    assert meaning(word).phase is Phase.UNKNOWN


def test_recorded_squeue_with_odd_names():
    jobs = {job.job_id: job for job in read_queue(recorded("squeue"), BETWEEN)}
    assert jobs["19"] == Job("19", "PENDING", "PartitionDown", "a|b", "", "closed")
    assert "12_0" not in jobs  # a job has a line like this in its name
    assert jobs["22"].name.startswith("pre")
    assert (jobs["20"].word, jobs["21_4"].name, jobs["23_3"].reason) == (
        "PENDING",
        "",
        "JobArrayTaskLimit",
    )
    assert (jobs["23_0"].word, jobs["25"].word) == ("RUNNING", "COMPLETED")
    assert (jobs["23_2"].start, jobs["23_2"].partition) == ("2026-11-29T02:30:00", "a100")
    assert (jobs["23_3"].start, jobs["23_0"].partition) == ("", "")
    assert "" not in jobs
    assert len(jobs) == 14


def test_recorded_sacct_with_odd_names():
    jobs = {job.job_id: job for job in read_accounting(recorded("sacct"), BETWEEN)}
    assert jobs["1"] == Job("1", "CANCELLED by 0", "exit code 0:0", "a|b")
    assert jobs["12_0"] == Job("12_0", "FAILED", "exit code 1:0", "furnace-study-35eef0e7")
    assert [jobs[f"3_{number}"].word for number in (0, 2, 4)] == ["CANCELLED by 0"] * 3
    assert jobs["25+1"].word == "COMPLETED"
    assert "" not in jobs


BANNERS = [
    "CLUSTER: alpha",
    "",
    "Welcome | to | alpha | all | jobs | 12",
    "*** maintenance ***",
    "12",
    "\x1b[2J",
    "é\udc80",
]


@pytest.mark.parametrize("first", BANNERS)
def test_a_banner_changes_nothing(first):
    for name, read in (("squeue", read_queue), ("sacct", read_accounting)):
        assert read(f"{first}\n{recorded(name)}", BETWEEN) == read(recorded(name), BETWEEN)
    partitions, nodes = recorded("partition"), recorded("nodes")
    assert read_partitions(f"{first}\n{partitions}", f"{first}\n{nodes}") == read_partitions(
        partitions, nodes
    )
    assert read_associations(f"{first}\n{recorded('assoc')}") == read_associations(
        recorded("assoc")
    )
    assert read_config(f"{first}\n{recorded('config')}") == read_config(recorded("config"))
    assert read_version(f"{first}\nslurm 23.11.4") == (23, 11)
    assert (
        submitted_id(f"{first}\nsee job 5 of the news\nSubmitted batch job 77 on cluster alpha\n")
        == "77"
    )
    assert array_id(f"{first.removesuffix('12')}\n88_3\n") == "88"


def test_other_lines_are_kept_apart():
    table = read_table("CLUSTER: alpha\n\na|1\nb|x\n", (r"[^|]+", "[0-9]+"))
    assert table == ([["a", "1"]], ["CLUSTER: alpha", "b|x"])


def test_padded_columns():
    text = "12 | 0 | PENDING | Resources | N/A | a40,a100 |furnace-x\n"
    assert read_queue(text, "|") == [
        Job("12_0", "PENDING", "Resources", "furnace-x", "", "a40,a100")
    ]
    assert (
        read_partitions("PartitionName=a State=UP", "n0 |a* |idle |64 |1000 |gpu:2 ")[0].gpus == 2
    )


def test_a_cut_off_line_is_a_job_without_id():
    text = recorded("squeue")
    cut = text[: text.index("RUNNING") + 3]
    assert [job.job_id for job in read_queue(cut, BETWEEN)].count("") == 1
    assert read_queue("12|[0-99999999999]|PENDING|None|x", "|") == [
        Job("", "", "12|[0-99999999999]|PENDING|None|x")
    ]


def with_sacctmgr(lines: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Replace sacctmgr by these lines of shell, for cluster alpha."""
    (folder / "sacctmgr").write_text(f"#!/bin/sh\n{lines}\n")
    (folder / "sacctmgr").chmod(0o755)
    patch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    settings = {"AccountingStorageType": client.SLURMDBD, "ClusterName": "alpha"}
    client.forget_answers()
    patch.setattr(client, "configuration", lambda: settings)


@pytest.fixture
def patched(tmp_path, monkeypatch):
    """The arguments of `with_sacctmgr`. Its answers are forgotten at the end."""
    yield tmp_path, monkeypatch
    monkeypatch.undo()
    client.forget_answers()


def test_limits_of_accounts_ignore_case(patched):
    accounts = 'echo "CLUSTER: x"; echo "other|3||"; echo "mylab|9|7|Normal"'
    with_sacctmgr(f'case "$*" in *assoc*) {accounts} ;; *) echo "normal|8||" ;; esac', *patched)
    limit = client.submit_limit.__wrapped__
    assert [
        limit(account, qos) for account in ("MyLab", "mylab", "MYLAB") for qos in (None, "NORMAL")
    ] == [7] * 6
    assert limit("Other", None) == 3


def test_limits_of_another_cluster_do_not_count(patched):
    """One accounting serves several clusters, and the user may submit nothing on cluster beta."""
    lines = """
        case "$*" in
        *assoc*cluster=alpha*) echo "lab|9||" ;;
        *assoc*) echo "lab|0||"; echo "lab|9||" ;;
        esac
    """
    with_sacctmgr(lines, *patched)
    assert client.submit_limit("lab", None) == client.submit_limit(None, None) == 9


def test_a_qos_lifts_the_time_limit_of_a_partition(patched):
    rows = 'echo "normal|||"; echo "Long|||DenyOnLimit,PartitionTimeLimit"'
    lines = f'case "$*" in *assoc*) echo "a|||"; echo "b|||long" ;; *) {rows} ;; esac'
    with_sacctmgr(lines, *patched)
    patched[1].setattr(client, "longest_min", lambda partition: {"p": 5}.get(partition))
    assert client.time_limit_min("p") == client.time_limit_min("p", "a") == 5
    assert client.time_limit_min("p", "a", "normal") == 5
    assert client.time_limit_min("p", "a", "long") is client.time_limit_min("p", "b") is None
    assert client.time_limit_min("free", "a") is None
    patched[1].setattr(client, "configuration", dict)
    assert client.time_limit_min("p", "a", "long") == 5  # without accounting there is no QOS


@pytest.mark.parametrize(
    ("size", "parameters", "largest"),
    [
        ("10001", "(null)", 10001),
        ("10001", "bf_continue,max_array_tasks=1000,bf_max_job_test=9", 1000),
        ("1001", "max_array_tasks=5000", 1001),
        ("(null)", "", None),
        ("0", "max_array_tasks=7", 0),
    ],
)
def test_the_largest_array(size, parameters, largest):
    settings = {"MaxArraySize": size, "SchedulerParameters": parameters}
    assert largest_array(settings) == largest


def test_longest_time_limit_of_partitions(tmp_path, monkeypatch):
    (tmp_path / "sinfo").write_text(
        "#!/bin/sh\necho 'CLUSTER: alpha'\necho 'gpu*|1-00:00:00'\necho 'a40|5:00'\n"
    )
    (tmp_path / "sinfo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert client.longest_min.__wrapped__("gpu,a40") == 1440
    assert client.longest_min.__wrapped__(None) == 1440
    (tmp_path / "sinfo").write_text("#!/bin/sh\necho 'gpu*|infinite'\necho 'a40|5:00'\n")
    assert client.longest_min.__wrapped__("gpu,a40") is None


@pytest.mark.parametrize(
    ("nodelist", "names"),
    [
        ("node1", ["node1"]),
        ("a[1-3,07],b2", ["a1", "a2", "a3", "a07", "b2"]),
        ("r[1-2]n[0-1]", ["r1n0", "r1n1", "r2n0", "r2n1"]),
        ("rack1-node[008-010].x", ["rack1-node008.x", "rack1-node009.x", "rack1-node010.x"]),
        ("", []),
        ("None assigned", []),
        ("(null)", []),
        ("n[1-", []),
        ("n[]", []),
        ("n[a-b]", []),
        ("n[0-999999999]", []),
        ("n[0-9999][0-9999]", []),
    ],
)
def test_node_names(nodelist, names):
    assert node_names(nodelist) == names
