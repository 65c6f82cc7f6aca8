"""`furnace export --format onnx`: the program equals the network for every subset."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder_folders import save_network
from export_study import exported
from use_study import tridigits_model, write_run  # noqa: F401  fixture

from furnace_hpc.cli import run_command
from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.metrics import subsets
from furnace_hpc.data.columns import open_columns
from furnace_hpc.export import main
from furnace_hpc.inference import Predictor, onnx_export
from furnace_hpc.inference.export_check import stored_row
from furnace_hpc.inference.model_folder import ONNX, PROGRAM, read_exported
from furnace_hpc.model.network import FusionModel

MODALITIES = ("text", "image", "audio")
ROWS = 5
TASKS = [{"name": "digit"}, {"name": "parity"}]


def arrays_of(samples: list[dict[str, Any]], tokens: int | None = None) -> dict[str, Any]:
    """The inputs of the program, as a user makes them from stored values."""
    arrays = {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}
    arrays["present"] = arrays["present"].astype(bool)
    for name in ("text_length", "audio_length"):
        arrays[name] = arrays[name].astype(np.int64)
    arrays["text"] = arrays["text"][:, :tokens]
    return arrays


def check_program(folder: Path, data: Path) -> None:
    """Real test samples, from each subset of the modalities, by the runtime and the predictor."""
    predictor = Predictor.load(folder, "cpu")
    run = onnx_export.runner(folder / ONNX)
    columns = open_columns(data).split("test")
    for subset in subsets(tuple(range(3))):
        samples = [stored_row(predictor, columns, row) for row in range(ROWS)]
        for sample in samples:
            sample["present"] = np.isin(range(3), subset).astype(np.uint8)
        wanted = predictor.logits(samples)
        for found, task in zip(run(arrays_of(samples)), TASKS, strict=True):
            logits = wanted[task["name"]].numpy()
            assert np.abs(found - logits).max() <= 1e-4 * max(1, np.abs(logits).max()), subset


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_program_of_the_demo_network(tmp_path: Path, small_data: Path, capsys: Any):
    """Text, image and audio, in bf16 as in the demo. Batch and text have any size."""
    import onnx

    run = write_run(tmp_path / "runs", small_data, tasks=TASKS)
    with pytest.raises(SystemExit) as ended:
        run_command(main, [str(run.path), "--out", str(tmp_path / "out"), "--format", "onnx"])
    assert ended.value.code == 0
    assert "model.onnx: logits of all modality subsets differ by" in capsys.readouterr().out
    made = read_exported(tmp_path / "out")
    assert made.onnx
    assert made.onnx.difference <= made.onnx.tolerance == 1e-4
    assert ONNX in made.files
    assert PROGRAM not in made.files
    check_program(tmp_path / "out", small_data)
    model = onnx.load(str(tmp_path / "out" / ONNX))
    onnx.checker.check_model(model)
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes["text"] == ["batch", "tokens"]
    assert shapes["image"] == ["batch", 1, 32, 32]
    assert shapes["present"] == ["batch", 3]
    assert shapes["logits.digit"] == ["batch", 10]
    content = (tmp_path / "out" / ONNX).read_bytes()
    assert str(Path(onnx_export.__file__).parents[2]).encode() not in content
    assert str(Path(torch.__file__).parents[1]).encode() not in content


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_program_of_trained_encoders(tmp_path: Path, small_data: Path):
    """BERT, ViT and Whisper with random weights."""
    place = tmp_path / "weights"
    save_network("bert", place / "text")
    save_network("vit", place / "image")
    save_network("whisper", place / "audio", num_mel_bins=40, max_source_positions=24)
    encoders = {f"model__{name}": {"encoder": str(place / name)} for name in MODALITIES}
    run = write_run(tmp_path / "runs", small_data, tasks=TASKS, **encoders)
    made, _ = exported(run.path, tmp_path / "out", with_onnx=True)
    assert made.onnx
    check_program(tmp_path / "out", small_data)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exporter that writes a program of a few operators. It answers zeros."""
    import onnxscript  # noqa: F401
    from onnx import TensorProto, helper, save

    def write(network: Any, exported: Any, path: Path) -> None:
        inputs, outputs, nodes = [], [], []
        for name in network.input_names:
            kind = TensorProto.BOOL if name == "present" else TensorProto.INT64
            inputs.append(helper.make_tensor_value_info(name, kind, None))
        for name, task in zip(network.output_names, network.tasks, strict=True):
            classes = len(exported.data.labels[task].classes)
            zeros = helper.make_tensor("zeros", TensorProto.FLOAT, [classes], [0.0] * classes)
            nodes += [helper.make_node("Constant", [], [name], value=zeros)]
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [classes]))
        graph = helper.make_graph(nodes, "zeros", inputs, outputs)
        opset = [helper.make_opsetid("", onnx_export.OPSET)]
        save(helper.make_model(graph, opset_imports=opset, ir_version=10), str(path))

    monkeypatch.setattr(onnx_export, "_write", write)
    monkeypatch.setattr(
        onnx_export, "random_inputs", lambda *given, **more: _whole(given, more, random_inputs)
    )


random_inputs = onnx_export.random_inputs


def _whole(given: Any, more: Any, draw: Any) -> Any:
    """Random inputs as 64-bit integers, the type of the program above."""
    inputs, lengths, present = draw(*given, **more)
    return {name: value.long() for name, value in inputs.items()}, lengths, present


@pytest.mark.usefixtures("quick")
def test_a_program_that_differs_is_an_error(tmp_path: Path, small_data: Path):
    """The whole export fails, and no folder is left."""
    run = write_run(tmp_path / "runs", small_data)
    with pytest.raises(
        ConfigError, match=r"the ONNX program differs from the network by .* at most 1e-04. Leave"
    ):
        exported(run.path, tmp_path / "out", with_onnx=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


def test_a_network_without_onnx_is_one_error(model: Path, tmp_path: Path, monkeypatch: Any):
    """Such as own code whose path depends on values."""
    compute = FusionModel.compute

    def branching(self: FusionModel, *given: Any) -> Any:
        computed = compute(self, *given)
        if float(computed.features_BMD.sum()) > 0:
            return computed
        return computed._replace(features_BMD=-computed.features_BMD)

    monkeypatch.setattr(FusionModel, "compute", branching)
    predictor = Predictor.load(model, "cpu")
    with pytest.raises(ConfigError) as raised:
        onnx_export.make_onnx(predictor.model, predictor.exported, tmp_path / ONNX)
    problem = str(raised.value)
    assert problem.startswith("ONNX cannot express the network (")
    assert problem.endswith("). Leave --format onnx out, or use --format torch_export")
    assert "data-dependent" in problem
    assert "\n" not in problem
    assert len(problem) < 400


def test_missing_packages_are_named(model: Path, tmp_path: Path, monkeypatch: Any):
    predictor = Predictor.load(model, "cpu")
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"needs onnx and onnxscript and onnxruntime. .*'furnace-hpc\[onnx\]'"
    ):
        onnx_export.make_onnx(predictor.model, predictor.exported, tmp_path / ONNX)
