"""Which words scancel is given."""

from furnace_hpc.cancel import named


def test_whole_arrays_go_by_their_number_and_parts_by_their_elements():
    jobs = ["12_0", "12_1", "12_2", "12_7", "15", "16_4"]
    assert named(jobs, whole=True) == ["12", "15", "16"]
    assert named(jobs, whole=False) == ["12_[0-2,7]", "15", "16_[4]"]
    assert named([], whole=True) == []
