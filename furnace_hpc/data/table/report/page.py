"""Write `profile.html`: the profile of a table and ten samples, in one file without links."""

import base64
import html
import io
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.manifest import SPLITS
from furnace_hpc.data.decode.audio import SoundKnobs
from furnace_hpc.data.decode.images import ImageKnobs
from furnace_hpc.data.decode.separate_process import DecoderProcess
from furnace_hpc.data.packing.rejects import Unusable
from furnace_hpc.data.table.checks import Codes, LabelCounts, with_codes
from furnace_hpc.data.table.media import Media, image_of, media_at, wave_of
from furnace_hpc.data.table.report.profile import READERS, Profile, shown_classes
from furnace_hpc.data.table.splits import UNUSED
from furnace_hpc.data.table.staging import Staged
from furnace_hpc.host.durable_files import replace_file

NUM_SAMPLES = 10
THUMBNAIL = ImageKnobs(size=160, fit="crop")
MAX_SECONDS = 8
MAX_TEXT = 1000  # characters
PAGE_FILE = "profile.html"
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;"
    "color:#222;background:#fff}table{border-collapse:collapse;margin:.5rem 0 1.5rem}"
    "td,th{padding:.15rem .7rem;text-align:left;border-bottom:1px solid #ddd}"
    "td.n{text-align:right;font-variant-numeric:tabular-nums}"
    ".bar{background:#4477aa;height:.7rem;display:inline-block}.warn{color:#a33}"
    ".sample{border:1px solid #ddd;border-radius:6px;padding:.7rem 1rem;margin:.7rem 0}"
    ".sample p{white-space:pre-wrap;overflow-wrap:anywhere}img{margin-right:.4rem}"
    "@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}"
    "td,th,.sample{border-color:#444}.warn{color:#e88}}"
)


def write_page(out: Path, profile: Profile, staged: Staged, codes: Codes) -> Path:
    """Write the page into the folder of a pack. Return its path."""
    with DecoderProcess(READERS) as decoder:
        page = "".join(_page(profile, staged, codes, decoder))
    path = out / PAGE_FILE
    replace_file(path, page.encode())
    return path


def _page(profile: Profile, staged: Staged, codes: Codes, decoder: DecoderProcess) -> Iterator[str]:
    title = html.escape(profile.name)
    yield (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "media-src data:; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>"
    )
    for warning in profile.warnings:
        yield f"<p class=warn>Warning: {html.escape(warning)}</p>"
    if profile.leaks.kinds:
        yield f"<p class=warn>In two splits: {html.escape(profile.leaks.summary)}</p>"
    yield "<table><tr><th>split<th>rows</tr>"
    for split, count in profile.splits.items():
        yield f"<tr><td>{split}<td class=n>{count:,}</tr>"
    yield "</table><ul>"
    for modality, count in profile.modalities.items():
        yield f"<li>{modality}: {count:,} rows have it"
    for spread in profile.spreads:
        yield f"<li>{html.escape(str(spread))}"
    yield "</ul>"
    yield from _labels(profile)
    yield f"<h2>{NUM_SAMPLES} samples</h2>"
    for row in _samples(staged, codes):
        yield from _sample(row, staged, profile.numbers, decoder)


def _labels(profile: Profile) -> Iterator[str]:
    for found in profile.labels:
        yield f"<h2>Label {html.escape(found.label.name)}</h2>"
        if found.ranges:
            yield from _ranges(found)
            continue
        yield f"<p>{len(found.classes):,} classes, {found.label.kind.replace('_', ' ')}</p>"
        yield f"<table><tr><th>class<th><th>rows<th>{'<th>'.join(SPLITS)}</tr>"
        rows = shown_classes(found)
        most = max(1, rows[0][1])
        for name, total, counts in rows:
            parts = "".join(f"<td class=n>{count:,}" for count in counts)
            width = 200 * total / most
            yield (
                f"<tr><td>{html.escape(name)}<td><span class=bar style='width:{width:.0f}px'>"
                f"</span><td class=n>{total:,}{parts}</tr>"
            )
        yield "</table>"
        if (left := len(found.classes) - len(rows)) > 0:
            yield f"<p>and {left:,} more classes</p>"


def _ranges(found: LabelCounts) -> Iterator[str]:
    """Yield the table of a regression: a row for each target and split."""
    yield "<table><tr><th>target<th>split<th>rows<th>mean<th>deviation<th>least<th>most</tr>"
    for part in found.ranges:
        numbers = (part.mean, part.deviation, part.least, part.most)
        cells = "".join(f"<td class=n>{number:.4g}" for number in numbers)
        yield (
            f"<tr><td>{html.escape(part.target)}<td>{part.split}<td class=n>{part.rows:,}"
            f"{cells}</tr>"
        )
    yield "</table>"


def _samples(staged: Staged, codes: Codes) -> list[dict[str, Any]]:
    """Return rows that are evenly spread over the table."""
    step = max(1, staged.num_rows // NUM_SAMPLES)
    rows = with_codes(staged, codes).gather_every(step).filter(pl.col("split_code") != UNUSED)
    return rows.head(NUM_SAMPLES).collect().to_dicts()


def _sample(
    row: dict[str, Any], staged: Staged, numbers: tuple[str, ...], decoder: DecoderProcess
) -> Iterator[str]:
    split = SPLITS[row["split_code"]]
    place = staged.name_of(row["file"], row["row"])
    yield f"<div class=sample><b>{html.escape(str(row['id']))}</b> ({split}, {html.escape(place)})"
    if row.get("text"):
        yield f"<p>{html.escape(row['text'][:MAX_TEXT])}</p>"
    for slot in staged.slots:
        if media := media_at(row, slot):
            yield _shown(media, slot, decoder)
    if row.get("numbers"):
        known = ("missing" if number is None else f"{number:.6g}" for number in row["numbers"])
        shown = (f"{name} {number}" for name, number in zip(numbers, known, strict=True))
        yield f"<div>numbers: {html.escape(', '.join(shown))}</div>"
    for name, value in row.items():
        if name.startswith("label."):
            labels = value if isinstance(value, list) else [value]
            text = ", ".join("none" if label is None else str(label) for label in labels)
            yield f"<div>{html.escape(name.removeprefix('label.'))}: {html.escape(text)}</div>"
    yield "</div>"


def _shown(media: Media, slot: str, decoder: DecoderProcess) -> str:
    """Return a thumbnail or player, or why the file cannot be read."""
    name = html.escape(media.name, quote=True)
    try:
        if slot == "audio":
            knobs = SoundKnobs()
            samples: Any = decoder.read(wave_of, media, knobs)
            content = _wav(samples[: MAX_SECONDS * knobs.sample_rate_hz], knobs.sample_rate_hz)
            source = f'src="data:audio/wav;base64,{content}"'
            return f'<div><audio controls title="{name}" {source}></audio></div>'
        pixels: Any = decoder.read(image_of, media, THUMBNAIL)
    except (Unusable, ConfigError) as error:
        return f"<div class=warn>{name}: {html.escape(' '.join(map(str, error.args)))}</div>"
    return f'<img alt="{name}" title="{name}" src="data:image/jpeg;base64,{_jpeg(pixels)}">'


def _jpeg(pixels: np.ndarray[Any, Any]) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "JPEG", quality=80)
    return base64.b64encode(file.getvalue()).decode()


def _wav(samples: np.ndarray[Any, Any], rate_hz: int) -> str:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate_hz)
        out.writeframes((np.clip(samples, -1, 1) * 32_767).astype("<i2").tobytes())
    return base64.b64encode(file.getvalue()).decode()
