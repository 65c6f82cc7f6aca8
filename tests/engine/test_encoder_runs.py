"""Networks with Hugging Face encoders: train, save, resume at another ZeRO stage, export."""

from pathlib import Path
from typing import Any

import pytest
from encoder_folders import MODALITIES, save_network
from forked_ranks import run_phases

pytestmark = pytest.mark.distributed

# Each family is in at least one combination.
COMBINATIONS = [
    [families[number % len(families)] for families in MODALITIES.values()] for number in range(9)
]
# Text with its own mask, batch normalisation, weight normalisation.
QUICK = ["modernbert", "resnet", "wavlm"]


def check(folder: Path, combinations: list[list[str]]) -> None:
    for family in {family for families in combinations for family in families}:
        save_network(family, folder / "weights" / family)
    phases: list[list[dict[str, Any]]] = [[], []]
    for number, families in enumerate(combinations):
        first, then = [(3, 1), (2, 3)][number % 2]
        for cases, do, stage in zip(phases, ("make", "resume"), (first, then), strict=True):
            source = "+".join(families)
            cases.append({"do": do, "source": source, "families": families, "stage": stage})
    answers = run_phases(folder, "encoder_work", [(2, phases[0]), (1, phases[1])], per_case_s=90)
    resumed = [answer for answer in answers if "resumed" in answer]
    assert len(resumed) == len(combinations)
    for answer in resumed:
        assert answer["resumed"] <= 1e-5, answer
        assert answer["exported"] <= 1e-5, answer


def test_resume_at_another_stage(tmp_path):
    check(tmp_path, [QUICK])


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("part", [0, 3, 6])
def test_every_family_resumes_and_exports(tmp_path, part):
    """Two ranks train at stage 2 or 3. One rank resumes at stage 3 or 1, and builds the export."""
    check(tmp_path, COMBINATIONS[part : part + 3])
