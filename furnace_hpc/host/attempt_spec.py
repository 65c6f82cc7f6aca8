"""What one attempt of a run is started with. Standard library only, syntax of Python 3.6.

`furnace submit` writes it into `rows.jsonl` under the key `facts`. The host copies it into the
attempt's record.
"""

from typing import Any, Dict, NamedTuple, Optional, Union


class AttemptSpec(NamedTuple):
    """Code, processes, limits and data of one attempt. Field names are the JSON keys."""

    code_hash: str = ""  # of the sources that decide numbers
    snapshot: str = ""  # name of the code snapshot; empty: code of a start by hand
    nodes: Optional[int] = None
    processes_per_node: Optional[int] = None
    world_size: Optional[int] = None
    gpus: Union[int, float] = 0  # of all nodes; below 1: its part of a GPU that runs share
    signal_delay_s: Optional[float] = None  # from the stop signal to the time limit
    time_limit_s: Optional[float] = None  # None outside Slurm
    attempts_before: int = 0  # newest attempt of the same run by older code
    max_attempts: Optional[int] = None
    max_idle_attempts: Optional[int] = None
    max_gpu_hours: Optional[float] = None
    data_dir: str = ""  # folder of the packed data set
    overrides: Dict[str, Any] = {}  # config fields that differ from spec.json
    known_attempts: int = 0  # newest attempt when the overrides were chosen
    partition: Optional[str] = None  # that the job asks for
    stop_after_steps: Optional[int] = None  # of a canary, which saves and stops then
    runs_per_node: int = 1  # of its job
    runs_per_gpu: int = 1  # that use a GPU at the same time
    gpu_sharing: str = ""  # how runs share GPUs, and why not with MPS
    # key of the config -> hash of the weights that it names, when the attempt was planned
    weights_fingerprints: Dict[str, str] = {}

    @classmethod
    def from_record(cls, record: Dict[str, Any]) -> "AttemptSpec":
        """Read the JSON form. A missing key has its default, other keys are ignored."""
        return cls(**{name: record[name] for name in cls._fields if name in record})

    def record(self, **more: Any) -> Dict[str, Any]:
        """Return the JSON form, with more keys."""
        return dict(self._asdict(), **more)
