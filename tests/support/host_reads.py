"""Record where the host reads a value back from tensors, or makes a small tensor of host values."""

import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# .item() and bool() of a tensor, torch.tensor(...), and an index that is a list
OPERATIONS = ("aten._local_scalar_dense", "aten.lift_fresh", "aten.nonzero", "aten.is_nonzero")
MAKERS = ("tensor", "as_tensor", "scalar_tensor")
READERS = ("item", "tolist", "cpu")


class HostReads(TorchDispatchMode):
    """A context. `places` has name, file and line of each read of this thread, by any library."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []
        self._patches: list[Any] = []
        self._thread = threading.get_ident()

    def __enter__(self) -> "HostReads":
        for name in MAKERS:
            self._patch(torch, name)
        for name in READERS:
            self._patch(torch.Tensor, name)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for one in self._patches:
            one.stop()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if str(function).startswith(OPERATIONS):
            self._note(str(function))
        return function(*arguments, **(keywords or {}))

    def _patch(self, owner: Any, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def noting(*arguments: Any, **keywords: Any) -> Any:
            self._note(name)
            return original(*arguments, **keywords)

        self._patches.append(patch.object(owner, name, noting))
        self._patches[-1].start()

    def _note(self, name: str) -> None:
        if threading.get_ident() != self._thread:
            return
        frames = [f for f in traceback.extract_stack() if "/torch/" not in f.filename]
        frame = next(f for f in reversed(frames) if f.filename != __file__)
        self.places.append(f"{name} in {Path(frame.filename).name}:{frame.lineno}")
