"""What can go wrong while a stack is started or kept up.

They never cross the wire, so they live beside what raises them.
"""

from ..wire.errors import BadSettings, ClipyardError


class StackError(ClipyardError):
    """A stack cannot be started or kept running."""

    code = "stack"


class InUse(StackError):
    """Somebody else runs a stack in that directory."""

    code = "stack_in_use"


class NoServerBinary(StackError):
    """No Valkey or Redis server that would do is installed."""

    code = "no_server_binary"


class ServerFailed(StackError):
    """The server is there and does not start; the sentence ends with the end of its log."""

    code = "server_failed"


class NoCheckout(StackError):
    """The worker's code is not here: the wheel holds the client only."""

    code = "no_checkout"


class NotReady(StackError):
    """A child runs and does not become ready; the sentence ends with the end of its log."""

    code = "not_ready"


class CannotStart(StackError, BadSettings):
    """A child cannot do as it is told; all was stopped. Ends with its log's end."""

    code = "cannot_start"


class CrashLoop(StackError):
    """A child dies again and again; all was stopped. Ends with its log's end."""

    code = "crash_loop"
