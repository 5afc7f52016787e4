"""Google Cloud Storage's JSON interface on loopback, as much of it as gcsfs speaks."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

BUCKET = "pictures"


@dataclass
class CloudStorage:
    """An application with one bucket; `files` holds content by name."""

    files: dict[str, bytes] = field(default_factory=dict)
    generations: dict[str, int] = field(default_factory=dict)
    uploads: list[tuple[str, bytearray]] = field(default_factory=list)
    """Resumable ones: what the file will be called, and what has come."""
    address: str = ""

    def put(self, name: str, content: bytes) -> None:
        """Store a file, as its next generation."""
        self.files[name] = content
        self.generations[name] = self.generations.get(name, 0) + 1

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        query = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        status, headers, content = self._answer(environ, query, body)
        headers = {"Content-Length": str(len(content)), **headers}
        start_response(f"{status} whatever", list(headers.items()))
        return [content]

    def _answer(
        self, environ: dict[str, Any], query: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        place = re.fullmatch(r"(/upload|/download)?/storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?", path)
        if place is None or place[2] != BUCKET:
            return 404, {}, b"{}"
        way, _, name = place.groups()
        if way == "/upload":
            return self._upload(method, query, body, environ.get("HTTP_CONTENT_RANGE", ""))
        if name is None:
            return _json(self._listed(query.get("prefix", "")))
        if name not in self.files:
            return 404, {}, b"{}"
        if method == "DELETE":
            del self.files[name]
            return 204, {}, b""
        if way == "/download" or query.get("alt") == "media":
            return self._content(name, environ.get("HTTP_RANGE", ""))
        return _json(self._described(name))

    def _content(self, name: str, wanted: str) -> tuple[int, dict[str, str], bytes]:
        content = self.files[name]
        headers = {"X-Goog-Hash": f"md5={_md5(content)}"}
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
        if part is None:
            return 200, headers, content
        first, last = int(part[1]), min(int(part[2]), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return 206, headers, content[first : last + 1]

    def _upload(
        self, method: str, query: dict[str, str], body: bytes, part: str
    ) -> tuple[int, dict[str, str], bytes]:
        if method == "DELETE":
            return 499, {}, b""
        if "upload_id" in query:
            name, come = self.uploads[int(query["upload_id"])]
            come += body
            if len(come) < int(part.rpartition("/")[2]):
                return 308, {"Range": f"bytes=0-{len(come) - 1}"}, b""
            return self._stored(name, bytes(come))
        if query["uploadType"] == "resumable":
            self.uploads.append((query["name"], bytearray()))
            path = f"/upload/storage/v1/b/{BUCKET}/o?upload_id={len(self.uploads) - 1}"
            return 200, {"Location": self.address + path}, b""
        boundary = body[: body.index(b"\n")]
        described, content = body.removesuffix(boundary + b"--").split(boundary + b"\n")[1:3]
        name = json.loads(described.split(b"\n\n", 1)[1])["name"]
        return self._stored(name, content.split(b"\n\n", 1)[1].removesuffix(b"\n"))

    def _stored(self, name: str, content: bytes) -> tuple[int, dict[str, str], bytes]:
        self.put(name, content)
        return _json(self._described(name))

    def _listed(self, prefix: str) -> dict[str, Any]:
        names = sorted(name for name in self.files if name.startswith(prefix))
        return {"kind": "storage#objects", "items": [self._described(name) for name in names]}

    def _described(self, name: str) -> dict[str, Any]:
        content = self.files[name]
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": BUCKET,
            "size": str(len(content)),
            "md5Hash": _md5(content),
            "etag": f"{_md5(content)}/{self.generations[name]}",
            "generation": str(self.generations[name]),
            "contentType": "application/octet-stream",
            "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z",
        }


def _md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content).digest()).decode()


def _json(fields: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(fields).encode()
