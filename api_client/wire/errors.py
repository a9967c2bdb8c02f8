"""Everything that can go wrong, on either side of the wire.

    ClipyardError
    ├── BadRequest             an argument or a message that cannot be served      (ValueError)
    │   ├── UnknownModel       the catalogue has no such model
    │   ├── NotSigned          the installation wants requests signed with its key
    │   └── UnknownJob         there is no bulk job of that id
    ├── SpaceMismatch          vectors of two different spaces would be mixed       (ValueError)
    ├── BadSettings            a setting has a value that cannot be used           (ValueError)
    ├── LoadFailed             a model cannot be brought into memory
    │   ├── WeightsUnavailable its checkpoint is not here and cannot be fetched
    │   └── BadCheckpoint      its checkpoint is broken, unsafe, or of another architecture
    ├── ModelBusy              every slot is leased; ask again                     retryable
    ├── OutOfMemory            device or host memory does not suffice   retryable  (MemoryError)
    ├── BackendFailed          a back end misbehaved; its name is in the sentence
    │   ├── BackendAway        the server that it asks cannot be reached, or is busy   retryable
    │   └── DeviceLost         the device context is beyond repair; the worker ends  retryable
    ├── Quarantined            it took its worker process down twice and is not tried again
    ├── Expired                the caller's deadline is too near, or has passed    retryable
    ├── Cancelled              the request was withdrawn
    ├── JobRefused             a bulk job's source, sink or papers cannot be used
    ├── StoreDown              a source or sink does not answer, or is full        retryable
    ├── NoBroker               Redis cannot be reached                 retryable  (ConnectionError)
    ├── NoWorker               no worker is alive                                  retryable
    ├── NoAnswer               no answer came in time                  retryable  (TimeoutError)
    └── ItemError              one image or text of many; its neighbours are served
        ├── ImageMissing       there is no such file, object or page       (FileNotFoundError)
        ├── ImageForbidden     outside the allowed roots or hosts, or its server refuses it
        │                                                                  (PermissionError)
        ├── ImageGone          its bytes came with the request and expired   retryable
        ├── ImageUnreachable   its server or store did not deliver           retryable
        ├── ImageUnreadable    empty, truncated, not an image, or hostile
        ├── ImageTooLarge      over the limit of bytes, pixels or frames
        ├── TextInvalid        empty, blank or not text
        └── NonFiniteVector    the model answered with NaN or infinity

They carry one sentence each: what was asked, and what would work. They cross the wire as
(code, sentence, retryable) and are raised again as the same class on the other side.
"""

from collections.abc import Collection, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

OURS = "Value error, "  # what Pydantic puts before a sentence of ours
NAMED = 3  # in a sentence about many


class ClipyardError(Exception):
    """Base of every error this project raises on purpose.

    Attributes:
        code: short, stable, for programs.
        retryable: whether the same call may well succeed a little later.
    """

    code: str = "error"
    retryable: bool = False


class BadRequest(ClipyardError, ValueError):
    """An argument or a message that cannot be served."""

    code = "bad_request"


class UnknownModel(BadRequest):
    """The catalogue has no model of that name."""

    code = "unknown_model"


class NotSigned(BadRequest):
    """The workers want requests signed with a key, and this one is not."""

    code = "not_signed"


class UnknownJob(BadRequest):
    """There is no bulk job of that id."""

    code = "unknown_job"


class SpaceMismatch(ClipyardError, ValueError):
    """Vectors of two different spaces would be compared or stored together."""

    code = "space_mismatch"


class BadSettings(ClipyardError, ValueError):
    """A setting has a value that cannot be used. One line per mistake."""

    code = "bad_settings"


class LoadFailed(ClipyardError):
    """A model cannot be brought into memory."""

    code = "load_failed"


class WeightsUnavailable(LoadFailed):
    """The checkpoint is not on this machine and could not be fetched."""

    code = "weights_unavailable"


class BadCheckpoint(LoadFailed):
    """The checkpoint is broken, contains code, or belongs to another architecture."""

    code = "bad_checkpoint"


class ModelBusy(ClipyardError):
    """Every slot is leased to a running request."""

    code = "model_busy"
    retryable = True


class OutOfMemory(ClipyardError, MemoryError):
    """Device or host memory does not suffice, even after halving and letting go."""

    code = "out_of_memory"
    retryable = True


