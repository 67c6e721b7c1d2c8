"""Images that are not public: signatures are asked for, end, and are told to nobody; and what lacks a token says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipeline.errors import CredentialsError, ItemError
from pipeline.model import Entry
from pipeline.sources.isic_body import list_files
from tests.images.image_bytes import jpeg
from tests.sources.isic_archive import NOT_FOUND, UNAUTHORIZED, image, said
from tests.sources.isic_kit import Bench, SearchArchive, make_item, serve, single
from tests.sources.test_tcia_http import Asked, _site, answer  # noqa: F401 -- the fixture

NAME = "ISIC_0000001"
FILE, SMALL = f"/images/{NAME}.jpg", f"/thumbnails/{NAME}_thumbnail.jpg"
DATA = jpeg(name=NAME)


@pytest.fixture(name="archive")
def _archive(site: Any) -> SearchArchive:
    """An empty archive."""
    return SearchArchive(site)


@pytest.fixture
def bench(archive: SearchArchive, tmp_path: Path) -> Iterator[Bench]:
    """A task's way to it."""
    made = Bench(archive, tmp_path)
    yield made
    made.close()


def item_of(bench: Bench, *paths: str, **facts: Any) -> Any:
    """An image whose files are at these paths of the site."""
    return make_item(bench.root, tuple(bench.archive.site.origin + path for path in paths or (FILE,)), **facts)


def refuse(bench: Bench, item: Any) -> ItemError:
    """The error that an image fails with; nothing of it is left on scratch."""
    with pytest.raises(ItemError) as caught:
        bench.haul(item)
    assert list(bench.folder.iterdir()) == []
    return caught.value


class Signed:
    """An image that is not public, at URLs with signatures that end; `good` is the one that storage takes."""

    def __init__(self, bench: Bench, *, token: str = "tok") -> None:
        self.bench, self.number = bench, 0
        self.good: set[str] = set()
        site = bench.archive.site
        bench.archive.good = {token}
        for path, data in ((FILE, DATA), (SMALL, jpeg(20, 15))):
            site.on(path, self.storage(data))
        self.api = f"/api/v2/images/{NAME}/"
        site.on(self.api, self.tell)
        site.on("/api/v2/users/me/", bench.archive.me)

    def storage(self, data: bytes) -> Any:
        def step(handler: Any, asked: Asked) -> None:
            good = asked.params.get("Signature") in self.good
            (serve(data) if good else answer(403, b"<Error><Code>AccessDenied</Code></Error>"))(handler, asked)

        return step

    def tell(self, handler: Any, asked: Asked) -> None:
        if not self.bench.archive.known(asked):
            NOT_FOUND(handler, asked)
            return
        self.number += 1
        self.good = {f"SECRET{self.number}"}
        record = image(1) | {"public": False}
        for name, path in (("full", FILE), ("thumbnail_256", SMALL)):
            url = f"{self.bench.archive.site.origin}{path}?Expires=9&Signature=SECRET{self.number}&Key-Pair-Id=K"
            record["files"][name]["url"] = url
        said(200, record)(handler, asked)

    def item(self) -> Any:
        return item_of(self.bench, f"{FILE}?", f"{SMALL}?", public=False)


def with_token(archive: SearchArchive, tmp_path: Path, token: str = "tok") -> Bench:
    """A bench with credentials."""
    path = tmp_path / "token"
    path.write_text(token)
    path.chmod(0o600)
    return Bench(archive, tmp_path, credentials=str(path))


def test_signatures_are_asked_for_once(archive: SearchArchive, tmp_path: Path) -> None:
    """An image and its thumbnail share one question; the token goes to the API alone, and no secret is told."""
    bench = with_token(archive, tmp_path)
    signed = Signed(bench)
    got = bench.haul(signed.item())
    assert [verified.file.name for verified in got] == [".jpg", ".thumbnail.jpg"]
    assert len(bench.asked(signed.api)) == 1
    for asked in archive.site.asked:
        assert ("authorization" in asked.headers) == asked.path.startswith("/api/v2/")
    told = json.dumps([*bench.events, *(msgspec.to_builtins(verified.file) for verified in got)])
    assert "SECRET" not in told
    assert "tok" not in told.replace("token", "")
    assert not any("SECRET" in body.cache_key for body in list_files(Entry(0, 0, 0, 1, signed.item())))
    bench.close()


