"""An OpenAI-compatible server: every request is answered under the model's own prompt mask.

What is asked is read by `eval/openai_requests.py`, answered by `eval/answering.py`, and written by
`eval/openai_answers.py`; here is HTTP: who may ask, how much, and what becomes of clients that leave.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from dataset.printing import show_traceback
from eval.answering import Engine
from eval.openai_answers import ChatReply, Reply, TextReply
from eval.openai_requests import Asked, ChatAsked, LookAsked, RefusedError, TextAsked, as_refusal, read_body
from eval.page import page
from eval.served_chat import ServedChat
from eval.server_metrics import Metrics
from eval.server_settings import LOOPBACK, ServerSettings
from model.errors import UserError
from model.files import as_json

LEFT = 499  # nginx's status of a client that closed its connection; nobody reads it
PAUSE_SECONDS = 0.03
"""between two pieces of a stream: no eye is faster, and each costs time that the model could use"""
SEND_SECONDS = 30.0
"""for which a client may leave a stream unread"""
HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}


class Written(JSONResponse):
    """JSON whose text may be shown in a terminal, whatever models and clients write."""

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return as_json(content).encode()


class Server:
    """The models of one process, and the requests that they answer."""

    def __init__(self, chats: dict[str, ServedChat], settings: ServerSettings) -> None:
        """Read the key; raises `UserError` where there is none in its file."""
        self.chats, self.settings = chats, settings
        self.engine = Engine({name: chat.lane for name, chat in chats.items()})
        self.metrics = Metrics(self.engine.lanes, lambda: self.num_open)
        self.num_open = 0
        """answers that somebody waits for"""
        self._key = _read_key(settings.key_file)
        self._readers = ThreadPoolExecutor(1, "reading")  # a long prompt takes a while to encode

    def app(self) -> FastAPI:
        """Return what uvicorn runs."""
        closed = {"docs_url": None, "redoc_url": None, "openapi_url": None}
        app = FastAPI(title="Sightline", lifespan=self._lifespan, default_response_class=Written, **closed)
        if self.settings.allow_origins:
            sent = {"allow_methods": ["GET", "POST"], "allow_headers": ["Authorization", "Content-Type"]}
            app.add_middleware(CORSMiddleware, allow_origins=self.settings.allow_origins, **sent)
        for kind in (RefusedError, UserError, HTTPException, Exception):
            app.add_exception_handler(kind, self._refuse)
        known, allowed = [Depends(self._check_host)], [Depends(self._check_host), Depends(self._check_key)]
        app.get("/", dependencies=known)(self.page)
        app.get("/health", dependencies=known)(self.health)
        app.get("/metrics", dependencies=allowed)(self.show_metrics)
        app.get("/v1/models", dependencies=allowed)(self.models)
        app.get("/v1/models/{name:path}", dependencies=allowed)(self.model)
        app.post("/v1/chat/completions", dependencies=allowed)(self.chat)
        app.post("/v1/completions", dependencies=allowed)(self.complete)
        app.post("/look", dependencies=allowed)(self.look)
        return app

    async def health(self) -> dict[str, str]:
        """Say that requests are answered."""
        return {"status": "ok"}

    async def show_metrics(self) -> Response:
        """Return numbers as Prometheus reads them."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def models(self) -> dict[str, Any]:
        """List the models."""
        return {"object": "list", "data": [chat.described() for chat in self.chats.values()]}

    async def model(self, name: str) -> dict[str, Any]:
        """Describe one model."""
        return self._chat(name).described()

    async def chat(self, request: Request) -> Response:
        """Answer a conversation."""
        return await self._answer(request, ChatAsked, ChatReply)

    async def complete(self, request: Request) -> Response:
        """Go on with texts."""
        return await self._answer(request, TextAsked, TextReply)

    async def page(self) -> Response:
        """Return the page."""
        return HTMLResponse(page())

    async def look(self, request: Request) -> Response:
        """Return a conversation as the page draws it."""
        with self._admitted(1):
            asked = read_body(LookAsked, await self._body(request))
            chat = self._chat(asked.model)
            return Written(await asyncio.wrap_future(self.engine.call(partial(chat.look, asked))))

    async def _answer(self, request: Request, kind: type[Asked], reply_kind: type[Reply]) -> Response:
        """Read a request, let its model answer it, and send the answer as it comes, or when it is whole."""
        began = time.monotonic()
        with ExitStack() as stack:  # undoes everything, however the request ends
            stack.enter_context(self._admitted(1))
            asked = read_body(kind, await self._body(request))
            chat, changed, loop = self._chat(asked.model), asyncio.Event(), asyncio.get_running_loop()
            on_change = partial(loop.call_soon_threadsafe, changed.set)
            choices = await loop.run_in_executor(self._readers, chat.choices, asked, on_change)
            stack.enter_context(self._admitted(len(choices) - 1))
            reply = reply_kind(chat.name, chat.mask_of(asked), chat.served.tokenizer, choices)
            stack.callback(lambda: self.metrics.count_reply(reply, time.monotonic() - began))
            for choice in choices:
                stack.callback(choice.job.cancel)
            self.engine.submit(chat.name, [choice.job for choice in choices])
            if asked.stream:
                self.metrics.count_status(200)
                return _Stream(self._events(reply, asked, changed), stack.pop_all().close)
            await _unless_left(request, _all_done(reply, changed))
            self._finish(reply, asked)
            self.metrics.count_status(200)
            return Written(reply.whole())

    async def _events(self, reply: Reply, asked: Asked, changed: asyncio.Event) -> AsyncIterator[str]:
        """Yield the events of a stream as answers grow."""
        try:
            while not reply.is_finished:
                if events := [_event(each) for each in reply.events(asked.wants_usage)]:
                    yield "".join(events)
                    await asyncio.sleep(PAUSE_SECONDS)  # what comes meanwhile is sent together
                if not reply.is_finished:
                    await changed.wait()
                    changed.clear()
            self._finish(reply, asked)
        except RefusedError as error:
            yield _event(error.body())
        else:
            yield "data: [DONE]\n\n"

    def _finish(self, reply: Reply, asked: Asked) -> None:
        """Keep the tokens of whole answers; raises `RefusedError` where there is none."""
        for choice in reply.choices:
            choice.read()
            if choice.job.error:
                raise RefusedError(choice.job.error, 503)
            if isinstance(asked, ChatAsked):
                self.chats[reply.model].remember(asked, choice)

    @contextmanager
    def _admitted(self, count: int) -> Iterator[None]:
        """Count answers that somebody waits for; raises `RefusedError` where there are too many."""
        if self.num_open + count > self.settings.max_requests:
            raise RefusedError(
                f"{self.num_open} answers are being computed or wait, the most that --max_requests allows; "
                "come again in a moment",
                429,
                code="rate_limit_exceeded",
            )
        self.num_open += count
        try:
            yield
        finally:
            self.num_open -= count

    async def _body(self, request: Request) -> bytes:
        """Return a body; raises `RefusedError` where it is too large, too slow or not called JSON."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # which no page of another origin may send unasked
            raise RefusedError(f"Content-Type: expected application/json, got {kind[:40] or 'none'}", 415)
        most, body = self.settings.max_body_kib * 1024, bytearray()
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                async for part in request.stream():
                    body += part
                    if len(body) > most:
                        raise RefusedError(f"the body has more than {most:,} bytes; send less", 413)
        except TimeoutError:
            raise RefusedError(f"the body took more than {self.settings.body_seconds:g} s", 408) from None
        except ClientDisconnect:
            raise RefusedError("the client left", LEFT) from None
        return bytes(body)

    def _chat(self, name: str | None) -> ServedChat:
        """Return a model by its name, which may be left out where there is one."""
        if name is None and len(self.chats) == 1:
            return next(iter(self.chats.values()))
        if name not in self.chats:
            served = ", ".join(self.chats)
            raise RefusedError(f"model: expected one of {served}", 404, "model", "model_not_found")
        return self.chats[name]

    async def _check_host(self, request: Request) -> None:
        """Refuse, of a server for this machine, what a page was led here to ask by a name of its own."""
        name = request.headers.get("host", "").rpartition(":")[0] or request.headers.get("host", "")
        if self.settings.is_local and name.strip("[]") not in LOOPBACK:
            raise RefusedError(f"Host: expected one of {', '.join(LOOPBACK)}; --host lets others ask", 403)

    async def _check_key(self, request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode("latin-1")
        if self._key is not None and not secrets.compare_digest(given, self._key):
            raise RefusedError("Authorization: expected Bearer and the key of this server", 401)

    async def _refuse(self, request: Request, error: Exception) -> Response:
        """Return any error as OpenAI's interface does."""
        if isinstance(error, HTTPException):
            error = RefusedError(
                f"{request.method} {request.url.path[:80]}: {error.detail}", error.status_code
            )
        if isinstance(error, UserError):
            error = as_refusal(error)
        if not isinstance(error, RefusedError):
            show_traceback(error)
            error = RefusedError("a mistake of this server; its log says more", 500)
        self.metrics.count_status(error.status)
        return Written(error.body(), error.status, HEADERS.get(error.status))

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        with self._readers, self.engine:
            yield


