"""What a user names as a source of files: a repository, or a link into one."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from anima_pipe.errors import ConfigError

FILE_ENDINGS: Final = (".json", ".model", ".safetensors", ".txt", ".md", ".bin", ".gitattributes")
"""By these a link to a file is told from a link to a folder, where its form does not tell."""


class Hub(Enum):
    """A place that serves repositories, by the name that messages give it."""

    HUGGING_FACE = "Hugging Face"
    MODELSCOPE = "ModelScope"


DEFAULT_REVISIONS: Final = {Hub.HUGGING_FACE: "main", Hub.MODELSCOPE: "master"}

_HOSTS: Final = {
    "huggingface.co": Hub.HUGGING_FACE,
    "hf.co": Hub.HUGGING_FACE,
    "modelscope.cn": Hub.MODELSCOPE,
}
_REPOSITORY: Final = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_LINK_KINDS: Final = ("tree", "blob", "resolve", "raw")
_FILE_KINDS: Final = ("blob", "raw", "view")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A folder of a repository."""

    hub: Hub
    repo: str
    """owner/name."""
    revision: str | None = None
    """Branch, tag or commit; None: the hub's default branch."""
    folder: str | None = None
    """Within the repository, "" for its root; None: not said."""

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"{self.hub.value} {self.repo}{at}"

    @property
    def page(self) -> str:
        """Address of the repository's page, for a browser."""
        site = {
            Hub.HUGGING_FACE: "https://huggingface.co",
            Hub.MODELSCOPE: "https://modelscope.cn/models",
        }[self.hub]
        return f"{site}/{self.repo}"

    def filled(self, *, folder: str, revision: str | None = None) -> Source:
        """Return the source with what the user left open."""
        return replace(
            self,
            revision=self.revision or revision or DEFAULT_REVISIONS[self.hub],
            folder=folder.strip("/") if self.folder is None else self.folder,
        )


T5_SOURCES: Final = (
    Source(
        hub=Hub.HUGGING_FACE,
        repo="google/t5-v1_1-base",
        revision=DEFAULT_REVISIONS[Hub.HUGGING_FACE],
        folder="tokenizer",
    ),
    Source(
        hub=Hub.MODELSCOPE,
        repo="nv-community/Cosmos-Predict2-2B-Text2Image",
        revision=DEFAULT_REVISIONS[Hub.MODELSCOPE],
        folder="tokenizer",
    ),
)
"""Where the T5 tokenizer is published, in the order in which it is looked for."""


def parse_source(text: str, subject: str = "T5") -> Source:
    """Read a repository id, with or without @revision, or a link to a repository, folder or file.

    Args:
        text: owner/name, owner/name@revision, a Hugging Face URL or a ModelScope URL.
        subject: What is to be fetched, for messages.

    Raises:
        ConfigError: It is none of these.
    """
    text = text.strip()
    if not text:
        raise ConfigError(
            f"{subject} repo source cannot be empty.", "give a repository as owner/name, or its URL"
        )
    if "://" not in text and _host(text.split("/", 1)[0]) in _HOSTS:
        text = f"https://{text}"
    if "://" in text:
        return _parse_url(text, subject)
    source = _with_revision(Hub.HUGGING_FACE, text)
    if source is None:
        raise ConfigError(
            f"{text!r} is not a repository id for the {subject} source",
            "give owner/name or owner/name@revision, or a link to the repository; files on this "
            "machine are not fetched but named by their own options",
        )
    return source


def _parse_url(url: str, subject: str) -> Source:
    parts = urlsplit(url)
    hub = _HOSTS.get(_host(parts.netloc))
    if hub is None or parts.scheme not in ("http", "https"):
        raise ConfigError(
            f"Unsupported URL host for {subject} source: {url}",
            "give a URL of huggingface.co or modelscope.cn, or owner/name; mirrors are named by "
            "HF_ENDPOINT and MODELSCOPE_ENDPOINT in the environment",
        )
    read, name = {
        Hub.HUGGING_FACE: (_read_hugging_face, "HuggingFace"),
        Hub.MODELSCOPE: (_read_modelscope, "ModelScope"),
    }[hub]
    source = read(parts)
    if source is None or ".." in (source.folder or "").split("/"):
        raise ConfigError(
            f"Invalid {name} URL for {subject} source: {url}",
            "copy the address of the model's page, of a folder or of a file in it; datasets and "
            "spaces hold no models",
        )
    return source


def _read_hugging_face(url: SplitResult) -> Source | None:
    """owner/name[/tree|blob|resolve/revision[/path]]; old models have no owner."""
    steps = _steps(url.path)
    if not steps or steps[0] in ("datasets", "spaces", "api"):
        return None
    owned = 1 if len(steps) == 1 or steps[1] in _LINK_KINDS else 2
    source = _with_revision(Hub.HUGGING_FACE, "/".join(steps[:owned]))
    return source and _with_path(source, steps[owned:])


def _read_modelscope(url: SplitResult) -> Source | None:
    """models/owner/name, then as Hugging Face has it, or /file/view/..., or a query."""
    steps = _steps(url.path)
    if len(steps) < 3 or steps[0] != "models":
        return None
    source = _with_revision(Hub.MODELSCOPE, "/".join(steps[1:3]))
    if source is None:
        return None
    rest = steps[3:]
    if rest[:2] == ["file", "view"]:
        return _with_path(source, rest[1:])
    if rest not in ([], ["files"], ["summary"]):
        return _with_path(source, rest)
    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    path = _steps(query.get("FilePath", ""))
    return replace(
        source,
        revision=query.get("Revision") or source.revision,
        folder=_folder(path, is_file=False) if path else None,
    )


def _with_path(source: Source, steps: list[str]) -> Source | None:
    """Add what follows the repository in a link: its kind, the revision, the path."""
    if not steps:
        return source
    kind, *rest = steps
    if kind not in (*_LINK_KINDS, "view") or not rest:
        return None
    revision, *path = rest
    folder = _folder(path, is_file=kind in _FILE_KINDS) if path else None
    return replace(source, revision=revision, folder=folder)


def _with_revision(hub: Hub, text: str) -> Source | None:
    repo, _, revision = text.partition("@")
    if not _REPOSITORY.fullmatch(repo) or (hub is Hub.MODELSCOPE and "/" not in repo):
        return None
    return Source(hub=hub, repo=repo, revision=revision or None)


def _folder(path: list[str], *, is_file: bool) -> str:
    names_a_file = is_file or PurePosixPath(path[-1]).suffix in FILE_ENDINGS
    return "/".join(path[:-1] if names_a_file else path)


def _steps(path: str) -> list[str]:
    # Split before decoding: a revision such as refs/pr/1 comes as one step, refs%2Fpr%2F1.
    steps = [unquote(step) for step in path.split("/") if step]
    # ModelScope writes the slashes of a file's path as %2F too.
    return [*steps[:-1], *(part for part in steps[-1].split("/") if part)] if steps else []


def _host(netloc: str) -> str:
    return netloc.lower().removeprefix("www.")
