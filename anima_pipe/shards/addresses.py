"""Addresses of caches: which are usable, what is said of them, and the file systems behind them.

The only module that imports fsspec. Credentials, endpoints and the like are set where each
protocol's package looks for them: in the environment, in its own files, in fsspec's configuration.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

from anima_pipe.errors import CacheError, ConfigError
from anima_pipe.secrecy import parse_address

PACKAGES: Final = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "http": "aiohttp",
    "https": "aiohttp",
    "hf": "huggingface_hub",
}
"""What a protocol needs beside fsspec."""

EXTRA: Final = "remote"
"""Of this package: what brings all of them."""

OBJECT_STORES: Final = ("s3", "s3a", "gs", "gcs", "hf", "az", "abfs", "abfss", "adl", "oss", "oci")
"""Storage where an upload is seen whole or not at all, and where folders need not be made: their
file systems would rather make a bucket by a wrong name."""

_SINGLE_FILE_SIGNATURES: Final = (
    {"x-amz-signature"},
    {"x-goog-signature"},
    {"signature", "awsaccesskeyid"},
    {"signature", "googleaccessid"},
)
"""Parameters of addresses that S3 and Google's storage sign for one file each, in lower case."""

_SILENCE_SECONDS: Final = 60
"""After which a transfer by http is given up; aiohttp by itself ends each after five minutes."""


def is_address(place: str | Path) -> bool:
    """Tell whether a place is an address and not a folder."""
    return isinstance(place, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", place) is not None


def protocol_of(url: str) -> str:
    """Return what stands before `://`."""
    return url.partition("://")[0]


def is_http(url: str) -> bool:
    """Tell whether an address is a web server's, which can be read and not be listed."""
    return protocol_of(url) in ("http", "https")


def split_query(url: str) -> tuple[str, str]:
    """Return an address without its query, and the query with its question mark, or nothing."""
    if not is_http(url):
        return url, ""
    address = parse_address(url)
    return address.opened.rstrip("/"), f"?{address.query}" if address.query else ""


def shown_address(url: str) -> str:
    """Return what names the place: an address without what is secret in it."""
    return parse_address(url).place.rstrip("/")


def checked_address(url: str) -> str:
    """Return an address in the form that is used here.

    Raises:
        ConfigError: No cache can lie there.
    """
    shown, address = shown_address(url), parse_address(url)
    if protocol_of(url) in OBJECT_STORES and address.query:
        raise ConfigError(
            f"cache_dir {shown} has a query (?...), which is part of web addresses only",
            "leave it out: credentials are set where the tools of the storage look for them",
        )
    given = {name.lower() for name in parse_qs(address.query, keep_blank_values=True)}
    if any(signature <= given for signature in _SINGLE_FILE_SIGNATURES):
        raise ConfigError(
            f"cache_dir {shown} is signed for one file, and a cache has many",
            "use s3:// or gs:// with credentials, or let a server sign for all files under it",
        )
    if address.fragment and is_http(url):
        raise ConfigError(
            f"cache_dir {shown} has a #, which no server is ever told",
            "leave out what follows it, or write %23 where it is part of a name",
        )
    base, query = split_query(url.strip())
    return base.rstrip("/") + query


@lru_cache(maxsize=8)
def filesystem(url: str, process: int) -> tuple[Any, str]:
    """Return fsspec's file system for an address, and the address as a path in it.

    Args:
        url: Without a query.
        process: The process that asks: what a fork inherits of connections cannot be used.

    Raises:
        CacheError: The protocol is unknown, or its package is not installed.
    """
    del process
    import fsspec

    protocol = protocol_of(url)
    try:
        options = _web_options() if is_http(url) else {}
        return fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        package = PACKAGES.get(protocol, f"the package that fsspec names: {error}")
        raise CacheError(
            f"{shown_address(url)}: {protocol}:// needs {package}, which is not installed",
            f"pip install 'anima-pipe[{EXTRA}]', or only {package}"
            if protocol in PACKAGES
            else "install it",
        ) from error
    except ValueError as error:
        raise CacheError(
            f"{shown_address(url)}: {error}",
            f"use a folder, or one of {', '.join(f'{p}://' for p in PACKAGES)}",
        ) from error


def _web_options() -> dict[str, Any]:
    """Return how fsspec is to speak http, unless its own configuration says so."""
    import aiohttp
    from fsspec.config import conf

    told = conf.get("http", {}).get("client_kwargs")
    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=_SILENCE_SECONDS, sock_read=_SILENCE_SECONDS
    )
    # trust_env: proxies, and ~/.netrc for servers that want a password.
    return {"client_kwargs": told or {"timeout": timeout, "trust_env": True}}
