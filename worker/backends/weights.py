"""Weights in files: read without running code, compared, named by their content."""

import hashlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from api_client.wire.errors import BadCheckpoint, WeightsUnavailable, first_line, some_of

State = Mapping[str, Tensor]

NO_PICKLE = (pickle.UnpicklingError, EOFError)  # of what torch does not open
_FORBIDDEN = re.compile(r"\bGLOBAL (\S+)")


def read(file: Path) -> dict[str, Tensor]:
    """Every tensor of a file, mapped rather than copied where the format allows.

    Raises:
        WeightsUnavailable: there is no such file.
        BadCheckpoint: it is truncated, corrupt, holds code, or no tensors.
    """
    try:
        content = load_file(file) if file.suffix == ".safetensors" else _unpickle(file)
    except FileNotFoundError:
        raise WeightsUnavailable(f"there is no checkpoint {file}") from None
    except IsADirectoryError:
        raise BadCheckpoint(f"{file} is a folder; name the file of the weights in it") from None
    except SafetensorError as error:
        raise BadCheckpoint(f"{file} is truncated or corrupt: {error}") from None
    except NO_PICKLE as error:
        raise not_opened(str(file), error) from None
    except (BadCheckpoint, MemoryError):
        raise
    except Exception as error:  # whatever a damaged file makes of its reader
        raise BadCheckpoint(f"{file} is truncated or corrupt: {first_line(error)}") from None
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(map(_is_plain, content.values())) or not content:
        raise BadCheckpoint(f"{file} is not a state_dict: it holds something else than tensors")
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def not_opened(file: str, error: Exception) -> BadCheckpoint:
    """What to say of one of `NO_PICKLE`: torch says, of a page saved as a checkpoint too, how to
    allow what could run code."""
    if named := _FORBIDDEN.search(str(error)):
        return _holding_more(file, named[1])
    return BadCheckpoint(
        f"{file} is truncated or corrupt, or nothing that torch opens without running code; "
        "if it is a checkpoint, save its state_dict as safetensors"
    )


def write(state: State, file: Path) -> None:
    """As safetensors.

    Raises:
        OSError: no room, or no permission.
    """
    try:
        save_file(dict(state), file)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def differences(expected: State, state: State) -> str:
    """What keeps `state` from being loaded into a model of `expected`; empty if nothing does."""
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    misshaped = [
        f"{name} ({_shape(state[name])} instead of {_shape(tensor)})"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": misshaped}
    return "; ".join(f"{some_of(names)} {what}" for what, names in found.items() if names)


def fits(expected: State, state: State) -> bool:
    """Whether `state` can serve as it is: the same names, shapes and types."""
    return expected.keys() == state.keys() and all(
        tensor.shape == state[name].shape and tensor.dtype == state[name].dtype
        for name, tensor in expected.items()
    )


def layout(state: State) -> str:
    """A short name for names, shapes and types, whatever the values."""
    lines = (f"{name} {_shape(state[name])} {state[name].dtype}" for name in sorted(state))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def identity(state: State) -> str:
    """SHA-256 of names, shapes, types and values; the same for the same weights in any file."""
    digest = hashlib.sha256(layout(state).encode())
    for name in sorted(state):
        content: NDArray[np.uint8] = state[name].contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(content.data)
    return digest.hexdigest()


def _unpickle(file: Path) -> object:
    is_archive = zipfile.is_zipfile(file)  # the format before 2020 is none, and cannot be mapped
    if is_archive:
        with zipfile.ZipFile(file) as archive:
            parts = {name.rpartition("/")[2] for name in archive.namelist()}
        if "constants.pkl" in parts:
            raise _holding_more(str(file), "a TorchScript archive")
        if "data.pkl" not in parts:
            raise BadCheckpoint(
                f"{file} is an archive, and none of torch's, as big_vision's .npz are none; "
                "save its tensors as safetensors under the model's own names"
            )
    return torch.load(file, map_location="cpu", weights_only=True, mmap=is_archive)


def _holding_more(file: str, what: str) -> BadCheckpoint:
    return BadCheckpoint(
        f"{file} holds more than tensors and is not opened, because it could run code ({what}); "
        "save its state_dict as safetensors"
    )


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
