"""Serves an OpenAI-compatible endpoint on this machine: a judge with known scores, to rehearse with at no cost."""

from dataclasses import dataclass
from typing import Any

from qurating_jax.config import option
from qurating_jax.judges.mock_options import MockOptions
from qurating_jax.runtime.errors import UserError
from qurating_jax.stage import InspectConfig

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, kw_only=True)
class Config(InspectConfig, MockOptions):
    """Options of `qurating judge mock-server`."""

    host: str = option("127.0.0.1", f"address to listen on: {', '.join(LOOPBACK)}")
    port: int = option(8000, "port to listen on; 0: a free one")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.host not in LOOPBACK:
            raise ValueError(f"host {self.host}: the mock server listens on this machine alone ({', '.join(LOOPBACK)})")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port {self.port}: 0..65535 expected")


def main(config: Config) -> dict[str, Any]:
    """Prints `listening on URL` when the server takes requests, and serves until Ctrl-C; returns its statistics."""
    try:
        from qurating_jax.judges import mock_server
    except ModuleNotFoundError as error:
        raise UserError(f"the mock server needs {error.name}: pip install 'qurating-jax[judge]'") from None

    return mock_server.serve(config, host=config.host, port=config.port, ready=_announce)


def _announce(url: str) -> None:
    print(f"listening on {url}", flush=True)
