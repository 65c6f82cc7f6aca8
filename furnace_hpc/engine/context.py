"""The objects that several layers of a training need, as one record."""

from dataclasses import dataclass, field

from furnace_hpc.config.manifest import PackOrigin
from furnace_hpc.config.train_config import RunSpec, TrainConfig
from furnace_hpc.data.loading.batches import BatchReader
from furnace_hpc.engine.deepspeed_engine import Engine
from furnace_hpc.engine.ranks.distributed import Processes
from furnace_hpc.engine.ranks.stop import StopRequest
from furnace_hpc.engine.ranks.watchdog import Watchdog
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.weights import NamedWeights


@dataclass(frozen=True)
class RunContext:
    """One rank's part of a run that is ready to train."""

    spec: RunSpec
    config: TrainConfig
    """The spec's config, with the overrides of this attempt."""
    folder: RunFolder
    attempt: int
    processes: Processes
    engine: Engine
    readers: dict[str, BatchReader]
    """Split -> its batches."""
    num_parameters: int
    watchdog: Watchdog
    stop: StopRequest
    data_origin: PackOrigin | None = None
    """Where the pack's samples were drawn from. None if it is not known."""
    flops: tuple[float, float, float] | None = None
    """Coefficients of a micro-batch's FLOPs, on rank 0. None if they are not known."""
    initial_weights: dict[str, str] = field(default_factory=dict)
    """Source of `init_from` -> SHA-256 of the values taken from it."""
    named_weights: NamedWeights = NamedWeights()
    """Fingerprints of the encoders and sources that the config names, on rank 0."""
    trainable_parameters: int = 0

    @property
    def reader(self) -> BatchReader:
        """The batches of the train split."""
        return self.readers["train"]

    def heartbeat_or_stop(self, activity: str) -> None:
        """Collective. Report progress to the watchdog.

        Raises:
            Stopped: a rank has received a stop signal.
        """
        self.watchdog.heartbeat(activity)
        self.stop.check(self.processes)
