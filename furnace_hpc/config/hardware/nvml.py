"""What NVIDIA's management library (NVML) reports of a GPU: energy, ECC errors, XIDs, clocks, MIG.

It needs the package nvidia-ml-py, which is optional. Everything is None or empty without it, or if
the driver or the GPU does not support a query. Other errors than those of NVML are raised.
"""

import importlib
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any

# bits of nvmlDeviceGetCurrentClocksThrottleReasons that name a problem of the card or its cooling
SLOWDOWNS = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake of the machine",
}
POWER_CAP = 0x04  # usual under full load
CORRECTED, UNCORRECTED = 0, 1
VOLATILE, AGGREGATE = 0, 1  # since the driver was loaded, since the card was made
XID_EVENT = 0x08
# Of the program, not of the card: https://docs.nvidia.com/deploy/xid-errors/
PROGRAM_XIDS = (13, 31, 43, 45, 68)


def load() -> ModuleType | None:
    """The module pynvml, initialised. None if it is not installed, or there is no driver."""
    try:
        module = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        module.nvmlInit()
    except errors_of(module):
        return None
    return module


def errors_of(module: ModuleType) -> tuple[type[Exception], ...]:
    """The exceptions of pynvml. They have no common base but Exception."""
    return module.NVMLError, getattr(module, "NVMLLibraryMismatchError", module.NVMLError)


class Gpu:
    """One GPU, or the GPU that a part of it (MIG) belongs to."""

    def __init__(self, module: ModuleType, handle: Any) -> None:
        self._module, self._handle = module, handle
        self._events: Any = None

    @classmethod
    def of_uuid(cls, uuid: str) -> "Gpu | None":
        """The GPU with this unique id of CUDA, with or without `GPU-`. None if NVML lacks it.

        Numbers would not do: NVML counts all GPUs of a node, and CUDA those that it may use.
        """
        module = load()
        if module is None:
            return None
        prefixed = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        try:
            return cls(module, module.nvmlDeviceGetHandleByUUID(prefixed))
        except errors_of(module):
            return None

    def energy_j(self) -> float | None:
        """Joules since the driver was loaded. The whole card counts, not one process."""
        found = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        if found is None:
            return None
        return float(found) / 1000

    def facts(self) -> dict[str, Any]:
        """All that `furnace doctor` judges. A query that is not supported is None."""
        ask = self._ask
        return {
            "uncorrected": ask("nvmlDeviceGetTotalEccErrors", UNCORRECTED, VOLATILE),
            "uncorrected_ever": ask("nvmlDeviceGetTotalEccErrors", UNCORRECTED, AGGREGATE),
            "remapped": _remapped(ask("nvmlDeviceGetRemappedRows")),
            "slowdowns": self.slowdowns(),
            "temperature_c": ask("nvmlDeviceGetTemperature", 0),
            "sm_mhz": ask("nvmlDeviceGetClockInfo", 1),
            "max_sm_mhz": ask("nvmlDeviceGetMaxClockInfo", 1),
            "mig": _mig(ask("nvmlDeviceGetMigMode")),
        }

    def slowdowns(self) -> list[str]:
        """Why its clocks are lower than they could be, without the usual power cap."""
        names = (
            "nvmlDeviceGetCurrentClocksEventReasons",
            "nvmlDeviceGetCurrentClocksThrottleReasons",  # older drivers
        )
        bits = next((found for name in names if (found := self._ask(name)) is not None), 0)
        return [text for bit, text in SLOWDOWNS.items() if int(bits) & bit]

    def watch_xids(self) -> None:
        """Collect XIDs from now on. NVML does not keep earlier ones."""
        with suppress(*errors_of(self._module)):
            events = self._module.nvmlEventSetCreate()
            self._module.nvmlDeviceRegisterEvents(self._handle, XID_EVENT, events)
            self._events = events

    def xids(self) -> list[int]:
        """The XIDs since `watch_xids`, without those that a program causes."""
        found: list[int] = []
        with suppress(*errors_of(self._module)):
            while self._events is not None and len(found) < 100:
                # raises an error if none comes within a millisecond
                event = self._module.nvmlEventSetWait_v2(self._events, 1)
                found.append(int(event.eventData))
        return [xid for xid in found if xid not in PROGRAM_XIDS]

    def _ask(self, name: str, *arguments: Any) -> Any:
        function: Callable[..., Any] | None = getattr(self._module, name, None)
        if function is None:
            return None
        try:
            return function(self._handle, *arguments)
        except errors_of(self._module):
            return None


def _remapped(rows: Any) -> dict[str, int] | None:
    """Rows of memory that were replaced, from (correctable, uncorrectable, pending, failure)."""
    if rows is None:
        return None
    _, uncorrectable, pending, failure = rows
    return {"uncorrectable": uncorrectable, "pending": pending, "failure": failure}


def _mig(modes: Any) -> bool | None:
    if modes is None:
        return None
    return bool(modes[0])
