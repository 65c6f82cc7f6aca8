"""The lead time before a time limit, compared with measured saves."""

from login_study import begin, end, grid, planned, specs

from furnace_hpc.config.cluster import ClusterProfile
from furnace_hpc.runs.folder import GridFolder
from furnace_hpc.runs.lead_time import LeadTime, slowest_save_s
from furnace_hpc.runs.records.checkpoint_files import note_saved

ONE = {"variants": {"base": {}}, "seeds": [0]}
SHORT = (
    "a save takes 70 s, and ranks get the stop signal 120 s before the time limit. 2 saves must fit"
)


def test_rank_warns_once_about_slow_saves(tmp_path, capsys):
    run = begin(specs(**ONE)[0], GridFolder(tmp_path / "study"), job_id="7", signal_delay_s=120)
    lead_time = LeadTime.of_attempt(run, 1)
    lead_time.check(59.0)
    assert capsys.readouterr().out == ""
    lead_time.check(70.0)
    lead_time.check(80.0)
    said = capsys.readouterr().out
    assert said.startswith(f"WARNING: {SHORT}")
    assert said.endswith("Set signal_delay_s to 210 or more in the cluster profile\n")
    assert said.count("WARNING") == 1


def test_the_local_queue_has_no_time_limit(tmp_path, capsys):
    run = begin(specs(**ONE)[0], GridFolder(tmp_path / "study"), signal_delay_s=120)
    LeadTime.of_attempt(run, 1).check(1000.0)
    assert capsys.readouterr().out == ""


def test_plan_warns_about_slow_saves_of_a_resumed_run(tmp_path):
    run = begin(specs(**ONE)[0], GridFolder(tmp_path / "study"))
    for step, took_s in ((3, 5.0), (5, 70.0), (7, 6.0)):
        note_saved(run, step, 1, took_s)
    with run.saved.open("a") as file:
        file.write('{"step": 9, "to')
    end(run, "stopped", exit_code=85)
    assert slowest_save_s(run) == 70.0
    slow, quick = (
        planned(
            tmp_path, grid(**ONE), ClusterProfile(name="c", executor="slurm", signal_delay_s=lead_s)
        )
        .runs[0]
        .why
        for lead_s in (120, 300)
    )
    assert SHORT in slow
    assert "a save takes" not in quick
