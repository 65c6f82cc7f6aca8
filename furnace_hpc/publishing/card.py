"""The model card: README.md with the metadata of Hugging Face."""

import shlex
from collections.abc import Iterator
from math import isfinite
from typing import TYPE_CHECKING, Any

import yaml

import furnace_hpc
from furnace_hpc.config.grids.grid import Grid, results_name, settings_of_numbers
from furnace_hpc.publishing.choice import Chosen
from furnace_hpc.publishing.private import without_paths
from furnace_hpc.runs.submitted import set_options
from furnace_hpc.tables.output.escape import markdown, one_line
from furnace_hpc.tables.output.render import to_markdown
from furnace_hpc.tables.table import Ablation

if TYPE_CHECKING:
    from furnace_hpc.inference import Exported

LIBRARY = "furnace-hpc"
WHEEL = f"furnace_hpc-{furnace_hpc.__version__}-py3-none-any.whl"
PIPELINES: dict[tuple[str, ...], str] = {
    ("text",): "text-classification",
    ("image",): "image-classification",
    ("audio",): "audio-classification",
}
FILES = {
    "model.safetensors": "weights in fp32",
    "config.json": "network, labels, preprocessing, scores, and the run and code that made them",
    "tokenizer.json": "tokenizer of the text",
    "model.pt2": "program for `torch.export.load`",
    "model.onnx": "program for ONNX runtimes",
    "model.onnx.data": "weights of model.onnx",
    "own_code": "code of the network. It runs only with `--trust-code`",
    "results": "table (CSV, Markdown, LaTeX), all runs (runs.csv) and report.html",
    "grid.yaml": "the study: rows, seeds and settings",
    "SHA256SUMS": "checksums: `sha256sum -c SHA256SUMS`",
}


def settings_text(grid: Grid) -> str:
    """Return the options `--set` of the study without private paths. Empty if it has none."""
    return shlex.join(set_options(without_paths(settings_of_numbers(grid))))


def card(ablation: Ablation, chosen: Chosen, exported: "Exported", license_: str | None) -> str:
    """Return the text of README.md."""
    header = yaml.safe_dump(
        metadata(ablation, chosen, exported, license_), sort_keys=False, allow_unicode=True
    )
    title = f"{ablation.grid.name}: {chosen.row.variant}"
    parts = [
        f"---\n{header}---",
        f"# {markdown(title)}",
        " ".join(_summary(ablation, exported)),
        "## Load and predict",
        _how_to_load(exported),
        "## Results",
        to_markdown(ablation).rstrip(),
        "The whole table, every run and the curves are in [results/](results/).",
        "## The published run",
        _published(chosen, exported),
        "## Data",
        "\n".join(_data(exported)),
        "## Training",
        *_settings(ablation.grid),
        _training(chosen, exported),
        "## Limits",
        "\n".join(f"- {line}" for line in _limits(ablation, chosen, exported)),
        "## Files",
    ]
    return "\n\n".join(parts) + "\n"


def files_table(names: list[str]) -> str:
    """Return the table of the folder's files."""
    lines = [f"| `{name}` | {text} |" for name, text in FILES.items() if name in names]
    return "\n".join(["", "| file | content |", "|---|---|", *lines, ""])


def metadata(
    ablation: Ablation, chosen: Chosen, exported: "Exported", license_: str | None
) -> dict[str, Any]:
    """Return the header of the card, as the hub reads it."""
    modalities = exported.modalities
    found: dict[str, Any] = {}
    if license_:
        found["license"] = license_
    found["library_name"] = LIBRARY
    is_classifier = all(task.kind != "regression" for task in exported.config.tasks)
    if is_classifier and modalities in PIPELINES:
        found["pipeline_tag"] = PIPELINES[modalities]
    found["tags"] = list(dict.fromkeys([LIBRARY, "ablation", *_kinds(modalities), *modalities]))
    metric = ablation.metric.name
    found["metrics"] = [metric.rpartition("/")[2].partition("@")[0]]
    score = exported.scores.get(metric)
    if score is not None and isfinite(score):
        found["model-index"] = [_model_index(ablation, chosen, exported, score)]
    return found


def _kinds(modalities: tuple[str, ...]) -> list[str]:
    return ["multimodal"] if len(modalities) > 1 else []


def _model_index(
    ablation: Ablation, chosen: Chosen, exported: "Exported", score: float
) -> dict[str, Any]:
    metric = ablation.metric.name
    return {
        "name": f"{results_name(ablation.grid)}-{chosen.row.variant}",
        "results": [
            {
                "task": {"type": PIPELINES.get(exported.modalities, "other")},
                "dataset": {
                    "name": exported.config.data.name,
                    "type": exported.data.dataset,
                    "split": metric.partition("/")[0],
                    "revision": exported.data.fingerprint,
                },
                "metrics": [
                    {
                        "type": metric.rpartition("/")[2].partition("@")[0],
                        "name": metric,
                        "value": score,
                    }
                ],
            }
        ],
    }


