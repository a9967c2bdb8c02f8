"""Models that are built without memory for their parameters: on torch's meta device."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

__all__ = ["parameters_on_meta", "without_memory"]


def without_memory(construct: Callable[[], nn.Module]) -> nn.Module | None:
    """A model with its parameters on the meta device, its buffers real.

    None for the few constructors that compute with parameters, or a mask where they are.

    Raises:
        OSError: a file that it reads is not here, as it would not be at a second try.
    """
    try:
        with parameters_on_meta():
            model = construct()
    except OSError:
        raise
    except Exception:
        return None
    return None if any(buffer.is_meta for buffer in model.buffers()) else model


_building = threading.local()


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Parameters that this thread registers in the block take no memory, and no first values."""
    _watch_registrations()
    _building.now = True
    try:
        with _Undrawn():
            yield
    finally:
        _building.now = False


# What first values are made by. timm's truncated ones take four steps.
_DRAWS = {nn.init.normal_, Tensor.normal_, Tensor.uniform_, Tensor.erfinv_, Tensor.clamp_}


class _Undrawn(TorchFunctionMode):
    """No draws on the meta device: the first would bring torch's compiler in, see uncompiled.py."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in _DRAWS:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return function(*args, **kwargs)


@cache
def _watch_registrations() -> None:
    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> Any:
        if getattr(_building, "now", False) and parameter is not None and not parameter.is_meta:
            return nn.Parameter(parameter.to("meta"), requires_grad=False)
        return None

    register_module_parameter_registration_hook(to_meta)
