"""Two hubs on loopback that speak what the clients of Hugging Face and ModelScope ask for."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest
from fake_repository import COMMIT, RefusedError, Repositories

REVISIONS = ("main", "master", COMMIT)
LARGE = (".safetensors", ".model", ".tar")
"""Endings of files in large-file storage: told by SHA-256, served after a redirect."""


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_name(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(kw_only=True)
class Fault:
    """How the hub misbehaves towards requests whose address contains a piece of text."""

    kind: str
    """status, short (a shorter body, properly announced), broken (cut off), corrupt, stall, hang
    (stalls when half is there), endless (goes on behind its end, which is not announced)."""
    status: int = 0
    code: str = ""
    """Hugging Face's X-Error-Code."""
    where: str = ""
    times: int = 10_000
    method: str = "GET HEAD"


@dataclass(kw_only=True)
class FakeHub:
    files: dict[str, bytes] = field(default_factory=dict)
    """Content by owner/name/path."""
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    """Logins that came with requests to the hub itself."""
    storage_tokens: set[str] = field(default_factory=set)
    """Logins that came with requests to where its large files lie."""
    url: str = ""
    pieces_behind_the_end: int = 0
    """Sent of files without end, each of 64 KiB, a gigabyte at most."""
    released: threading.Event = field(default_factory=threading.Event)
    """Ends what stalls."""

    @cached_property
    def repositories(self) -> Repositories:
        """The same files as repositories of datasets, which can be listed and committed to."""
        return Repositories(files=self.files, url=self.url, large=LARGE)

    def add(self, repo: str, folder: str, path: Path) -> None:
        """Publish the files of a folder in a folder of a repository."""
        for file in path.iterdir():
            self.files["/".join(filter(None, (repo, folder, file.name)))] = file.read_bytes()

    def fails(self, kind: str, status: int = 0, **fields: object) -> None:
        self.faults.append(Fault(kind=kind, status=status, **fields))

    def asked_for(self, piece: str, method: str = "GET") -> int:
        return sum(piece in line and line.startswith(method) for line in self.requests)

    def first_bytes_asked_for(self, piece: str) -> list[int]:
        """Where the transfers of a file began: 0 for one from its beginning."""
        gets = [line for line in self.requests if piece in line and line.startswith("GET")]
        ranges = [re.search(r"bytes=(\d+)-", line) for line in gets]
        return [int(found[1]) if found else 0 for found in ranges]

    def fault_for(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.where in path and method in fault.method.split() and fault.times > 0:
                fault.times -= 1
                return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path = unquote(self.path)
        self.hub.requests.append(f"{self.command} {path} {self.headers.get('Range', '')}")
        tokens = self.hub.storage_tokens if path.startswith("/storage/") else self.hub.tokens
        tokens.add(self.headers.get("Authorization", "none"))
        fault = self.hub.fault_for(self.command, path)
        if fault and fault.kind == "status":
            self._refuse(fault.status, fault.code)
        else:
            self._route(fault)

    def _route(self, fault: Fault | None) -> None:
        raise NotImplementedError

    def _refuse(self, status: int, code: str = "", body: bytes = b"{}") -> None:
        headers = {"X-Error-Code": code} if code else {}
        if code == "EntryNotFound":
            headers["X-Repo-Commit"] = COMMIT
        self._answer(status, body, headers)

    def _content(self, content: bytes, headers: dict[str, str], fault: Fault | None) -> None:
        """Send a file, or the part of it that is asked for, as the fault has it."""
        kind = fault.kind if fault else ""
        status = 200
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(wanted[1])
            headers |= {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            content, status = content[start:], 206
        if self.command == "HEAD":
            kind = ""
        if kind == "corrupt":
            content = bytes([content[0] ^ 1]) + content[1:]
        if kind == "short":
            content = content[: len(content) // 2]
        self._answer(status, content, headers, kind)

    def _json(self, said: object) -> None:
        self._answer(200, json.dumps(said).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str], kind: str = "") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if kind != "endless":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if kind in ("stall", "hang"):
            self.wfile.write(body[: len(body) // 2] if kind == "hang" else b"")
            self.wfile.flush()
            self.hub.released.wait(20)
            self.close_connection = True
        elif kind == "endless":
            self.close_connection = True
            with suppress(OSError):  # when the client has enough of it
                self.wfile.write(body)
                for _ in range(2**14):
                    self.wfile.write(bytes(2**16))
                    self.hub.pieces_behind_the_end += 1
        elif kind == "broken":
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        else:
            self.wfile.write(body)


class _HuggingFace(_Handler):
    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _route(self, fault: Fault | None) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        repositories = self.hub.repositories
        try:
            said = repositories.answer(path, urlsplit(self.path).query, body)
        except RefusedError as refused:
            return self._refuse(*refused.args)
        if said is not None:
            return self._json(said)
        if path.startswith("/storage/"):
            content = next(c for c in self.hub.files.values() if sha256(c) in path)
            return self._content(content, {"ETag": '"of-the-storage"'}, fault)
        resolved = re.fullmatch(r"/((?:datasets/)?[^/]+(?:/[^/]+)?)/resolve/([^/]+)/(.+)", path)
        if resolved is None:
            return self._refuse(404)
        repo, revision, file = resolved.groups()
        if not any(name.startswith(f"{repo}/") for name in self.hub.files):
            return self._refuse(401, "RepoNotFound")
        if revision not in REVISIONS:
            return self._refuse(404, "RevisionNotFound")
        content = self.hub.files.get(f"{repo}/{file}")
        if content is None:
            return self._refuse(404, "EntryNotFound")
        headers = {"X-Repo-Commit": COMMIT}
        # Of another host than the hub itself, as it is in life.
        storage = self.hub.url.replace("127.0.0.1", "localhost")
        if file.endswith(LARGE):
            headers |= {
                "X-Linked-Size": str(len(content)),
                "X-Linked-ETag": f'"{sha256(content)}"',
                "Location": f"{storage}/storage/{sha256(content)}/{quote(file)}",
            }
            return self._answer(302, b"", headers)
        return self._content(content, headers | {"ETag": f'"{git_name(content)}"'}, fault)


class _ModelScope(_Handler):
    def _route(self, fault: Fault | None) -> None:
        split = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(split.query).items()}
        named = re.fullmatch(r"/api/v1/models/([^/]+/[^/]+)/repo(/files)?", split.path)
        if named is None:
            return self._refuse(404)
        repo, listing = named.groups()
        if query.get("Revision") not in REVISIONS:
            return self._refuse(404)
        if listing:
            return self._list(repo)
        content = self.hub.files.get(f"{repo}/{query['FilePath']}")
        if content is None:
            message = json.dumps({"Code": 10010205001, "Message": "the file does not exist"})
            return self._refuse(404, body=message.encode())
        return self._content(content, {"X-Linked-ETag": sha256(content)}, fault)

    def _list(self, repo: str) -> None:
        files = [
            {
                "Path": name.removeprefix(f"{repo}/"),
                "Name": name.rsplit("/", 1)[-1],
                "Size": len(content),
                "Sha256": sha256(content),
                "Type": "blob",
            }
            for name, content in self.hub.files.items()
            if name.startswith(f"{repo}/")
        ]
        data = {"Files": files, "TotalCount": len(files)}
        self._json({"Code": 200, "Data": data, "Success": True})


@contextmanager
def _running(handler: type[_Handler]) -> Iterator[FakeHub]:
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Elsewhere(_Handler):
    """Stands for the rest of the world, as the proxy that leads there; it lets nobody through."""

    def do_CONNECT(self) -> None:
        self.hub.requests.append(f"CONNECT {self.path}")
        self._refuse(502)

    def _serve(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        self._refuse(502)


@dataclass(frozen=True, kw_only=True)
class Hubs:
    hugging_face: FakeHub
    modelscope: FakeHub
    environment: dict[str, str]
    """What leads a process of its own to these hubs."""


def unused_address() -> str:
    """An address on loopback where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@contextmanager
def running_hubs(folder: Path) -> Iterator[Hubs]:
    """Run both hubs, and make sure that nobody asks for anything elsewhere."""
    with (
        _running(_HuggingFace) as hugging_face,
        _running(_ModelScope) as modelscope,
        _running(_Elsewhere) as elsewhere,
    ):
        proxies = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        environment = {
            **dict.fromkeys((*proxies, *map(str.lower, proxies)), elsewhere.url),
            "HF_ENDPOINT": hugging_face.url,
            "HF_HOME": str(folder / "huggingface"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DOWNLOAD_TIMEOUT": "1",
            "HF_HUB_ETAG_TIMEOUT": "1",
            "MODELSCOPE_ENDPOINT": modelscope.url,
            "MODELSCOPE_CACHE": str(folder / "modelscope"),
            "MODELSCOPE_HOME": str(folder / "modelscope_home"),
            "MODELSCOPE_DOWNLOAD_TIMEOUT": "1",
            "MODELSCOPE_DOWNLOAD_MAX_RETRIES": "1",
            "ANIMA_PIPE_HOME": str(folder / "home"),
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }
        yield Hubs(hugging_face=hugging_face, modelscope=modelscope, environment=environment)
        assert elsewhere.requests == []


def lead_clients_to(hubs: Hubs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do to the clients of this process what the environment does to those of another.

    They read most of it once, when they are imported. Their pauses between retries are cut short.
    """
    import huggingface_hub.constants
    import modelscope_hub._download
    import modelscope_hub._download_control
    import modelscope_hub._legacy_api

    for name, value in hubs.environment.items():
        monkeypatch.setenv(name, value)
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", hubs.hugging_face.url)
    template = hubs.hugging_face.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", f"{hubs.environment['HF_HOME']}/hub")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.3)
    quick = SimpleNamespace(**{**vars(time), "sleep": lambda _: None})
    for module in (
        "huggingface_hub.utils._http",
        "huggingface_hub.file_download",
        "modelscope_hub._legacy_api",
        "anima_pipe.hub.hugging_face",
    ):
        monkeypatch.setattr(f"{module}.time", quick)
    monkeypatch.setattr("huggingface_hub.file_download._ETAG_RETRY_TIMEOUT", 0.3)
    monkeypatch.setattr(modelscope_hub._download, "DOWNLOAD_RETRY_TIMES", 1)
    monkeypatch.setattr(modelscope_hub._download, "DOWNLOAD_INTEGRITY_RETRY_BACKOFF", 0)
    monkeypatch.setattr(modelscope_hub._legacy_api, "DOWNLOAD_TIMEOUT", 0.3)
    huggingface_hub.close_session()


@contextmanager
def kept_to_loopback() -> Iterator[None]:
    """Refuse this process any connection to elsewhere, and fail the test that tried one."""
    tried: list[object] = []
    connect, resolve = socket.socket.connect, socket.getaddrinfo

    def check(host: object) -> None:
        if host not in ("127.0.0.1", "localhost", "::1", b"127.0.0.1", b"localhost"):
            tried.append(host)
            raise ConnectionRefusedError(f"a test reached for {host}")

    def connect_here(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple):
            check(address[0])
        connect(self, address)

    def resolve_here(host: object, *args: object, **named: object) -> object:
        check(host)
        return resolve(host, *args, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_here)
        patch.setattr(socket, "getaddrinfo", resolve_here)
        yield
    assert tried == []
