"""The page: fields for the modalities of the model, and a place for its answer."""

from collections.abc import Iterator
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

from furnace_hpc.config.manifest import TEXT_SECOND, number_names
from furnace_hpc.tables.output.escape import html

if TYPE_CHECKING:
    from furnace_hpc.inference import Exported

FILE_FIELDS = {  # modality -> title, noun, accepted files
    "image": ("Picture", "picture", "image/*,.npy"),
    "audio": ("Sound", "sound", "audio/*,.npy"),
}


def page_of(exported: "Exported", max_bytes: int) -> str:
    """Return the page of a model."""
    template = (files("furnace_hpc.serving") / "assets" / "page.html").read_text(encoding="utf-8")
    origin = exported.provenance
    return Template(template).substitute(
        grid=html(origin.grid),
        variant=html(origin.variant),
        facts=" · ".join(_facts(exported)),
        modalities=html(" ".join(exported.modalities)),
        max_bytes=max_bytes,
        fields="\n".join(_fields(exported)),
    )


def _facts(exported: "Exported") -> Iterator[str]:
    origin = exported.provenance
    yield f"<code>{html(origin.run_id)}</code>"
    yield f"step {origin.step:,} of {origin.steps:,}"
    metric = exported.config.selection_metric
    for name in (metric, metric.replace("val/", "test/", 1)):
        if name in exported.scores:
            yield f"{html(name)} {exported.scores[name]:.4g}"


def _fields(exported: "Exported") -> Iterator[str]:
    for name in exported.modalities:
        if name == "text":
            yield from _texts(TEXT_SECOND in exported.data.columns)
        elif name == "numbers":
            yield _numbers(number_names(exported.data))
        else:
            yield _file(name, *FILE_FIELDS[name])


def _texts(is_pair: bool) -> Iterator[str]:
    yield _text("text", "First text" if is_pair else "Text")
    if is_pair:
        yield _text("text_pair", "Second text")


def _text(name: str, title: str) -> str:
    return (
        f'<div class="field"><label for="{name}">{title}</label>'
        f'<textarea id="{name}" name="{name}" rows="3"></textarea></div>'
    )


def _file(name: str, title: str, word: str, kinds: str) -> str:
    shown = f'<img alt="the chosen {word}" hidden>'
    if name == "audio":
        shown = "<audio controls hidden></audio>"
    return (
        f'<div class="field"><label for="{name}">{title}</label><div class="drop">'
        f'{shown}<p class="choose">Drop a {word} here, or '
        f'<span class="link">choose a file</span></p>'
        f'<input type="file" id="{name}" name="{name}" accept="{kinds}"></div>'
        f'<p class="chosen" hidden><span></span><button type="button">Remove</button></p></div>'
    )


def _numbers(names: tuple[str, ...]) -> str:
    inputs = "".join(
        f"<label><span>{html(name)}</span>"
        f'<input type="text" inputmode="decimal" data-number="{html(name)}"></label>'
        for name in names
    )
    return (
        '<fieldset class="field"><legend>Numbers</legend>'
        f'<div class="numbers">{inputs}</div></fieldset>'
    )
