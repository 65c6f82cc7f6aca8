"""Write a few TriDigits samples as text, PNG and WAV files, and a list for `furnace predict`.

A pack has no waveforms. They are rendered again, and must give the packed coefficients.
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
    """Write the first test samples of a pack. Return the files, and the list (JSON lines) last.

    An image has the bytes of the pack, a WAV has the fp32 waveform. File names begin with the
    sample id and the label.

    Raises:
        ConfigError: the speech of the pack cannot be made here.
    """
    columns = open_columns(pack)
    made = columns.manifest.preprocessing
    knobs = TriDigitsKnobs.model_validate(made["knobs"])
    test = columns.split("test")
    plan = make_plan(knobs, np.random.default_rng(stream(knobs, PLAN)))["test"]
    rows = range(min(COUNT, len(plan.sample_id)))
    spoken = spoken_of(load_speech(made["speech_source"], stream(knobs, SPEECH)))
    with threadpool_limits(1):  # as in `pack`
        waves = render_waves(knobs, plan, rows, spoken)
        sounds = render_sounds(knobs, plan, rows, spoken)
    packed = test["audio"][: len(rows)]
    if not np.allclose(sounds.astype(np.float32), packed.astype(np.float32), atol=0.5):
        raise ConfigError(f"the speech differs here from {pack}: pack it again with --force")

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