def _summary(ablation: Ablation, exported: "Exported") -> Iterator[str]:
    if ablation.grid.description:
        yield markdown(ablation.grid.description)
    yield f"This model reads {_listed(exported.modalities)}, or any subset of them."
    for task in exported.config.tasks:
        classes = exported.data.labels[task.name].classes
        shown = ", ".join(map(markdown, classes[:10]))
        more = f" and {len(classes) - 10:,} more" if len(classes) > 10 else ""
        kind = task.kind.replace("_", " ")
        yield f"Task `{task.name}` ({kind}): {shown}{more}."


def _listed(names: tuple[str, ...]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _how_to_load(exported: "Exported") -> str:
    first = exported.modalities[0]
    value = {"text": '"..."', "image": "photo.png", "audio": "sound.wav", "numbers": "NAME=1.5"}
    given = " ".join(f"--{name} {value[name]}" for name in exported.modalities)
    python = {"text": '"..."', "image": '"photo.png"', "audio": '"sound.wav"'}
    argument = f"{first}={python.get(first, '{...}')}"
    trust = " --trust-code" if _has_code(exported) else ""
    lines = [
        "```sh",
        f"pip install {WHEEL}  # or that of a newer release of Furnace",
        f"furnace predict --model .{trust} {given}",
        "```",
        "",
        "In this folder, in Python:",
        "",
        "```python",
        "from furnace_hpc.inference import Predictor",
        "",
        f'model = Predictor.load("."{", trust_code=True" if trust else ""})',
        f"answer = model.predict({argument})",
        f'print(answer.tasks["{exported.config.tasks[0].name}"])',
        "```",
    ]
    if exported.onnx:
        lines += [
            "",
            "`model.onnx` takes prepared values, and `present`: whether each sample has each "
            "modality. Its outputs differ from those of the network by at most "
            f"{exported.onnx.difference:.1g} of the largest logit.",
        ]
    return "\n".join(lines)


def _has_code(exported: "Exported") -> bool:
    from furnace_hpc.inference.model_folder import needs_code

    return needs_code(exported.config)


def _published(chosen: Chosen, exported: "Exported") -> str:
    origin = exported.provenance
    scores = [
        f"| {markdown(name)} | {exported.scores[name]:.4g} |"
        for name in dict.fromkeys([chosen.metric, chosen.metric.replace("val/", "test/", 1)])
        if name in exported.scores
    ]
    text = (
        f"{chosen.rule} Test scores had no influence. Run `{origin.run_id}`, seed {origin.seed}, "
        f"step {origin.step:,} of {origin.steps:,}. SHA-256 of its parameters: "
        f"`{origin.parameters_sha256}`. Outputs: {origin.compared}."
    )
    return "\n".join([text, "", "| metric | this run |", "|---|--:|", *scores])


def _data(exported: "Exported") -> Iterator[str]:
    data = exported.data
    yield (
        f"Data set `{exported.config.data.name}` (kind `{data.dataset}`), fingerprint "
        f"`{data.fingerprint}`. The data is not in this folder."
    )
    yield ""
    yield "| split | samples |"
    yield "|---|--:|"
    yield from (f"| {name} | {count:,} |" for name, count in data.splits.items())


def _settings(grid: Grid) -> Iterator[str]:
    if settings := settings_text(grid):
        yield f"All rows were trained with `{one_line(settings)}`, which grid.yaml contains."


def _training(chosen: Chosen, exported: "Exported") -> str:
    config, origin = exported.config, exported.provenance
    result = chosen.run.own_result
    processes = "1 process" if origin.world_size == 1 else f"{origin.world_size} processes"
    facts = [
        f"{config.steps:,} steps with batches of {config.global_batch_size:,} samples",
        f"{config.deepspeed.precision}, ZeRO stage {origin.zero_stage}, {processes}",
    ]
    if result:
        facts.append(f"{result.num_parameters:,} parameters")
    facts.append(
        f"Furnace {furnace_hpc.__version__}, code {origin.code_hash}, commit {origin.commit}"
    )
    content = without_paths(config.model_dump(mode="json", exclude_defaults=True))
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True).rstrip()
    return (
        f"{'. '.join(facts)}.\n\n<details><summary>Config of the run</summary>\n\n"
        f"```yaml\n{text}\n```\n\n</details>"
    )


def _limits(ablation: Ablation, chosen: Chosen, exported: "Exported") -> Iterator[str]:
    yield (
        "The table has means over all seeds of a row, and intervals of these means. The model is "
        "one run: the intervals are not those of its own scores."
    )
    yield (
        f"Scores were measured on the splits of `{exported.config.data.name}`. Expect other scores "
        "on other data."
    )
    if any(task.kind != "regression" for task in exported.config.tasks):
        yield (
            "The model answers only with classes of the training data. Probabilities are not "
            "calibrated."
        )
    if len(exported.modalities) > 1:
        yield "Scores are different for samples that lack modalities: see results/."
    if ablation.missing:
        yield f"{len(ablation.missing)} of {len(ablation.runs)} runs of the table are missing."
    if exported.config.deepspeed.precision == "bf16":
        yield "The network computes in bf16. Other hardware rounds differently."
    if _has_code(exported):
        yield "The network needs the code in own_code/. Read it before you trust it."
