"""The names that scancel gets."""

from furnace_hpc.launch.grids.cancel_grid import named


def test_jobs_are_named_by_array_or_by_elements():
    jobs = ["12_0", "12_1", "12_2", "12_7", "15", "16_4"]
    assert named(jobs, whole=True) == ["12", "15", "16"]
    assert named(jobs, whole=False) == ["12_[0-2,7]", "15", "16_[4]"]
    assert named([], whole=True) == []
