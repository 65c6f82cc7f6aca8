"""slurm/devcluster up --net separate: nodes with their own networks, and cuts between them."""

import os
import subprocess
from collections.abc import Iterator

import pytest
from slurm_cluster import DEVCLUSTER, CannotStart, Cluster, devcluster, start_cluster, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.slurm]


@pytest.fixture(scope="module")
def separate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes with a network each, without accounting."""
    if os.geteuid():
        pytest.skip("--net separate needs root")
    folder = tmp_path_factory.mktemp("apart") / "cluster"
    try:
        cluster = start_cluster(folder, "--nodes", "2", "--net", "separate", "--no-accounting")
    except CannotStart as reason:
        pytest.skip(f"no Slurm here: {reason}")
    yield cluster
    cluster.down()


def reached(cluster: Cluster) -> set[str]:
    """Return `FROM>TO` for all pairs of machines that can open a connection to slurmd."""
    found = set()
    for number in (0, 1):
        first = cluster.processes(f"node{number}")[0].pid
        address = address_of(cluster, f"node{number}")
        if opens((), address, port_of(cluster, number)):
            found.add(f"controller>node{number}")
        other = 1 - number
        enter = ("nsenter", "--net", f"--target={first}")
        if opens(enter, address_of(cluster, f"node{other}"), port_of(cluster, other)):
            found.add(f"node{number}>node{other}")
        head = address.rpartition(".")[0] + ".1"
        if opens(enter, head, port_of(cluster, -10)):
            found.add(f"node{number}>controller")
    return found


def opens(enter: tuple[str, ...], address: str, port: int) -> bool:
    words = [*enter, "timeout", "1", "bash", "-c", f": >/dev/tcp/{address}/{port}"]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def port_of(cluster: Cluster, node: int) -> int:
    return int(cluster.options[cluster.options.index("--port") + 1]) + 10 + node


def address_of(cluster: Cluster, node: str) -> str:
    shown = cluster.run("scontrol", "show", "node", node).stdout
    return shown.partition("NodeAddr=")[2].split()[0]


ALL = {
    "controller>node0",
    "controller>node1",
    "node0>controller",
    "node1>controller",
    "node0>node1",
    "node1>node0",
}
WITH_NODE1 = {pair for pair in ALL if "node1" in pair}


def test_each_node_has_an_address_of_its_own(separate: Cluster):
    script = "echo $(hostname) $(getent hosts $(hostname)) $(cut -d: -f1 /proc/net/dev)"
    done = separate.run("srun", "--nodes=2", "bash", "-c", script)
    lines = sorted(line.split() for line in done.stdout.splitlines())
    assert [line[0] for line in lines] == ["node0", "node1"], done.stderr
    assert lines[0][1].endswith(".10")
    assert lines[1][1].endswith(".11")
    assert all({"lo", "eth0"} <= set(line) and "veth" not in str(line) for line in lines)
    assert reached(separate) == ALL


@pytest.mark.parametrize(
    ("cut", "healed", "lost"),
    [
        ("node1", "node1", WITH_NODE1),
        ("node1 --from node0", "node0", {"node0>node1", "node1>node0"}),
        ("node1 --from controller", "node1", {"node1>controller", "controller>node1"}),
        ("controller", "controller", {pair for pair in ALL if "controller" in pair}),
    ],
)
def test_a_cut_loses_the_packets_that_it_names(separate, cut, healed, lost):
    place = ("--dir", str(separate.folder))
    done = devcluster("cut-node", *cut.split(), *place)
    assert done.returncode == 0, done.stderr
    try:
        assert reached(separate) == ALL - lost
        assert "cut off from" in devcluster("status", *place).stdout
    finally:
        assert devcluster("heal-node", healed, *place).returncode == 0
    wait_until(lambda: reached(separate) == ALL, 20, "connections after the cut")
    assert "cut off from" not in devcluster("status", *place).stdout


def test_a_cut_outlasts_a_power_cut(separate: Cluster):
    place = ("--dir", str(separate.folder))
    devcluster("cut-node", "node1", "--from", "node0", *place)
    separate.kill_node("node1")
    separate.start_node("node1")
    assert reached(separate) == ALL - {"node0>node1", "node1>node0"}
    assert devcluster("heal-node", "node1", *place).returncode == 0
    wait_until(lambda: reached(separate) == ALL, 20, "connections after the cut")


def test_slow_node_delays_or_says_why_not(separate: Cluster):
    place = ("--dir", str(separate.folder))
    done = devcluster("slow-node", "node1", "--delay", "300ms", *place)
    if done.returncode:
        assert "this kernel cannot delay packets: " in done.stderr
        assert "CONFIG_NET_SCH_NETEM" in done.stderr
        assert "slow" not in devcluster("status", *place).stdout
        return
    ping = ("ping", "-c1", "-W3", address_of(separate, "node1"))
    try:
        answer = subprocess.run(ping, capture_output=True, text=True, check=True).stdout
        assert float(answer.partition("time=")[2].split()[0]) >= 600
    finally:
        devcluster("heal-node", "node1", *place)


def test_down_removes_bridge_and_cables(tmp_path_factory: pytest.TempPathFactory, separate):
    """Another cluster's network stays."""
    folder = tmp_path_factory.mktemp("two") / "cluster"
    before = links()
    other = start_cluster(folder, "--nodes", "1", "--net", "separate", "--no-accounting")
    try:
        assert len(links() - before) == 2  # a bridge and a cable
        place = ("--dir", str(folder))
        devcluster("cut-node", "node0", *place)
    finally:
        other.down()
    wait_until(lambda: links() == before, 10, "the end of the network")
    assert reached(separate) == ALL


ODD_MACHINE = """
ip link set lo up
mount --bind "$1" /etc/hosts
hostname odd
"$2" up --nodes 2 --no-link --no-install --dir "$3"
export SLURM_CONF="$3/conf/slurm.conf"
srun --nodes=2 hostname
sbatch --wait --nodes=2 --output=/dev/null --wrap "srun hostname"
"$2" down --wipe --dir "$3"
"""


@pytest.mark.parametrize("line", ["127.0.1.1 odd", ""], ids=["own loopback address", "no address"])
def test_up_works_whatever_the_own_name_means(tmp_path_factory, separate, line):
    """The machine has no address except loopback. Debian's installer gives its name 127.0.1.1."""
    place = tmp_path_factory.mktemp("odd")
    (place / "hosts").write_text(f"127.0.0.1 localhost\n{line}\n")
    words = ["unshare", "--mount", "--uts", "--net", "bash", "-ec", ODD_MACHINE, "bash"]
    words += [str(place / "hosts"), str(DEVCLUSTER), str(place / "cluster")]
    environment = {name: separate.environment[name] for name in ("PATH", "HOME")}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"node0", "node1"} <= set(done.stdout.splitlines())


def links() -> set[str]:
    shown = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True)
    return {line.split(": ")[1].partition("@")[0] for line in shown.stdout.splitlines()}
