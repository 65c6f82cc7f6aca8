"""Copy a checkpoint's contents into host memory, so that training continues meanwhile."""

import io
import pickle
from collections import defaultdict
from contextlib import suppress
from itertools import chain
from typing import Any

import torch
from torch import UntypedStorage
from torch.storage import TypedStorage

PINNED_BYTES = 1 << 20  # smaller buffers gain little, and may share a page, which CUDA refuses
_failures: list[int] = []  # codes of CUDA when this process could not pin memory
_StorageKey = tuple[str, int]
"""Device and address."""


class HostCopy:
    """Makes deep copies in host memory. Each copy reuses the buffers of the one before.

    The first copy allocates the buffers, which takes several times as long as copying. On a CUDA
    machine the large ones are pinned.
    """

    def __init__(self) -> None:
        self._buffers: dict[int, list[_Buffer]] = {}
        """Size in bytes -> buffers of the last copy."""

    @property
    def num_bytes(self) -> int:
        """Host memory that the buffers take."""
        return sum(size * len(buffers) for size, buffers in self._buffers.items())

    def close(self) -> None:
        """Free the buffers. The last copy must not be used any more."""
        for buffer in chain.from_iterable(self._buffers.values()):
            buffer.free()
        self._buffers = {}

    def copy(self, content: Any) -> Any:
        """Copy anything that torch.save accepts. The last copy is overwritten.

        As in torch.save, everything but the storages is pickled. Tensors that share a storage share
        its copy.
        """
        free: dict[int, list[_Buffer]] = self._buffers
        used: dict[int, list[_Buffer]] = defaultdict(list)
        copies: dict[_StorageKey, UntypedStorage] = {}

        def copy_storage(storage: UntypedStorage) -> _StorageKey:
            key = str(storage.device), storage.data_ptr()
            if key not in copies:
                size = storage.nbytes()
                buffer = free[size].pop() if free.get(size) else _Buffer(size)
                buffer.storage.copy_(storage, non_blocking=True)
                used[size].append(buffer)
                copies[key] = buffer.storage
            return key

        class Pickler(pickle.Pickler):
            def persistent_id(self, part: Any) -> Any:
                if isinstance(part, TypedStorage):
                    return copy_storage(part._untyped_storage), part.dtype
                if isinstance(part, UntypedStorage):
                    return copy_storage(part), None
                return None

        class Unpickler(pickle.Unpickler):
            def persistent_load(self, identity: Any) -> Any:
                key, dtype = identity
                buffer = copies[key]
                if dtype is None:
                    return buffer
                return TypedStorage(wrap_storage=buffer, dtype=dtype, _internal=True)  # type: ignore[no-untyped-call]

        structure = io.BytesIO()
        Pickler(structure, protocol=pickle.HIGHEST_PROTOCOL).dump(content)
        structure.seek(0)
        result = Unpickler(structure).load()
        if torch.cuda.is_available():
            # The copies are asynchronous, and the next step changes their sources.
            torch.cuda.synchronize()
        self.close()  # those that this copy did not need
        self._buffers = dict(used)
        return result


class _Buffer:
    """Host memory of exactly `size` bytes, pinned if it is large and there is CUDA.

    torch's own pinned memory is rounded up to a power of two, and is kept when it is freed. So
    ordinary memory is registered with CUDA instead.
    """

    def __init__(self, size: int) -> None:
        self.storage = torch.empty(size, dtype=torch.uint8).untyped_storage()
        wants_pinned = size >= PINNED_BYTES and torch.cuda.is_available() and not _failures
        self.is_pinned = wants_pinned and _pin(self.storage.data_ptr(), size)

    def free(self) -> None:
        """Unpin the memory. It is freed with the last tensor that uses it."""
        if self.is_pinned:
            self.is_pinned = False
            _check(_cudart().cudaHostUnregister(self.storage.data_ptr()))


def _pin(address: int, size: int) -> bool:
    """Pin host memory. If CUDA cannot, print one line: later copies are not pinned either.

    A node limits how much memory its processes may lock. Copies from a GPU are slower then, and
    the training waits for them.
    """
    code = int(_cudart().cudaHostRegister(address, size, 0))
    if code:
        _failures.append(code)
        clear_last_error()
        print(
            f"WARNING: checkpoints: CUDA cannot pin {size / 2**20:.0f} MiB of host memory (error "
            f"{code}): copies are not pinned, so saving takes longer. See `ulimit -l`",
            flush=True,
        )
    return code == 0


def clear_last_error() -> None:
    """Take the error that CUDA remembers. Otherwise torch raises it at its next kernel."""
    with suppress(RuntimeError):  # torch has no call for this, so a small kernel gets the error
        torch.zeros(1, device="cuda")


def _cudart() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def _check(code: Any) -> None:
    if int(code):
        raise RuntimeError(f"CUDA cannot unpin host memory: error {int(code)}")
