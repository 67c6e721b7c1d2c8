"""Objects of the demo site: keys in sorted order, with the hashes and dates that S3 gives with them."""

from __future__ import annotations

import bisect
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path

import msgspec

from pipeline.errors import StorageError

# Objects from 5 GB on can only be copied in parts, and so have ETags of the multipart form; 8 MiB is the usual part.
MULTIPART_FROM = 5_000_000_000
PART_SIZE = 8 << 20
MODIFIED = 1_735_689_600  # 2025-01-01, so that bytes alone decide what is served
# Bucket names of the same keys on AWS and on GCS (as idc-index maps them).
MIRROR_NAMES = {"idc-open-data-two": "idc-open-idc1", "idc-open-data-cr": "idc-open-cr"}
_CHUNK = 1 << 20


class StoredObject(msgspec.Struct, frozen=True, kw_only=True):
    """One object. Its bytes are `data`, or the file `path` when `data` is None. `etag` has no quotes."""

    key: str
    size: int
    etag: str
    md5: bytes
    sha256: bytes
    modified: int = MODIFIED
    data: bytes | None = None
    path: str = ""

    def read(self) -> bytes:
        """All its bytes."""
        return Path(self.path).read_bytes() if self.data is None else self.data

    @property
    def last_modified(self) -> str:
        """The date as HTTP writes it."""
        return formatdate(self.modified, usegmt=True)


class Bucket:
    """A bucket: objects by key, and the keys in the order of their UTF-8 bytes, as S3 lists them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.objects: dict[str, StoredObject] = {}
        self._keys: list[str] = []

    @property
    def keys(self) -> list[str]:
        """All keys in order. Code points sort as UTF-8 does."""
        if len(self._keys) != len(self.objects):
            self._keys = sorted(self.objects)
        return self._keys

    def put(self, key: str, content: bytes | Path, *, part_size: int = 0, modified: int = MODIFIED) -> StoredObject:
        """Store an object, from memory or as a file that stays where it is.

        `part_size` above 0 gives it the ETag of a multipart upload. Not to be called while a site serves the bucket.
        """
        item = make_object(key, content, part_size=part_size, modified=modified)
        if key not in self.objects:
            self._keys = []
        self.objects[key] = item
        return item

    def remove(self, key: str) -> None:
        """Remove an object; KeyError when there is none."""
        del self.objects[key]
        self._keys = []

    def keys_from(self, prefix: str, after: str) -> Iterator[str]:
        """Keys that begin with `prefix` and come after `after`, in order."""
        keys = self.keys
        start = max(bisect.bisect_left(keys, prefix), bisect.bisect_right(keys, after) if after else 0)
        for position in range(start, len(keys)):
            if not keys[position].startswith(prefix):
                return
            yield keys[position]


class Store:
    """All buckets of a site."""

    def __init__(self) -> None:
        self.buckets: dict[str, Bucket] = {}

    def bucket(self, name: str) -> Bucket:
        """The bucket of that name, made when there is none."""
        return self.buckets.setdefault(name, Bucket(name))

    def put(self, bucket: str, key: str, content: bytes | Path, *, part_size: int = 0) -> StoredObject:
        """Store an object; see `Bucket.put`."""
        return self.bucket(bucket).put(key, content, part_size=part_size)

    @classmethod
    def from_folder(cls, root: Path, *, multipart_from: int = MULTIPART_FROM, part_size: int = PART_SIZE) -> Store:
        """Read the folder layout `root/{bucket}/{key}`; hashes every file once.

        Files of `multipart_from` bytes or more get an ETag of the multipart form.

        Raises
        ------
        StorageError
            When `root` is not a folder or a file cannot be read.
        """
        store = cls()
        found: list[tuple[Bucket, str, Path]] = []
        try:
            for entry in sorted(root.iterdir()):
                if entry.is_dir():
                    found += [
                        (store.bucket(entry.name), path.relative_to(entry).as_posix(), path)
                        for path in _walk_files(entry)
                    ]

            def load(job: tuple[Bucket, str, Path]) -> StoredObject:
                _, key, path = job
                parts = part_size if path.stat().st_size >= multipart_from else 0
                return make_object(key, path, part_size=parts)

            with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
                for (bucket, key, _), item in zip(found, pool.map(load, found), strict=True):
                    bucket.objects[key] = item
        except OSError as error:
            raise StorageError(
                f"{root}: cannot serve it: {error.strerror}: {error.filename}",
                hint="name a folder that holds one folder for each bucket",
            ) from None
        return store


def make_object(key: str, content: bytes | Path, *, part_size: int = 0, modified: int = MODIFIED) -> StoredObject:
    """Hash the content and describe it as S3 would."""
    md5, sha256, parts = hashlib.md5(usedforsecurity=False), hashlib.sha256(), _Parts(part_size)
    size = 0
    for chunk in _chunks(content):
        size += len(chunk)
        md5.update(chunk)
        sha256.update(chunk)
        parts.update(chunk)
    return StoredObject(
        key=key,
        size=size,
        etag=parts.etag() if part_size else md5.hexdigest(),
        md5=md5.digest(),
        sha256=sha256.digest(),
        modified=modified,
        data=content if isinstance(content, bytes) else None,
        path="" if isinstance(content, bytes) else str(content),
    )


class _Parts:
    """MD5 of the concatenated MD5s of parts, and how many: the ETag that S3 gives multipart uploads."""

    def __init__(self, part_size: int) -> None:
        self._part_size = part_size
        self._digests: list[bytes] = []
        self._buffer = bytearray()

    def update(self, chunk: bytes) -> None:
        if not self._part_size:
            return
        self._buffer += chunk
        while len(self._buffer) >= self._part_size:
            self._close(self._part_size)

    def etag(self) -> str:
        if self._buffer or not self._digests:
            self._close(self._part_size)
        whole = hashlib.md5(b"".join(self._digests), usedforsecurity=False)
        return f"{whole.hexdigest()}-{len(self._digests)}"

    def _close(self, size: int) -> None:
        self._digests.append(hashlib.md5(self._buffer[:size], usedforsecurity=False).digest())
        del self._buffer[:size]


def _chunks(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _walk_files(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        for name in names:
            yield Path(folder, name)
