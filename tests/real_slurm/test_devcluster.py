"""slurm/devcluster: a Slurm of several nodes on one machine, its messages, and its removal."""

import contextlib
import re
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from slurm_cluster import DEVCLUSTER, Cluster, devcluster, start_cluster, wait_until

SCRIPTS = [DEVCLUSTER, *DEVCLUSTER.parent.glob("*.bash"), DEVCLUSTER.parent / "roots"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_bash_can_read_it(path: Path):
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_lists_every_command_and_option():
    script = DEVCLUSTER.read_text()
    parse = script[script.index("\nparse()") : script.index("\ncheck_usage()")]
    commands = re.search(r"    (up \| .*)\)\n", script).group(1).split(" | ")
    commands += re.search(r"    (kill-node \| .*)\) \[ -n", script).group(1).split(" | ")
    words = {*commands, *re.findall(r"--[a-z][a-z-]+", parse)} - {"--help"}
    assert {"up", "down", "cut-node", "--nodes", "--hide", "--from"} < words
    for arguments in (["help"], ["--help"], ["-h"], ["up", "--help"]):
        done = devcluster(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert words - set(re.findall(r"[a-z-]+", done.stdout)) == set()
        assert "\n  srun --nodes 2 " in done.stdout


def test_without_a_command_it_prints_the_help():
    done = devcluster()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == devcluster("help").stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("up --frob", "unknown option --frob"),
        ("frob", "unknown command 'frob'"),
        ("up --nodes", "--nodes takes a number of at least 1, got ''"),
        ("up --nodes 0", "--nodes takes a number of at least 1, got '0'"),
        ("up --nodes 65", "--nodes is at most 64, and --port at most 65000"),
        ("up --port 80", "--port takes a number of at least 1024, got '80'"),
        ("up --gpu-type A/1", "--gpu-type takes a word such as a100"),
        ("up --hide /nowhere", "--hide takes a folder that exists, got '/nowhere'"),
        ("up --hide /", "--hide / would hide the cluster's own folder"),
        ("up --wipe", "--wipe is not an option of up"),
        ("down --nodes 3", "--nodes is not an option of down"),
        ("status node0", "status takes no 'node0'"),
        ("kill-node", "kill-node takes the name of a node, such as node0"),
        ("cut-node", "cut-node takes the name of a node, such as node0"),
        ("up --net apart", "--net takes shared or separate, got 'apart'"),
        ("kill-node node0 --from node1", "--from is not an option of kill-node"),
        ("cut-node node0 --loss 2%", "--delay and --loss are not options of cut-node"),
        ("slow-node node0", "slow-node takes --delay, --loss or both"),
        ("slow-node node0 --delay 50", "--delay takes a time such as 50ms, got '50'"),
        ("slow-node node0 --loss 0.5", "--loss takes a share such as 2%, got '0.5'"),
    ],
)
def test_wrong_usage_is_one_error_line(tmp_path: Path, arguments: str, says: str):
    folder = Path("/tmp") / f"devcluster-{tmp_path.name}"  # pytest's own is too long for some names
    done = devcluster("--dir", str(folder), *arguments.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"devcluster: {says}")
    assert done.stderr.count("\n") == 1
    assert not folder.exists()


