"""A server of small random models that runs in this process, and clients that ask it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import uvicorn
from serving import save_served, served_model

from eval.server_settings import ServerSettings
from eval.serving import serve

if TYPE_CHECKING:
    from openai import OpenAI

MASKS = ("causal", "prefix")


def save_models(folder: Path) -> list[str]:
    """Write a model of each mask, whose answers end at a stop id or go on for long."""
    return [str(save_served(served_model(mask, stops=True), folder / mask)) for mask in MASKS]


@contextmanager
def running(folders: list[str], **settings) -> Iterator[str]:
    """The address of a server that runs meanwhile."""
    told, servers, is_told = [], [], threading.Event()

    def tell(line: str) -> None:
        told.append(line)
        if line.startswith("answering at "):
            is_told.set()

    wanted = ServerSettings(model=tuple(folders), port=0, **settings)
    thread = threading.Thread(target=serve, args=(wanted, tell, servers.append))
    thread.start()
    assert is_told.wait(60), told
    yield told[-1].split()[2].removesuffix("/v1")
    [server] = servers
    assert isinstance(server, uvicorn.Server)
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


def client_of(address: str, key: str = "none") -> "OpenAI":
    from openai import OpenAI  # takes a second, and every worker reads every file

    return OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=60)


def post(address: str, body: dict | bytes, path: str = "/v1/chat/completions", **headers: str):
    said = {"content": body} if isinstance(body, bytes) else {"json": body}
    return httpx.post(
        address + path, headers={"content-type": "application/json"} | headers, timeout=60, **said
    )
