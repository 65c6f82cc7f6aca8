"""Copy a checkpoint's contents into host memory, so that training continues meanwhile."""

import io
import pickle
from collections import defaultdict
from typing import Any

import torch
from torch import UntypedStorage
from torch.storage import TypedStorage

_StorageKey = tuple[str, int]
"""Device and address."""


class HostCopy:
    """Makes deep copies in host memory. Each copy reuses the buffers of the one before.

    The first copy allocates the buffers, which takes several times as long as copying. On a CUDA
    machine they are pinned.
    """

    def __init__(self) -> None:
        self._buffers: dict[int, list[UntypedStorage]] = {}
        """Size in bytes -> buffers of the last copy."""

    def copy(self, content: Any) -> Any:
        """Copy anything that torch.save accepts. The last copy is overwritten.

        As in torch.save, everything but the storages is pickled. Tensors that share a storage share
        its copy.
        """
        free, used = self._buffers, defaultdict(list)
        copies: dict[_StorageKey, UntypedStorage] = {}

        def copy_storage(storage: UntypedStorage) -> _StorageKey:
            key = str(storage.device), storage.data_ptr()
            if key not in copies:
                size = storage.nbytes()
                buffer = free[size].pop() if free.get(size) else _new_buffer(size)
                buffer.copy_(storage, non_blocking=True)
                used[size].append(buffer)
                copies[key] = buffer
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
        self._buffers = dict(used)
        return result


def _new_buffer(size: int) -> UntypedStorage:
    pinned = torch.cuda.is_available()
    return torch.empty(size, dtype=torch.uint8, pin_memory=pinned).untyped_storage()
