"""A checkpoint's contents copied into host memory, so that training goes on while they are written."""

import io
import pickle
from collections import defaultdict
from typing import Any

import torch
from torch import UntypedStorage
from torch.storage import TypedStorage


class HostCopy:
    """Makes deep copies whose tensors lie in host memory, in buffers that the next copy uses again.

    The first copy allocates them, which costs several times what copying does; on a CUDA machine they are pinned.
    """

    def __init__(self) -> None:
        # size in bytes -> those of the copy before
        self._buffers: dict[int, list[UntypedStorage]] = {}

    def of(self, content: Any) -> Any:
        """A copy of anything that torch.save takes. The copy made before it is overwritten.

        As torch.save does, it pickles all but the storages; tensors that share one go on sharing it.
        """
        spare, used = self._buffers, defaultdict(list)
        copies: dict[tuple[str, int], UntypedStorage] = {}

        def copied(storage: UntypedStorage) -> tuple[str, int]:
            key = str(storage.device), storage.data_ptr()
            if key not in copies:
                size = storage.nbytes()
                buffer = spare[size].pop() if spare.get(size) else _new_buffer(size)
                buffer.copy_(storage, non_blocking=True)
                used[size].append(buffer)
                copies[key] = buffer
            return key

        class Pickler(pickle.Pickler):
            def persistent_id(self, part: Any) -> Any:
                if isinstance(part, TypedStorage):
                    return copied(part._untyped_storage), part.dtype
                return (copied(part), None) if isinstance(part, UntypedStorage) else None

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
            # the copies are on their way, and the next step changes what they are of
            torch.cuda.synchronize()
        self._buffers = dict(used)
        return result


def _new_buffer(size: int) -> UntypedStorage:
    return torch.empty(
        size, dtype=torch.uint8, pin_memory=torch.cuda.is_available()
    ).untyped_storage()
