"""A few TriDigits samples as files that a user may look at, listen to and predict from: text, PNG, WAV, and a list.

A pack holds pixels and coefficients; the waveforms are rendered again here, and must give the packed coefficients.
"""

import json
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.data.columns import open_columns
from furnace_hpc.data.sets.tridigits.plan import TriDigitsKnobs, make_plan
from furnace_hpc.data.sets.tridigits.render import (
    PLAN,
    SPEECH,
    render_sounds,
    render_waves,
    spoken_of,
    stream,
)
from furnace_hpc.data.sets.tridigits.speech import SAMPLE_RATE, load_speech

COUNT = 3
LIST = "samples.jsonl"


def write_samples(pack: Path, folder: Path) -> list[Path]:
    """Write the first test samples of a pack into a folder; return the files, the list of them (JSON lines) last.

    An image holds the very bytes of the pack, a WAV the fp32 waveform. Names begin with the sample id and its label.

    Raises:
        ConfigError: the speech of the pack cannot be made here.
    """
    columns = open_columns(pack)
    made = columns.manifest.preprocessing
    knobs = TriDigitsKnobs.model_validate(made["knobs"])
    test, plan = (
        columns.split("test"),
        make_plan(knobs, np.random.default_rng(stream(knobs, PLAN)))["test"],
    )
    rows = range(min(COUNT, len(plan.sample_id)))
    spoken = spoken_of(load_speech(made["speech_source"], stream(knobs, SPEECH)))
    with threadpool_limits(1):  # as the pack was rendered
        waves, sounds = (
            render_waves(knobs, plan, rows, spoken),
            render_sounds(knobs, plan, rows, spoken),
        )
    if not np.allclose(
        sounds.astype(np.float32), test["audio"][: len(rows)].astype(np.float32), atol=0.5
    ):
        raise ConfigError(
            f"speech is made otherwise here than it was for {pack}: pack it again with --force"
        )

    folder.mkdir(parents=True, exist_ok=True)
    task, labels = next(iter(columns.manifest.labels.items()))
    written, listed = [], []
    for row in rows:
        label = labels.classes[int(test[f"label.{task}"][row])].replace(" ", "-")
        name = f"{plan.sample_id[row]}-{task}-{label}"
        text, image, sound = (folder / f"{name}.{kind}" for kind in ("txt", "png", "wav"))
        text.write_text(plan.text[row] + "\n", encoding="utf-8")
        Image.fromarray(np.asarray(test["image"][row, 0])).save(image)
        soundfile.write(sound, waves[row], SAMPLE_RATE, subtype="FLOAT")
        written += [text, image, sound]
        listed.append(
            {"id": name, "text": plan.text[row], "image": image.name, "audio": sound.name}
        )
    (folder / LIST).write_text(
        "".join(json.dumps(entry) + "\n" for entry in listed), encoding="utf-8"
    )
    return [*written, folder / LIST]
