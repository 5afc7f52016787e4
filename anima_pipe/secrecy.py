"""What is secret in addresses and texts, and how both are shown.

Secrets come in addresses (user:password@host, ?token=..., a presigned signature), in options and in
the environment. They are kept out of whatever a run says or leaves behind by one function,
`redacted`: messages, errors, logs, metadata, summaries and notes all pass it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import parse_qsl, unquote

HIDDEN: Final = "***"
"""Stands where a secret stood."""

SECRET_OPTIONS: Final = ("wandb_api_key", "huggingface_token")
"""Options whose values are secrets, whatever they look like."""

SHORTEST: Final = 8
"""Characters of the shortest text that is searched for as a secret: shorter ones are also words."""

CONTAINERS: Final = ("abfs", "abfss", "adl", "az", "wasb", "wasbs")
"""Azure's protocols, where a container stands before the `@`, and no user."""

_ADDRESS: Final = re.compile(
    r"(?P<protocol>[A-Za-z][A-Za-z0-9+.-]*)://"
    # What stands behind a colon and is no port is a password, whatever signs are in it.
    r"(?:(?P<user>[^/?#@:]*:(?!\d+(?:[/?#]|$))[^@]*|[^/?#@]*)@)?"
    r"(?P<host>[^/?#]*)(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?(?:#(?P<fragment>.*))?",
    re.DOTALL,
)
_IN_A_TEXT: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?:(?!::)[^\s'\"<>`)\]}\\])+")
_QUERY_ALONE: Final = re.compile(r"\?[^\s?'\"<>`)=]+=[^\s'\"<>`)]*")
_AUTHORIZATION: Final = re.compile(
    r"(?i)(authorization\W{1,5}(?:[a-z]+ )?|\bbearer )[\w.~+/=-]{8,}"
)
_HUB_TOKEN: Final = re.compile(r"\bhf_[A-Za-z0-9]{30,}")
_SECRET_NAME: Final = re.compile(
    r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|(?:API|ACCESS|SECRET)_KEY)$"
)

_kept: Final[set[str]] = set()
"""Secrets that this process was given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """The parts of an address; those that are not there are empty."""

    protocol: str
    user: str
    """What stands before the `@`: a user, a password, a token. Secret."""
    host: str
    """With its port, or with Azure's container."""
    path: str
    """With the slash that it begins with."""
    query: str
    """Without the question mark. Secret."""
    fragment: str
    """Without the `#`. Secret."""

    @property
    def place(self) -> str:
        """Protocol, host and path: what names the place, and may be shown and written down."""
        return f"{self.protocol}://{self.host}{self.path}"

    @property
    def opened(self) -> str:
        """What a server is asked for, but for the query: with the user."""
        return f"{self.protocol}://{self.user}{'@' if self.user else ''}{self.host}{self.path}"

    @property
    def is_open(self) -> bool:
        """Whether nothing in it is secret."""
        return not (self.user or self.query or "=" in self.fragment)


def parse_address(text: str) -> Address:
    """Return the parts of an address.

    Raises:
        ValueError: It is none.
    """
    first, *others = text.strip().split("::")
    match = _ADDRESS.fullmatch(first)
    if match is None:
        raise ValueError(f"{redacted(text)!r} is no address")
    parts = {name: part or "" for name, part in match.groupdict().items()}
    protocol, user = parts["protocol"], parts["user"]
    if protocol in ("file", "local"):
        # Of these, everything is a path.
        path = first.partition("://")[2]
        parts |= {"user": "", "host": "", "path": path, "query": "", "fragment": ""}
    elif protocol in CONTAINERS and user and ":" not in user:
        parts |= {"user": "", "host": f"{user}@{parts['host']}"}
    return _chained(Address(**parts), others)


def _chained(address: Address, further: list[str]) -> Address:
    """Return an address of fsspec's form `zip://a.zip::https://host/b` as one."""
    for number, piece in enumerate(further):
        if _ADDRESS.fullmatch(piece):
            behind = parse_address("::".join(further[number:]))
            return replace(
                address,
                # Between two addresses there may be a protocol alone, such as simplecache.
                path="::".join((address.path, *further[:number], behind.place)),
                user=address.user or behind.user,
                query=address.query or behind.query,
            )
    return address


def redacted(text: str) -> str:
    """Return a text as it may be shown and written down: without whatever is secret in it."""
    for secret in sorted({*_kept, *_in_environment()}, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    if "://" in text:
        text = _IN_A_TEXT.sub(lambda found: _redacted_address(found[0]), text)
    if "?" in text:
        text = _QUERY_ALONE.sub("?...", text)
    text = _AUTHORIZATION.sub(rf"\1{HIDDEN}", text)
    return _HUB_TOKEN.sub(HIDDEN, text)


def keep_secret(value: str) -> None:
    """Let `redacted` find a secret wherever it stands; texts shorter than `SHORTEST` it cannot."""
    _kept.update(form for form in (value, unquote(value)) if len(form) >= SHORTEST)


def keep_secrets_of(text: str) -> None:
    """Let `redacted` find the secrets of the addresses in a text also where they stand alone."""
    for secret in secrets_in(text):
        keep_secret(secret)


def secrets_in(text: str) -> Iterator[str]:
    """Yield what is secret in the addresses of a text: passwords, tokens, values of queries."""
    for found in _IN_A_TEXT.finditer(text):
        address = _parsed(found[0])
        if address is None:
            continue
        user, _, password = address.user.partition(":")
        yield password or user
        for part in (address.query, address.fragment):
            yield from (value for _, value in parse_qsl(part))
            # As they were written, too.
            yield from (pair.partition("=")[2] for pair in re.split("[&;]", part))


def _redacted_address(text: str) -> str:
    address = _parsed(text)
    if address is None or address.is_open:
        return text
    fragment = f"#{address.fragment}" if "=" not in address.fragment and address.fragment else ""
    return f"{address.place}{'?...' if address.query else ''}{fragment}"


def _parsed(text: str) -> Address | None:
    match = _ADDRESS.fullmatch(text)
    return parse_address(text) if match else None


def _in_environment() -> Iterator[str]:
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and _SECRET_NAME.search(name):
            yield value
