"""What the server can be told; imports no torch."""

from dataclasses import dataclass

from eval.serving_settings import ComputingSettings
from model.errors import UserError

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, kw_only=True)
class ServerSettings(ComputingSettings):
    """Which models are served, where, to whom, and how much of it."""

    model: tuple[str, ...]
    """model directories; clients name each by its folder's name"""
    host: str = "127.0.0.1"
    """address to listen at; by default only this machine reaches it, 0.0.0.0 lets all others, too"""
    port: int = 8000
    """port to listen at; 0 takes a free one"""
    key_file: str | None = None
    """file whose first line is the key that clients send (`Authorization: Bearer KEY`); by default all may
    ask"""
    allow_origins: tuple[str, ...] = ()
    """web pages of other origins that may ask (CORS), such as http://localhost:3000; * = all"""
    max_new_tokens: int = 256
    """most tokens of an answer where a request does not say"""
    temperature: float = 0.0
    """temperature where a request does not say; 0 takes the most probable token, as scripts.chat does"""
    batch_size: int = 16
    """answers of a model that are computed at a time; others wait"""
    max_requests: int = 256
    """answers that are computed or wait, over all models; who comes then is told to come again (429)"""
    max_prompt_tokens: int | None = None
    """longest prompt; by default what the model takes. A block is computed at once, so memory grows with its
    square"""
    max_body_kib: int = 1024
    """largest request"""
    body_seconds: float = 10.0
    """time for the head of a request to arrive, and for its body"""
    prefix_cache_mib: int = 256
    """memory of each model for states of earlier answers, which prompts that begin alike reuse; 0 = none"""
    shutdown_seconds: int = 30
    """time that answers get to end after SIGTERM or Ctrl-C"""

    def __post_init__(self) -> None:
        """Refuse what cannot be served."""
        lowest = {"max_new_tokens": 1, "batch_size": 1, "max_requests": 1, "max_prompt_tokens": 1}
        lowest |= {"max_body_kib": 1, "body_seconds": 0.1, "prefix_cache_mib": 0, "shutdown_seconds": 0}
        for name, low in ({"temperature": 0, "port": 0} | lowest).items():
            value = getattr(self, name)
            if value is not None and not value >= low:
                raise UserError(f"--{name}: expected at least {low}, got {value}")
        if self.port > 65535:
            raise UserError(f"--port: expected at most 65535, got {self.port}")

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the server."""
        return self.host in LOOPBACK
