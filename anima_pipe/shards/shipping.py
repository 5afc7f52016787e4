"""Uploading finished shards, each with its sidecar, while their writer goes on.

Writers of a mirrored cache write into its folder `outgoing`, as into any cache folder. A finished
shard is uploaded, then its sidecar: so whoever sees a sidecar finds the shard. Then both move into
the mirror. What could not be uploaded stays, and the next run begins with it.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from anima_pipe.errors import OutputError, PipeError
from anima_pipe.files import refusals_named
from anima_pipe.runtime import counted, say, warn
from anima_pipe.shards.folders import DESCRIPTION
from anima_pipe.shards.mended import MENDED, forget_mended, mended_sidecars
from anima_pipe.shards.mirror import Mirror, mirror_at
from anima_pipe.shards.sidecar import index_path, load_index
from anima_pipe.shards.unfinished import remove_abandoned


class Shipping:
    """Uploads one writer's shards in the background, one at a time.

    Args:
        mirror: Of the cache that is written.
    """

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._shards: dict[Path, Future[None]] = {}

    def describe(self, folder: Path) -> None:
        """Upload the description of an encoder's folder, also where it is there already.

        So whoever may not write there is told before anything is encoded.

        Raises:
            OutputError: It cannot be written.
        """
        place = f"{folder.name}/{DESCRIPTION}"
        self._mirror.remote.upload(folder / DESCRIPTION, place)

    def send(self, tar: Path) -> None:
        """Upload a finished shard as soon as those before it are."""
        self._shards[tar] = self._thread.submit(self._ship_or_warn, tar)

    def finish(self) -> None:
        """Wait until everything is uploaded, trying once more what failed.

        Raises:
            OutputError: Something could not be; it stays where it is for the next run.
        """
        self._thread.shutdown()
        failed = [tar for tar, upload in self._shards.items() if upload.exception()]
        for tar in failed:
            _ship(self._mirror, tar)
        if self._shards:
            self._mirror.remote.publish_manifest()

    def abandon(self) -> None:
        """Begin no further upload: the next run does it."""
        self._thread.shutdown(cancel_futures=True)

    def _ship_or_warn(self, tar: Path) -> None:
        try:
            _ship(self._mirror, tar)
        except PipeError as error:
            warn(f"{error.problem}; tried again at the end, and by the next run")
            raise


def send_pending(cache_dir: Path) -> None:
    """Upload what earlier runs have finished and could not upload; nothing for a plain folder.

    Then the list of files is completed, should its last writer have been killed before that.

    Raises:
        OutputError: It cannot be uploaded now either.
    """
    mirror = mirror_at(cache_dir)
    if mirror is None or mirror.remote.read_only:
        return
    if folder := mirror.remote.folder:
        for place in folder.glob("*-*"):
            remove_abandoned(place)
    pending = sorted(mirror.outgoing.glob("*/*.tar"))
    if not pending:
        _complete_manifest(mirror)
        return
    say(f"uploading {counted(len(pending), 'finished shard')} of earlier runs to {mirror.shown}")
    for tar in pending:
        _ship(mirror, tar)
    mirror.remote.publish_manifest()


def send_mended(cache_dir: Path) -> None:
    """Upload sidecars that were made anew because those at the address are wrong.

    Raises:
        OutputError: One cannot be uploaded; it is kept, and used here.
    """
    mirror = mirror_at(cache_dir)
    if mirror is None or mirror.remote.read_only or not (mirror.folder / MENDED).is_dir():
        return
    mended = list(mended_sidecars(mirror.folder, mirror.listed()))
    for sidecar in mended:
        mirror.remote.upload(sidecar, f"{sidecar.parent.name}/{sidecar.name}")
    if mended:
        say(f"uploaded {counted(len(mended), 'sidecar')} that had been wrong at {mirror.shown}")
        mirror.pull()
        mirror.remote.publish_manifest()
    forget_mended(mirror.folder)


def _complete_manifest(mirror: Mirror) -> None:
    try:
        mirror.remote.publish_manifest()
    except OutputError as error:
        # What is there can be read all the same, and perhaps it is not ours to write.
        warn(f"{error.problem}; only readers by http miss what it does not list yet")


def _ship(mirror: Mirror, tar: Path) -> None:
    """Upload one shard and then its sidecar, and move both into the mirror.

    Raises:
        OutputError: They could not be uploaded; they stay where they are.
    """
    folder, sidecar = tar.parent.name, index_path(tar)
    with mirror.locked(tar.name):
        if not tar.is_file():
            return  # another process has uploaded it
        load_index(tar, tar.stat().st_size)  # whoever was killed may have left it without one
        try:
            if not mirror.remote.has(f"{folder}/{DESCRIPTION}"):
                mirror.remote.upload(tar.with_name(DESCRIPTION), f"{folder}/{DESCRIPTION}")
            mirror.remote.upload(tar, f"{folder}/{tar.name}")
            mirror.remote.upload(sidecar, f"{folder}/{sidecar.name}")
        except PipeError as error:
            raise OutputError(
                f"{error.problem} (finished shards are kept in {mirror.outgoing})",
                "mend it and run the same command again: it uploads them, nothing is encoded twice",
            ) from error
        mirror.make_room(tar.stat().st_size)
        with refusals_named(mirror.folder):
            (mirror.folder / folder).mkdir(exist_ok=True)
            tar.replace(mirror.folder / folder / tar.name)
            sidecar.replace(mirror.folder / folder / sidecar.name)