class BackendFailed(ClipyardError):
    """A back end raised something it should not, or answered with the wrong shape."""

    code = "backend_failed"


class BackendAway(BackendFailed):
    """The server that a back end asks cannot be reached, or is too busy to answer."""

    code = "backend_away"
    retryable = True


class DeviceLost(BackendFailed):
    """Nothing runs on the device any more before the process is started again."""

    code = "device_lost"
    retryable = True


class Quarantined(ClipyardError):
    """The request, or an item of a job, took its worker process down twice; see `clipyard
    quarantine`."""

    code = "quarantined"


class Expired(ClipyardError):
    """The caller's deadline passed before the work began, or would before it could be done."""

    code = "expired"
    retryable = True


class Cancelled(ClipyardError):
    """The request was withdrawn by its caller or an operator."""

    code = "cancelled"


class JobRefused(ClipyardError):
    """A bulk job's source, sink or papers cannot be used as they are; the sentence says why."""

    code = "job_refused"


class StoreDown(ClipyardError):
    """A source or sink does not answer, has no room, or is held by somebody else."""

    code = "store_down"
    retryable = True


class NoBroker(ClipyardError, ConnectionError):
    """Redis cannot be reached."""

    code = "no_broker"
    retryable = True


class NoWorker(ClipyardError):
    """No worker is alive."""

    code = "no_worker"
    retryable = True


class NoAnswer(ClipyardError, TimeoutError):
    """No answer came before the timeout."""

    code = "no_answer"
    retryable = True


class ItemError(ClipyardError):
    """One image or text of many cannot be embedded; its neighbours are served."""

    code = "item_error"


class ImageMissing(ItemError, FileNotFoundError):
    """There is no such file."""

    code = "image_missing"


class ImageForbidden(ItemError, PermissionError):
    """It lies outside the allowed roots, protocols or hosts, or its server refuses it."""

    code = "image_forbidden"


class ImageGone(ItemError):
    """The bytes that were sent with a request are not in Redis any more: its clock jumped, or its
    memory was full."""

    code = "image_gone"
    retryable = True


class ImageUnreachable(ItemError):
    """The server, object store or file system of a picture did not deliver it, or not in time."""

    code = "image_unreachable"
    retryable = True


class ImageUnreadable(ItemError):
    """Empty, truncated, a directory, hostile, or no image at all."""

    code = "image_unreadable"


class ImageTooLarge(ItemError):
    """Over the limit of bytes, pixels or frames."""

    code = "image_too_large"


class TextInvalid(ItemError, ValueError):
    """Empty, blank, or not text."""

    code = "text_invalid"


class NonFiniteVector(ItemError):
    """The model answered with NaN, infinity or a zero vector."""

    code = "non_finite_vector"


def _tree(kind: type[ClipyardError]) -> list[type[ClipyardError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in _tree(child))]


BY_CODE = {kind.code: kind for kind in _tree(ClipyardError)}


def first_line(error: BaseException) -> str:
    """What of another library's error fits into a sentence of ours; without its full stop."""
    return str(error).strip().partition("\n")[0].rstrip(".")


def some_of(names: Sequence[str]) -> str:
    """Of many, the first ones and how many there are beside, for a sentence."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def first_mistake(error: "ValidationError", *, whole: str = "") -> str:
    """What Pydantic found wrong first, for a sentence of ours: where, and what.

    Args:
        whole: stands for the place of what is wrong with all of it.
    """
    mistake = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(map(str, mistake["loc"])) or whole
    what = mistake["msg"].removeprefix(OURS)
    return f"{place}: {what}" if place else what


def nearest(
    name: str, known: Collection[str], *, otherwise: str, most: int = 5, cutoff: float = 0.6
) -> str:
    """For the sentence to who mistyped a name: the known ones like it, else what is to be said.

    Args:
        most, cutoff: as `difflib.get_close_matches` takes them.
    """
    near = get_close_matches(name, known, most, cutoff)
    return f"nearest: {', '.join(near)}" if near else otherwise


def from_wire(code: str, sentence: str, *, retryable: bool) -> ClipyardError:
    """The error that was raised on the other side; of a newer version's, the base with its code.

    Args:
        retryable: whether the other side takes it to be so.
    """
    error = BY_CODE.get(code, ClipyardError)(sentence)
    if error.code != code:
        error.code, error.retryable = code, retryable
    return error
