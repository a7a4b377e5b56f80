"""The tuner makes itself known to peft as soon as both are imported, in whichever order."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

TUNER = "propulsion.tuner"  # registers itself with peft when it is imported


def with_peft() -> None:
    """Register now where peft is imported, else as soon as it is."""
    if "peft" in sys.modules:
        importlib.import_module(TUNER)
    elif not any(isinstance(finder, _Peft) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Peft())


class _Peft(MetaPathFinder):
    """Finds peft as all others would, and has the tuner imported after it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "peft":
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)  # transformers only asks whether peft is there: the import is yet to come
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenTuner(spec.loader, self)
        return spec


class _ThenTuner(Loader):
    """Peft's own loader; what it loads is followed by the tuner."""

    def __init__(self, loader: Loader, finder: _Peft) -> None:
        self.loader = loader
        self.finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        assert module.__spec__ is not None
        module.__spec__.loader = self.loader
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)
        self.loader.exec_module(module)
        importlib.import_module(TUNER)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)