def test_a_signature_that_is_over_is_asked_for_again(archive: SearchArchive, tmp_path: Path) -> None:
    """Once for the image, when storage refuses it; a refusal of a fresh one is final."""
    bench = with_token(archive, tmp_path)
    signed = Signed(bench)
    bench.haul(signed.item(), release=False)
    signed.good = set()
    assert len(bench.haul(signed.item(), release=False)) == 2
    assert len(bench.asked(signed.api)) == 2
    archive.site.on(FILE, answer(403, b"no"))
    with pytest.raises(ItemError) as caught:
        bench.haul(signed.item())
    assert (caught.value.reason, caught.value.transient) == ("forbidden", False)
    assert "SECRET" not in str(caught.value)
    archive.site.on(FILE, answer(404, b"no"))
    with pytest.raises(ItemError) as caught:
        bench.haul(signed.item())
    assert (caught.value.reason, caught.value.transient) == ("unavailable", True)
    bench.close()


def test_an_image_that_became_private(archive: SearchArchive, tmp_path: Path) -> None:
    """Its URL in the manifest is refused, and the API tells the one that is good now."""
    bench = with_token(archive, tmp_path)
    signed = Signed(bench)
    assert len(bench.haul(item_of(bench, FILE))) == 1
    assert len(bench.asked(signed.api)) == 1
    bench.close()


def test_without_a_token_a_private_image_is_forbidden_not_withdrawn(archive: SearchArchive, tmp_path: Path) -> None:
    """The API says of both that there is no such image."""
    bench = Bench(archive, tmp_path)
    error = refuse(bench, Signed(bench).item())
    assert (error.reason, "no credentials" in str(error)) == ("forbidden", True)
    bench.close()
    bench = with_token(archive, tmp_path, "expired")
    signed = Signed(bench)
    error = refuse(bench, signed.item())
    assert (error.reason, "log in again" in str(error)) == ("forbidden", True)
    assert refuse(bench, signed.item()).reason == "forbidden"
    assert len(bench.asked("/api/v2/users/me/")) == 1
    archive.site.on("/api/v2/users/me/", UNAUTHORIZED)
    bench.close()
    bench = with_token(archive, tmp_path)
    signed = Signed(bench)
    archive.site.on(signed.api, NOT_FOUND)
    assert refuse(bench, signed.item()).reason == "withdrawn"
    bench.close()


def test_the_token_goes_to_no_other_host(archive: SearchArchive, tmp_path: Path) -> None:
    """A manifest that names another API gets no credentials."""
    bench = with_token(archive, tmp_path)
    other = msgspec.structs.replace(
        item_of(bench),
        location=make_item(f"{archive.site.origin}/other/api/v2", ("http://127.0.0.1:1/x.jpg?",)).location,
    )
    archive.site.on(f"/other/api/v2/images/{NAME}/", NOT_FOUND)
    assert refuse(bench, other).reason == "withdrawn"
    assert "authorization" not in archive.site.asked[-1].headers
    bench.close()


def test_credentials_that_cannot_be_used(archive: SearchArchive, tmp_path: Path) -> None:
    """They end the task, not an image."""
    path = tmp_path / "token"
    path.write_text("tok")
    path.chmod(0o644)
    bench = Bench(archive, tmp_path, credentials=str(path))
    with pytest.raises(CredentialsError):
        bench.haul(item_of(bench))
    bench.close()


def test_the_demo_s_address_comes_from_the_settings(bench: Bench) -> None:
    """A manifest says `demo`, and paths: where they are now the API tells."""
    record = image(1)
    record["files"]["full"]["url"] = bench.archive.site.origin + FILE
    single(bench.archive, record)
    bench.archive.site.on(FILE, serve(DATA))
    (got,) = bench.haul(make_item("demo", (f"demo:{FILE}?",)))
    assert (got.file.key, got.file.route) == (FILE[1:], f"isic:{bench.archive.site.origin}")
