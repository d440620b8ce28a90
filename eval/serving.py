"""From the settings of a server to one that runs: models opened, an address taken, signals obeyed."""

import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import uvicorn

from dataset.printing import printable
from eval.connection import Connection
from eval.served_chat import ServedChat
from eval.served_model import Tell, open_model
from eval.server import Server
from eval.server_settings import ServerSettings
from model.errors import UserError, brief

MIB = 2**20


def open_chats(settings: ServerSettings, tell: Tell) -> dict[str, ServedChat]:
    """Open all models; raises `UserError` for one that cannot be, and where two have one name."""
    names = [Path(os.path.abspath(folder)).name for folder in settings.model]  # of links, their own
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"--model: clients name models by their folders, and two are called {min(twice)}")
    if odd := [name for name in names if printable(name) != name]:
        raise UserError(f"--model: expected a folder whose name can be shown, got {brief(odd[0])}; link it")
    chats = {}
    for name, folder in zip(names, settings.model, strict=True):
        served = open_model(folder, device=settings.device)
        served = served.in_form(settings.dtype, settings.compile, False, tell)
        chats[name] = ServedChat(name, served, settings)
        most = chats[name].max_prompt_tokens
        tell(
            f"{name}: prompt mask {served.prompt_mask}, {served.speed}; prompts of up to {most} tokens, "
            f"a block of which takes {most * most / MIB:.1f} MiB for its mask"
        )
        for note in served.notes("/v1/completions"):
            tell(f"note: {note}")
    return chats


def serve(settings: ServerSettings, tell: Tell, on_start: Callable[[uvicorn.Server], None] = id) -> None:
    """Serve until a signal says to stop; `tell` gets a line when requests are answered.

    Raises `UserError` for what cannot be served, and for an address that cannot be had.
    """
    with _listen(settings.host, settings.port) as listener:
        server = Server(open_chats(settings, tell), settings)
        config = uvicorn.Config(
            server.app(),
            log_level="critical",  # every request and mistake is counted or told by the server itself
            access_log=False,
            http=partial(Connection, seconds=settings.body_seconds),
            server_header=False,
            timeout_graceful_shutdown=settings.shutdown_seconds,
        )
        running = uvicorn.Server(config)
        on_start(running)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        tell(f"answering at http://{host}:{listener.getsockname()[1]}/v1 (Ctrl-C ends it)")
        if not settings.is_local and settings.key_file is None:
            tell("note: who reaches this address may ask; --key_file lets only those in who have the key")
        running.run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
        # Else the body of an answer waits until its head is acknowledged, which takes clients 40 ms.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no name of a machine"
        fault = f"--host {host} --port {port}: cannot listen there ({reason})"
        raise UserError(f"{fault}; choose another, or port 0") from None
