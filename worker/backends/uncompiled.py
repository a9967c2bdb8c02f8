"""Libraries imported without torch's compiler, which nobody here uses.

torchvision asks the compiler whether it could compile an operator, timm tells it to leave a class
alone, both while they are imported. To hear that, 900 modules come in: 2.7 of the 6.9 CPU seconds
until open_clip is there, and 144 MB of each worker (torch 2.15.0, torchvision 0.29.2, timm 1.0.31
on an AMD EPYC, 2026-11-28). `meta.parameters_on_meta` keeps it out later on.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

__all__ = ["uncompiled"]

COMPILER, UTILS = "torch._dynamo", "torch._dynamo.utils"


@contextmanager
def uncompiled() -> Iterator[None]:
    """In the block, these two questions are answered in the compiler's place. Whoever asks for
    anything else of it, or imports it later, gets the compiler."""
    if COMPILER in sys.modules:
        yield
        return
    compiler, utils = ModuleType(COMPILER), ModuleType(UTILS)
    stand_ins = {COMPILER: compiler, UTILS: utils}

    def step_aside() -> None:
        for name, stand_in in stand_ins.items():
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]

    def anything_else(attribute: str) -> Any:
        if attribute.startswith("__") and attribute != "__path__":  # `inspect` looks at all modules
            raise AttributeError(attribute)
        step_aside()
        return getattr(import_module(COMPILER), attribute)

    compiler.__dict__.update(disable=_as_it_is, __getattr__=anything_else)
    utils.__dict__.update(is_compile_supported=lambda device: False)
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        step_aside()


def _as_it_is(what: Any = None, recursive: bool = True, *, reason: str | None = None) -> Any:
    """`torch._dynamo.disable`, which may have to give a decorator."""
    return (lambda decorated: decorated) if what is None else what