class _Stream(StreamingResponse):
    """Events as they come; `end` is called when the last is sent, or the client has left or does not read."""

    def __init__(self, events: AsyncIterator[str], end: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_soon(message: Message) -> None:
            async with asyncio.timeout(SEND_SECONDS):
                await send(message)

        try:
            await super().__call__(scope, receive, send_soon)
        except (TimeoutError, ClientDisconnect):
            pass  # the connection is closed without an end
        finally:
            self._end()


async def _all_done(reply: Reply, changed: asyncio.Event) -> None:
    while not all(choice.job.is_done for choice in reply.choices):
        await changed.wait()
        changed.clear()


async def _unless_left(request: Request, work: Any) -> None:
    """Wait for `work`; raises `RefusedError` where the client leaves before."""

    async def leaving() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(each) for each in (work, leaving())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise RefusedError("the client left", LEFT)
        tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()


def _event(record: dict[str, Any]) -> str:
    return f"data: {as_json(record)}\n\n"


def _read_key(file: str | None) -> bytes | None:
    """Return the key in a file; raises `UserError` where it has none."""
    if file is None:
        return None
    key = (Path(file).read_bytes().splitlines() or [b""])[0].strip()
    if not key:
        raise UserError(f"--key_file: expected a key in the first line of {file}, got nothing")
    return key
