"""A dataset repository as the hub on loopback keeps it: listed, described, committed to."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class RefusedError(Exception):
    """An answer that is an error: its status, and Hugging Face's X-Error-Code."""


@dataclass(kw_only=True)
class Repositories:
    """Answers what is asked of dataset repositories, of which `files` holds the content."""

    files: MutableMapping[str, bytes]
    """By datasets/owner/name/path; shared with the hub that hands them out."""
    url: str
    large: tuple[str, ...]
    """Endings of files in large-file storage."""
    commits: list[list[str]] = field(default_factory=list)
    """What each changed."""
    _blobs: dict[str, bytes] = field(default_factory=dict)
    """What was uploaded to the large-file storage and perhaps not committed."""

    def answer(self, path: str, query: str, body: bytes) -> object | None:
        """Return what is to be said as JSON; None: this is not about such a repository.

        Raises:
            RefusedError: The answer is an error.
        """
        if stored := re.fullmatch(r"/uploads/([0-9a-f]{64})", path):
            assert hashlib.sha256(body).hexdigest() == stored[1]
            self._blobs[stored[1]] = body
            return {}
        if batch := re.fullmatch(r"/(datasets/[^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._batch(batch[1], json.loads(body))
        asked = re.fullmatch(r"/api/(datasets/[^/]+/[^/]+)(?:/([a-z-]+)/([^/]+))?(?:/(.+))?", path)
        if asked is None:
            return None
        repo, act, _, place = asked.groups()
        if not self._in(repo):
            raise RefusedError(401, "RepoNotFound")
        if act is None or act == "revision":
            return {"id": repo.removeprefix("datasets/"), "sha": COMMIT, "siblings": []}
        if act == "tree":
            return self._tree(repo, place or "", "recursive=true" in query.lower())
        if act == "paths-info":
            wanted = parse_qs(body.decode())["paths"]
            return [e for e in self._tree(repo, "", True) if e["path"] in wanted]
        if act == "preupload":
            return {"files": [self._mode(repo, file) for file in json.loads(body)["files"]]}
        if act != "commit":
            raise RefusedError(404)
        return self._commit(repo, [json.loads(line) for line in body.splitlines()])

    def _in(self, repo: str) -> dict[str, bytes]:
        start = f"{repo}/"
        return {n[len(start) :]: c for n, c in self.files.items() if n.startswith(start)}

    def _tree(self, repo: str, folder: str, recursive: bool) -> list[dict[str, Any]]:
        start = f"{folder}/" if folder else ""
        below = {n: c for n, c in self._in(repo).items() if n.startswith(start)}
        if folder and not below:
            raise RefusedError(404, "EntryNotFound")
        folders = {n[: n.index("/", at)] for n in below for at in _slashes(n, len(start))}
        found = [{"type": "directory", "path": f, "oid": "0" * 40, "size": 0} for f in folders]
        found += [self._entry(name, content) for name, content in below.items()]
        return [e for e in found if recursive or "/" not in str(e["path"])[len(start) :]]

    def _entry(self, name: str, content: bytes) -> dict[str, Any]:
        entry = {"type": "file", "path": name, "size": len(content), "oid": _git_name(content)}
        if name.endswith(self.large):
            oid = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 130}
        return entry

    def _mode(self, repo: str, file: dict[str, Any]) -> dict[str, Any]:
        content = self._in(repo).get(file["path"])
        mode = "lfs" if file["path"].endswith(self.large) else "regular"
        oid = {} if content is None else {"oid": _git_name(content)}
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **oid}

    def _batch(self, repo: str, asked: dict[str, Any]) -> dict[str, Any]:
        assert self._in(repo)
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.url}/uploads/{one['oid']}"}}}
            for one in asked["objects"]
        ]
        return {"transfer": "basic", "objects": objects}

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
        changed: list[str] = []
        for line in lines[1:]:
            place = f"{repo}/{line['value']['path']}"
            if line["key"] == "deletedFile":
                del self.files[place]
            elif line["key"] == "lfsFile":
                self.files[place] = self._blobs[line["value"]["oid"]]
            else:
                self.files[place] = base64.b64decode(line["value"]["content"])
            changed.append(line["value"]["path"])
        self.commits.append(changed)
        address = f"{self.url}/{repo}/commit/{COMMIT}"
        return {"commitUrl": address, "commitOid": COMMIT, "success": True}


def _slashes(name: str, start: int) -> list[int]:
    return [at for at, letter in enumerate(name) if letter == "/" and at >= start]


def _git_name(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
