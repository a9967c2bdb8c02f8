"""A caller's connection: uvicorn's own, and an end to what it has no setting for."""

import resource
import socket
import sys
from asyncio import Transport

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["DRAIN_S", "Connection"]

HEAD_S = 30.0
UNREAD_MS = 30_000
DRAIN_S = 30


class Connection(H11Protocol):
    """Is not kept for who never asks, nor for who does not take the answer."""

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        if sys.platform == "linux":  # elsewhere an answer stays in memory until its caller goes
            caller = transport.get_extra_info("socket")
            caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_MS)
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(HEAD_S, self.timeout_keep_alive_handler)
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2  # below 0 if there is no limit
        if 0 < most < len(self.connections):
            # Out of files, asyncio would log a thousand tracebacks a second, and Redis be away.
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """uvicorn's own stops the clock at a request's first byte, this one at its whole head."""
        self.conn.receive_data(data)
        self.handle_events()

    def shutdown(self) -> None:
        """When those at work are told that a stop can wait no longer, who does not take an answer
        can be told nothing: uvicorn would wait for him without an end."""
        super().shutdown()
        self.loop.call_later(DRAIN_S, self._give_up)

    def _give_up(self) -> None:
        if self.flow.write_paused:
            self.transport.abort()

    def _should_upgrade(self) -> bool:
        """To nothing. uvicorn's own would warn of everybody who offers HTTP/2, as Java does with
        each request, and tell people to install what WebSockets need."""
        return False

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:  # the answer came before the body; uvicorn's own would raise over a second one
            self.transport.close()
