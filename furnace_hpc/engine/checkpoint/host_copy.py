"""Copy a checkpoint's contents into host memory, so that training continues meanwhile.

The training waits only for the part that a forward or backward pass may change. A thread copies the
rest, and the next update of the weights waits for it.
"""

import io
import pickle
import threading
from collections import defaultdict
from collections.abc import Collection
from contextlib import suppress
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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
        self._left: list[tuple[UntypedStorage, UntypedStorage]] = []
        """Source and copy of each storage that `finish` copies."""
        self._is_finished = threading.Event()
        self._is_finished.set()
        self._error: BaseException | None = None

    @property
    def num_bytes(self) -> int:
        """Host memory that the buffers take."""
        return sum(size * len(buffers) for size, buffers in self._buffers.items())

    def close(self) -> None:
        """Free the buffers. The last copy must not be used any more."""
        for buffer in chain.from_iterable(self._buffers.values()):
            buffer.free()
        self._buffers = {}

    def copy(self, content: Any, stable: Collection[int] = ()) -> Any:
        """Copy anything that torch.save accepts. The last copy is overwritten.

        As in torch.save, everything but the storages is pickled. Tensors that share a storage share
        its copy.

        Args:
            content: what is copied.
            stable: addresses of storages in host memory that `finish` copies. They must not change
                until `join` returns.
        """
        free: dict[int, list[_Buffer]] = self._buffers
        used: dict[int, list[_Buffer]] = defaultdict(list)
        copies: dict[_StorageKey, UntypedStorage] = {}
        left: list[tuple[UntypedStorage, UntypedStorage]] = []

        def copy_once(storage: UntypedStorage) -> _StorageKey:
            key = str(storage.device), storage.data_ptr()
            if key not in copies:
                size = storage.nbytes()
                buffer = free[size].pop() if free.get(size) else _Buffer(size)
                if storage.data_ptr() in stable and storage.device.type == "cpu":
                    left.append((storage, buffer.storage))
                else:
                    buffer.storage.copy_(storage, non_blocking=True)
                used[size].append(buffer)
                copies[key] = buffer.storage
            return key

        class Pickler(pickle.Pickler):
            def persistent_id(self, part: Any) -> Any:
                if isinstance(part, TypedStorage):
                    return copy_once(part._untyped_storage), part.dtype
                if isinstance(part, UntypedStorage):
                    return copy_once(part), None
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
        self._left, self._error = left, None
        if left:
            self._is_finished.clear()
        return result

    def finish(self) -> None:
        """Copy the storages that `copy` did not copy. Another thread may call it.

        After an error it copies nothing more: the storages may have changed since.

        Raises:
            RuntimeError: at each call, if the copy has failed.
        """
        try:
            for source, target in self._left:
                copy_storage(source, target)
        except BaseException as error:
            self._error = error
        finally:
            self._left = []
            self._is_finished.set()
        if self._error:
            raise RuntimeError(
                "the training state could not be copied to host memory "
                f"({type(self._error).__name__}: {self._error})"
            ) from self._error

    def join(self) -> None:
        """Wait until `finish` has copied. From then on the storages may change."""
        self._is_finished.wait()


def copy_storage(source: UntypedStorage, target: UntypedStorage) -> None:
    """Copy host memory. Unlike torch's copy of a storage, it lets other threads run meanwhile."""
    np.copyto(_bytes_of(target), _bytes_of(source))


def _bytes_of(storage: UntypedStorage) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
    return found


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
