"""HTTP/1.1 as uvicorn speaks it, where also what never becomes a request is answered by an error in JSON."""

import asyncio
import json
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from eval.openai_requests import RefusedError


class Connection(H11Protocol):
    """One connection of a client, which has `seconds` for the head of each request."""

    def __init__(self, *args: Any, seconds: float, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._seconds = seconds
        self._waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Wait for the first head."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop to wait."""
        self._stop()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request."""
        self._refuse(RefusedError(msg))

    def _watch(self) -> None:
        """Begin to wait where a head has begun, or nothing ever came; stop where it is whole."""
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._stop()
        elif self._waiting is None:
            self._waiting = self.loop.call_later(self._seconds, self._give_up)

    def _stop(self) -> None:
        if self._waiting:
            self._waiting.cancel()
        self._waiting = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self._refuse(RefusedError(f"the head of the request took more than {self._seconds:g} s", 408))

    def _refuse(self, error: RefusedError) -> None:
        """Send an error as all others are sent, where no answer has begun, and close."""
        body = json.dumps(error.body()).encode()
        size = str(len(body))
        headers = {"content-type": "application/json", "content-length": size, "connection": "close"}
        reason = HTTPStatus(error.status).phrase.encode()
        response = h11.Response(status_code=error.status, headers=[*headers.items()], reason=reason)
        is_open = self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE)
        for event in (response, h11.Data(data=body), h11.EndOfMessage()) if is_open else ():
            self.transport.write(self.conn.send(event))
        self.transport.close()
