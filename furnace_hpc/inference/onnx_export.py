"""Write the whole computation as an ONNX file, and compare it with the network.

The program computes in fp32. It reads `present`, so a missing modality is handled as the predictor
handles it. B batch, M modalities, T tokens, S samples of a sound.
"""

import copy
import itertools
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.metrics import subsets
from furnace_hpc.inference.model_folder import Deployed, Exported, Program
from furnace_hpc.inference.torch_export import (
    BATCHES,
    Inputs,
    random_inputs,
    relative_difference,
)

TOLERANCE = 1e-4  # relative to the largest logit or to 1
OPSET = 18
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Weights beyond this size are a file of their own. Protobuf files have at most 2 GiB.
MAX_BYTES_INSIDE = 1_500_000_000
PRESENT = "present"
FREE = {"text": "tokens", "audio": "samples"}  # an axis of padding, which the predictor cuts
FIX = "Leave --format onnx out, or use --format torch_export"


class OnnxNetwork(nn.Module):
    """A network with one tensor per input and output, in the order of their names."""

    def __init__(self, model: Deployed, exported: Exported) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.model.network.float()
        inputs, lengths, _ = random_inputs(exported, 1, seed=0)
        self.modalities, self.lengths = tuple(inputs), tuple(lengths)
        self.tasks = tuple(task.name for task in exported.config.tasks)

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs: modalities, their lengths, and `present`."""
        lengths = [name if "_" in name else f"{name}_length" for name in self.lengths]
        return [*self.modalities, *lengths, PRESENT]

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs: `logits.TASK`, or `values.TASK` of a regression."""
        regressions = self.model.regressions
        return [f"{'values' if task in regressions else 'logits'}.{task}" for task in self.tasks]

    def flat(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Return the tensors of `Deployed.forward` in the order of `input_names`."""
        values, lengths, present_BM = inputs
        parts = [values[name] for name in self.modalities]
        return (*parts, *(lengths[name] for name in self.lengths), present_BM)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of each task."""
        inputs = dict(zip(self.modalities, tensors, strict=False))
        lengths = dict(zip(self.lengths, tensors[len(inputs) :], strict=False))
        answers = self.model(inputs, lengths, tensors[-1])
        return tuple(answers[task] for task in self.tasks)


def make_onnx(model: Deployed, exported: Exported, path: Path) -> Program:
    """Write the program of `Deployed.forward` for any batch size, run it, and compare.

    Raises:
        ConfigError: a package is missing, the export fails, or the program differs from the network
            by more than the tolerance.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ConfigError(
            f"--format onnx needs {' and '.join(missing)}. Run pip install 'furnace-hpc[onnx]'"
        )
    network = OnnxNetwork(model, exported).eval()
    try:
        with _quiet():
            _write(network, exported, path)
            difference = largest_difference(network, exported, path)
    except OSError:
        raise
    except Exception as error:  # neither exporter nor runtime has an exception class of its own
        raise ConfigError(
            f"ONNX cannot express the network ({_first_line(error)}). {FIX}"
        ) from error
    if not difference <= TOLERANCE:
        raise ConfigError(
            f"the ONNX program differs from the network by {difference:.1e} of the largest logit, "
            f"wanted at most {TOLERANCE:.0e}. {FIX}"
        )
    return Program(tolerance=TOLERANCE, difference=difference)


def _first_line(error: BaseException) -> str:
    """Return the first cause in one line. The exporter wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's warnings about functions of its own."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _write(network: OnnxNetwork, exported: Exported, path: Path) -> None:
    inputs = random_inputs(exported, 2, seed=0)
    tensors = network.flat(inputs)
    with torch.no_grad():
        program = torch.export.export(network, tensors, dynamic_shapes=(_shapes(network, inputs),))
        made = torch.onnx.export(
            program,
            input_names=network.input_names,
            output_names=network.output_names,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert made is not None
    _tidy(made.model)
    size = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    made.save(path, external_data=size > MAX_BYTES_INSIDE)


def _shapes(network: OnnxNetwork, inputs: Inputs) -> tuple[dict[int, Any], ...]:
    """Return the axes of each input that may have another size."""
    batch = Dim("batch", min=1)
    shapes: list[dict[int, Any]] = [{0: batch} for _ in network.input_names]
    for place, name in enumerate(network.modalities):
        if _has_free_length(name, inputs[0][name]):
            # The exporter keeps the axis fixed where the network needs it.
            shapes[place][1] = Dim.AUTO
    return tuple(shapes)


def _has_free_length(name: str, values: Tensor) -> bool:
    """Whether the predictor cuts padding: of text [B, T], and of waveforms [B, S]."""
    return name in FREE and values.dim() == 2


def _tidy(model: Any) -> None:
    """Name the free axes, and remove stack traces, which contain the paths of this machine."""
    names = {str(given.shape[0]): "batch" for given in model.graph.inputs}
    for given in model.graph.inputs:
        if given.name in FREE:
            names.setdefault(str(given.shape[-1]), FREE[given.name])
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for value in graph.inputs:
            _rename_axes(value, names)
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                _rename_axes(value, names)
        graph.metadata_props.clear()
    model.metadata_props.clear()


def _rename_axes(value: Any, names: dict[str, str]) -> None:
    value.metadata_props.clear()
    for axis, size in enumerate(value.shape or ()):
        if not isinstance(size, int) and str(size) in names:
            value.shape[axis] = names[str(size)]


def runner(path: Path) -> Callable[[dict[str, Any]], list[Any]]:
    """Return a function that runs the program of a file: name -> array, to arrays."""
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    known = {given.name for given in session.get_inputs()}

    def run(arrays: dict[str, Any]) -> list[Any]:
        return list(session.run(None, {k: v for k, v in arrays.items() if k in known}))

    return run


def largest_difference(network: OnnxNetwork, exported: Exported, path: Path) -> float:
    """Return the largest relative difference of logits between the network and the file's program.

    The inputs are random, over every subset of the modalities, several batch sizes and lengths. In
    the last batch each sample has other modalities.
    """
    run = runner(path)
    worst = 0.0
    for inputs in _compared(exported, path):
        tensors = network.flat(inputs)
        with torch.no_grad():
            wanted = network(*tensors)
        arrays = {
            name: tensor.numpy() for name, tensor in zip(network.input_names, tensors, strict=True)
        }
        for found, logits in zip(run(arrays), wanted, strict=True):
            worst = max(worst, relative_difference(torch.from_numpy(found), logits))
    return worst


def _compared(exported: Exported, path: Path) -> Iterator[Inputs]:
    """Yield the inputs of the comparison."""
    places = tuple(range(len(exported.modalities)))
    every = list(subsets(places))
    free = free_lengths(path)
    for size, subset in itertools.product(BATCHES, every):
        inputs, lengths, present_BM = random_inputs(exported, size, seed=size)
        present_BM[:] = False
        present_BM[:, list(subset)] = True
        yield inputs, lengths, present_BM
        if size > 1 and free:
            yield _shorter(inputs, lengths, free), lengths, present_BM
    inputs, lengths, present_BM = random_inputs(exported, len(every), seed=0)
    present_BM[:] = False
    for row, subset in enumerate(every):
        present_BM[row, list(subset)] = True
    yield inputs, lengths, present_BM


def _shorter(
    inputs: dict[str, Tensor], lengths: dict[str, Tensor], free: set[str]
) -> dict[str, Tensor]:
    """Cut the padding of a batch, as the predictor does. Lengths are cut in place."""
    shorter = dict(inputs)
    for name in free:
        half = max(1, inputs[name].shape[1] // 2)
        shorter[name] = inputs[name][:, :half]
        for of_text in (name, f"{name}_second"):
            if of_text in lengths:
                lengths[of_text].clamp_(max=half)
    return shorter


def free_lengths(path: Path) -> set[str]:
    """Return the inputs whose length may differ from the packed one."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    found = set()
    for given in model.graph.input:
        axes = given.type.tensor_type.shape.dim
        if given.name in FREE and len(axes) == 2 and not axes[1].dim_value:
            found.add(given.name)
    return found