@pytest.mark.parametrize("name", ["with space", "per%cent", 72 * "o"])
def test_a_folder_that_slurm_cannot_name_is_refused(tmp_path: Path, name: str):
    done = devcluster("up", "--dir", str(tmp_path / name))
    assert done.returncode == 2
    assert f"the cluster's folder cannot be '{tmp_path / name}': name one with --dir" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_cluster_is_left_alone(tmp_path_factory: pytest.TempPathFactory):
    # a short name: sockets of a cluster allow 71 characters
    tmp_path = tmp_path_factory.mktemp("none")
    (tmp_path / "mine").write_text("precious")
    for command in ("down --wipe", "status", "env", "kill-node node0", "restart-controller"):
        done = devcluster(*command.split(), "--dir", str(tmp_path))
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(
            f"devcluster: no cluster in {tmp_path}: 'devcluster up' makes one"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.slurm
def test_four_idle_nodes_in_four_partitions(cluster: Cluster):
    nodes = cluster.run(
        "sinfo", "--noheader", "--Node", "--partition=a100", "--format=%N %T %c %m %G"
    )
    assert nodes.stdout.splitlines() == [
        f"node{number} idle 64 500000 gpu:a100:4" for number in range(4)
    ]
    partitions = cluster.run("sinfo", "--noheader", "--format=%P %a %l")
    assert partitions.stdout.splitlines() == [
        "a100* up 7-00:00:00",
        "preempt up 7-00:00:00",
        "debug up 5:00",
        "closed down 7-00:00:00",
    ]


@pytest.mark.slurm
def test_a_job_has_two_hosts_and_gpus(quiet: Cluster):
    script = "echo $(hostname) $CUDA_VISIBLE_DEVICES $(getent hosts node3)"
    done = quiet.run("srun", "--nodes=2", "--gpus-per-node=2", "bash", "-c", script)
    assert sorted(done.stdout.splitlines()) == [
        "node0 0,1 127.0.0.1 node3",
        "node1 0,1 127.0.0.1 node3",
    ], done.stderr


@pytest.mark.slurm
def test_cuts_need_separate_networks(cluster: Cluster):
    done = devcluster("cut-node", "node0", "--dir", str(cluster.folder))
    assert (done.returncode, done.stdout) == (1, "")
    assert "the nodes share this machine's network" in done.stderr
    assert "'devcluster up --net separate'" in done.stderr


@pytest.mark.slurm
def test_a_power_cut_ends_all_processes_of_a_node(quiet: Cluster):
    """Slurm starts its job again."""
    options = ["--parsable", "--nodelist=node3", "--output=/dev/null"]
    job = quiet.run("sbatch", *options, "--wrap=sleep 900 & sleep 901").stdout.strip()
    wait_until(lambda: processes_of(quiet).count("sleep") == 2, 20, "the job's processes")
    refused = devcluster("kill-node", "node4", "--dir", str(quiet.folder))
    assert (refused.returncode, refused.stderr.split(";")[0]) == (
        2,
        "devcluster: no node 'node4': the last is node3",
    )
    quiet.kill_node("node3")
    assert "sleep" not in processes_of(quiet)
    assert devcluster("status", "--dir", str(quiet.folder)).returncode == 1
    quiet.start_node("node3")
    wait_until(lambda: processes_of(quiet).count("sleep") == 2, 30, "the job's second run")
    shown = quiet.run("scontrol", "show", "job", job).stdout
    assert "Restarts=1 " in shown
    assert devcluster("status", "--dir", str(quiet.folder)).returncode == 0


@pytest.mark.slurm
def test_jobs_outlive_a_stopped_controller(quiet: Cluster, tmp_path: Path):
    sign = tmp_path / "alive"
    job = f"--wrap=while sleep 0.1; do touch {sign}; done"
    quiet.run("sbatch", "--output=/dev/null", job)
    wait_until(sign.exists, 20, "the job's start")
    quiet.stop_controller()
    assert quiet.run("scontrol", "ping").returncode == 1
    sign.unlink()
    wait_until(sign.exists, 20, "a sign of life")
    quiet.restart_controller()
    assert quiet.run("squeue", "--noheader", "--format=%T").stdout == "RUNNING\n"


@pytest.mark.slurm
def test_a_second_up_changes_nothing(quiet: Cluster):
    before = {path: path.read_text() for path in (quiet.folder / "run").glob("*.pid")}
    assert len(before) == 8
    quiet.up()
    assert {path: path.read_text() for path in (quiet.folder / "run").glob("*.pid")} == before
    done = devcluster("up", *quiet.options, "--nodes", "5", "--dir", str(quiet.folder))
    assert done.returncode == 1
    assert done.stderr == (
        f"devcluster: the cluster in {quiet.folder} is up with other options: "
        f"run 'devcluster down --dir {quiet.folder}' first\n"
    )


@pytest.mark.slurm
def test_a_second_cluster_survives_a_crash(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
):
    """After `down` nothing of it is left, and the first cluster still works."""
    folder = tmp_path_factory.mktemp("other")  # a short one
    hidden = folder / "login only"
    hidden.mkdir()
    (hidden / "secret").touch()
    options = [
        "--no-accounting",
        "--nodes",
        "2",
        "--gpus",
        "0",
        "--max-array-size",
        "11",
        "--hide",
        str(hidden),
    ]
    other = start_cluster(folder / "cluster", *options)
    try:
        listed = other.run("srun", "--nodes=2", "ls", "-A", hidden)
        assert (listed.returncode, listed.stdout) == (0, "")
        assert [path.name for path in hidden.iterdir()] == ["secret"]
        assert (
            other.run("sbatch", "--array=0-10", "--output=/dev/null", "--wrap=sleep 900").returncode
            == 0
        )
        assert "Invalid job array" in other.run("sbatch", "--array=0-11", "--wrap=true").stderr
        assert other.run("sacct").stderr == "Slurm accounting storage is disabled\n"
        wait_until(lambda: "sleep" in processes_of(other), 20, "a job")
        for file in (other.folder / "run").glob("*.pid"):
            psutil.Process(int(file.read_text().split()[0])).send_signal(signal.SIGKILL)
        wait_until(lambda: processes_of(other) == [], 10, "the end of the crash")
        other.up()
        assert other.run("srun", "hostname").stdout in ("node0\n", "node1\n")
        assert processes_of(other)
    finally:
        other.down()
    assert processes_of(other) == []
    assert not other.folder.exists()
    assert (
        cluster.run(
            "sinfo", "--noheader", "--states=idle", "--partition=a100", "--format=%D"
        ).stdout
        == "4\n"
    )


def processes_of(cluster: Cluster) -> list[str]:
    """Return the names of daemons and jobs. A zombie has no environment."""
    names = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("SLURM_CONF") == cluster.environment["SLURM_CONF"]:
                names.append(process.name())
    return names
