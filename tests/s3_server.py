"""An S3 server and an HTTP server on loopback, with faults on demand."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "pictures"
KEYS = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}

Fault = Callable[[bytes], bytes]
"""What becomes of the body of an answer."""


class QuietHandler(WSGIRequestHandler):
    """Writes no log."""

    def log(self, *args: object) -> None:
        """Say nothing."""


@dataclass
class FaultyServer:
    """Hands requests on, unless a fault is set for them."""

    application: Callable[..., Iterable[bytes]]
    address: str = ""
    requests: list[str] = field(default_factory=list)
    """Method and path of each, in order."""
    refused: dict[str, int] = field(default_factory=dict)
    """Requests that begin with this fail, so many times: the connection is cut."""
    spoilt: dict[str, list[Fault]] = field(default_factory=dict)
    """Answers to requests that end with this are changed, by the faults in turn."""

    answered: dict[str, list[int]] = field(default_factory=dict)
    """Requests that hold these words are answered with an error, by the statuses in turn."""

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        request = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
        self.requests.append(request)
        for part, times in list(self.refused.items()):
            if times and all(word in request for word in part.split()):
                self.refused[part] -= 1
                environ["wsgi.input"].read(min(1000, int(environ.get("CONTENT_LENGTH") or 0)))
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
                raise ConnectionError("cut")
        for part, statuses in list(self.answered.items()):
            if statuses and all(word in request for word in part.split()):
                return _error(statuses.pop(0), environ, start_response)
        for part, faults in list(self.spoilt.items()):
            if faults and all(word in request for word in part.split()):
                return self._spoilt(faults.pop(0), environ, start_response)
        return self.application(environ, start_response)

    def _spoilt(
        self, fault: Fault, environ: dict[str, Any], start_response: Any
    ) -> Iterable[bytes]:
        """Answer with the right headers and another body."""
        body = fault(b"".join(self.application(environ, start_response)))
        return [body]

    def counted(self, method: str, ending: str) -> int:
        """Return how many requests there were."""
        return sum(r.startswith(method) and r.endswith(ending) for r in self.requests)


def _error(status: int, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Answer as S3 does when it refuses, or is busy; another server's clients read the status."""
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    reason = {401: "Unauthorized", 403: "AccessDenied", 503: "SlowDown"}.get(
        status, "InternalError"
    )
    body = f"<Error><Code>{reason}</Code><Message>{reason} here</Message></Error>".encode()
    kind, length = ("Content-Type", "application/xml"), ("Content-Length", str(len(body)))
    start_response(f"{status} {reason}", [kind, length])
    return [body]


@contextmanager
def served(application: Callable[..., Iterable[bytes]]) -> Iterator[FaultyServer]:
    """Serve an application on loopback."""
    faulty = FaultyServer(application)
    server = make_server("127.0.0.1", 0, faulty, threaded=True, request_handler=QuietHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    faulty.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield faulty
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def s3_served() -> Iterator[FaultyServer]:
    """Serve S3 with one empty bucket."""
    with served(DomainDispatcherApplication(create_backend_app)) as server:
        client(server).create_bucket(Bucket=BUCKET)
        yield server


def client(server: FaultyServer) -> Any:
    """Return boto3's client of a server."""
    return boto3.client("s3", endpoint_url=server.address, region_name="us-east-1", **KEYS)


def folder_application(folder: Path) -> Callable[..., Iterable[bytes]]:
    """Return an application that hands out the files of a folder, as a plain web server does."""

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        file = folder / environ["PATH_INFO"].lstrip("/")
        if not file.is_file():
            start_response("404 Not Found", [("Content-Length", "0")])
            return [b""]
        start_response("200 OK", [("Content-Length", str(file.stat().st_size))])
        return [file.read_bytes()]

    return answer
