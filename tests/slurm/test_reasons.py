"""What Slurm's reasons of waiting jobs mean. The names are those of libslurmfull.so."""

from pathlib import Path

import pytest

from furnace_hpc.slurm.reasons import REASONS, Starts, explain

PAGE = Path(__file__).parents[2] / "docs" / "slurm-waiting.md"

# all limits that Slurm 22.05 names, without Grp/Max/Min of resources that are written alike
LIMITS = """
AccountingPolicy AssocGrpBB AssocGrpBBMinutes AssocGrpBBRunMinutes AssocGrpBilling
AssocGrpBillingMinutes AssocGrpBillingRunMinutes AssocGrpCPUMinutesLimit AssocGrpCPURunMinutesLimit
AssocGrpCpuLimit AssocGrpEnergy AssocGrpGRES AssocGrpGRESMinutes AssocGrpGRESRunMinutes
AssocGrpJobsLimit AssocGrpLicense AssocGrpMemLimit AssocGrpMemMinutes AssocGrpMemRunMinutes
AssocGrpNodeLimit AssocGrpNodeMinutes AssocGrpNodeRunMinutes AssocGrpSubmitJobsLimit
AssocGrpUnknown AssocGrpUnknownMinutes AssocGrpWallLimit AssocMaxBBMinutesPerJob AssocMaxBBPerJob
AssocMaxBBPerNode AssocMaxBillingMinutesPerJob AssocMaxCpuMinutesPerJobLimit
AssocMaxCpuPerJobLimit AssocMaxCpuPerNode AssocMaxGRESMinutesPerJob AssocMaxGRESPerJob
AssocMaxGRESPerNode AssocMaxJobsLimit AssocMaxLicensePerJob AssocMaxMemMinutesPerJob
AssocMaxMemPerJob AssocMaxMemPerNode AssocMaxNodeMinutesPerJob AssocMaxNodePerJobLimit
AssocMaxSubmitJobLimit AssocMaxWallDurationPerJobLimit AssociationJobLimit
AssociationResourceLimit AssociationTimeLimit MaxBBPerAccount MaxBillingPerAccount
MaxCpuPerAccount MaxEnergyPerAccount MaxGRESPerAccount MaxJobsPerAccount MaxLicensePerAccount
MaxMemPerLimit MaxMemoryPerAccount MaxNodePerAccount MaxSubmitJobsPerAccount MaxUnknownPerAccount
QOSGrpBB QOSGrpBillingMinutes QOSGrpCPUMinutesLimit QOSGrpCPURunMinutesLimit QOSGrpCpuLimit
QOSGrpGRES QOSGrpGRESMinutes QOSGrpGRESRunMinutes QOSGrpJobsLimit QOSGrpMemLimit
QOSGrpMemoryMinutes QOSGrpMemoryRunMinutes QOSGrpNodeLimit QOSGrpNodeMinutes
QOSGrpSubmitJobsLimit QOSGrpUnknown QOSGrpWallLimit QOSJobLimit QOSMaxBBPerUser
QOSMaxBillingMinutesPerJob QOSMaxCpuMinutesPerJobLimit QOSMaxCpuPerJobLimit QOSMaxCpuPerNode
QOSMaxCpuPerUserLimit QOSMaxGRESMinutesPerJob QOSMaxGRESPerJob QOSMaxGRESPerNode QOSMaxGRESPerUser
QOSMaxJobsPerUserLimit QOSMaxMemoryMinutesPerJob QOSMaxMemoryPerJob QOSMaxMemoryPerUser
QOSMaxNodePerJobLimit QOSMaxNodePerUserLimit QOSMaxSubmitJobPerUserLimit
QOSMaxWallDurationPerJobLimit QOSMinBB QOSMinCpuNotSatisfied QOSMinGRES QOSMinMemory QOSMinNode
QOSMinUnknown QOSResourceLimit QOSTimeLimit
"""


@pytest.mark.parametrize("name", LIMITS.split())
def test_every_limit_is_explained(name):
    assert explain(name) is not None


@pytest.mark.parametrize(
    ("name", "starts", "text"),
    [
        ("Priority", Starts.ALONE, "jobs of higher priority are before it"),
        ("Dependency", Starts.ALONE, "it starts after other jobs"),
        ("Reservation", Starts.ALONE, "its reservation has not begun, or is full"),
        ("PartitionConfig", Starts.NEVER, "fix the profile, cancel it and submit"),
        ("PartitionTimeLimit", Starts.NEVER, "lower resources.timeout_min, cancel it and submit"),
        ("BadConstraints", Starts.NEVER, "no node has what it asks for"),
        ("JobHeldUser", Starts.ACTION, "run `scontrol release JOB` to release it"),
        ("JobHeldAdmin", Starts.SITE, "it is held by an administrator; ask the site"),
        ("QOSMaxGRESPerUser", Starts.ALONE, "at the QOS's limit of GPUs or other GRES"),
        ("QOSMaxGRESPerJob", Starts.NEVER, "more than the QOS's limit of GPUs or other GRES"),
        ("AssocMaxJobsLimit", Starts.ALONE, "your jobs are at the account's limit of jobs"),
        ("AssocGrpCPUMinutesLimit", Starts.SITE, "the account's budget of CPUs x minutes is used"),
        ("AssocGrpCPURunMinutesLimit", Starts.ALONE, "all jobs of the account together"),
        ("QOSMaxWallDurationPerJobLimit", Starts.NEVER, "limit of time for one job"),
        ("QOSMinCpuNotSatisfied", Starts.NEVER, "less than the QOS's minimum of CPUs"),
        ("ReqNodeNotAvail, UnavailableNodes:node[1-2]", Starts.SITE, "down, drained, or reserved"),
        ("ReqNodeNotAvail, Reserved for maintenance", Starts.SITE, "a shorter timeout_min"),
        ("Nodes_required_for_job_are_DOWN,_DRAINED_or_reserved_for_jobs", Starts.SITE, "drained"),
        ("(Partition_Down)", Starts.SITE, "the partition is down; wait for the site"),
    ],
)
def test_whether_a_job_starts(name, starts, text):
    found = explain(name)
    assert found.starts is starts
    assert text in str(found)


@pytest.mark.parametrize("name", ["", "SomethingNew", "QOSGrp", "AssocMaxFooPerJob", "priorityx"])
def test_other_reasons_are_not_explained(name):
    assert explain(name) is None


def test_what_needs_you_says_what_to_do():
    assert len(REASONS) >= 30
    for reason in REASONS.values():
        if reason.starts is not Starts.ALONE:
            assert reason.action
        assert "  " not in str(reason)


def test_the_page_lists_every_reason():
    rows = [line.split("|") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    listed = {parts[1].strip().strip("`"): [part.strip() for part in parts[2:5]] for parts in rows}
    wanted = {
        name: [reason.text, reason.starts.value, reason.action] for name, reason in REASONS.items()
    }
    assert {name: listed.get(name) for name in wanted} == wanted
