"""What a user of the demo ISIC Archive sees: which images a request means, and how they stand in JSON."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import threading
import uuid
from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from pipeline.demo.isic_bodies import Sizes, state_size, thumbnail_size
from pipeline.demo.isic_pages import Ordering
from pipeline.demo.isic_query import Engine, Judge, parse_query
from pipeline.demo.isic_records import NOBODY, Generated, IsicArchive, IsicImage, IsicUser

BUCKET, CONTENT = "isic-archive", "content"
_KEY = b"demo-isic-signing-key"
_SELECTIONS = 64  # kept at a time
_DAY = 86_400
Places = Sequence[int]
Signed = Literal["private", "all"]


class IsicView:
    """The archive as it stands now. Thread-safe.

    Attributes
    ----------
    published
        Images so far; those after it in the archive are still to come. May be raised meanwhile.
    url
        Of the site, for the URLs of files.
    sizes, signed
        See `IsicSite`.
    url_lifetime
        Seconds for which a new signed URL is good; 0: to midnight and 7 days more.
    clock
        Seconds since 1970, for signatures.
    """

    def __init__(
        self, archive: IsicArchive, clock: Callable[[], float], *, sizes: Sizes, signed: Signed, url_lifetime: float
    ) -> None:
        self.archive = archive
        self.clock = clock
        self.sizes: Sizes = sizes
        self.signed: Signed = signed
        self.url_lifetime = url_lifetime
        self.url = ""
        self.published = len(archive.images)
        self.withdrawn: frozenset[int] = frozenset()
        self._plain = isinstance(archive.images, Generated) or all(image.public for image in archive.images)
        self._kept: OrderedDict[object, Places] = OrderedDict()
        self._lesions: tuple[object, dict[str, list[int]]] | None = None
        self._lock = threading.Lock()

    @property
    def state(self) -> object:
        """Changes with what there is."""
        return self.published, self.withdrawn

    def sees(self, user: IsicUser, place: int) -> bool:
        """Whether a user sees an image at all."""
        if place >= self.published or place in self.withdrawn:
            return False
        if self._plain:
            return True
        image = self.archive.images[place]
        return user.sees(image.public, image.owner)

    def find(self, user: IsicUser, isic_id: str) -> IsicImage | None:
        """The image of a name, if the user sees it."""
        place = self.archive.find(isic_id)
        return self.archive.images[place] if place is not None and self.sees(user, place) else None

    def select(
        self, user: IsicUser, query: str = "", collections: frozenset[int] | None = None, engine: Engine = "database"
    ) -> Places:
        """Places of the images that a user sees and a request means, in order; raises as `parse_query`.

        Collections that the user does not see are left out without a word.
        """
        if collections is not None:
            known = self.archive.collections
            collections = frozenset(
                number
                for number in collections
                if number in known and user.sees(known[number].public, known[number].owner)
            )
        judge = parse_query(query, engine) if query else None
        if judge is None and collections is None and self._plain and not self.withdrawn:
            return range(self.published)
        key = (self.state, user.name, query, collections, engine)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        found = array("I", self._scan(user, judge, collections))
        with self._lock:
            self._kept[key] = found
            while len(self._kept) > _SELECTIONS:
                self._kept.popitem(last=False)
        return found

    def _scan(self, user: IsicUser, judge: Judge | None, collections: frozenset[int] | None) -> list[int]:
        return [
            place
            for place in range(self.published)
            if self.sees(user, place)
            and (collections is None or not collections.isdisjoint(self.archive.collections_of(place)))
            and (judge is None or judge(describe_fields(self.archive.images[place])))
        ]

    def lesions(self) -> dict[str, list[int]]:
        """Places of the images of each lesion, in the order of lesions' ids. Looks at all images the first time."""
        with self._lock:
            if self._lesions is None or self._lesions[0] != self.state:
                found: dict[str, list[int]] = {}
                for place in range(self.published):
                    lesion = self.archive.images[place].clinical.get("lesion_id")
                    if lesion and place not in self.withdrawn:
                        found.setdefault(str(lesion), []).append(place)
                self._lesions = self.state, dict(sorted(found.items()))
            return self._lesions[1]

    def sum_sizes(self, places: Places) -> int:
        """Bytes of images, as the site states them."""
        kinds: Sizes = "ingest" if self.sizes == "ingest" else "exact"
        return sum(state_size(self.archive.images[place], kinds) or 0 for place in places)

    def render_image(self, image: IsicImage) -> dict[str, Any]:
        """An image as JSON."""
        full, thumbnail = self.locate(image)
        return {
            "isic_id": image.isic_id,
            "copyright_license": image.licence,
            "attribution": image.attribution,
            "files": {
                "full": {"url": full, "size": state_size(image, self.sizes)},
                "thumbnail_256": {"url": thumbnail, "size": thumbnail_size(image.width, image.height, image.seed)},
            },
            "metadata": {
                "acquisition": {"pixels_x": image.width, "pixels_y": image.height, **image.acquisition},
                "clinical": image.clinical,
            },
            "public": image.public,
        }

    def locate(self, image: IsicImage) -> tuple[str, str]:
        """The URLs of an image's file and thumbnail; signed where it is not public."""
        if image.public and self.signed != "all":
            return f"{self.url}/{BUCKET}/{image.key}", f"{self.url}/{BUCKET}/{image.thumbnail_key}"
        folder = name_folder(image)
        return self._sign(f"{CONTENT}/{folder}/{image.isic_id}.{image.kind}"), self._sign(
            f"{CONTENT}/{folder}/{image.isic_id}_thumbnail.jpg"
        )

    def _sign(self, path: str) -> str:
        now = self.clock()
        expires = int(now + self.url_lifetime) if self.url_lifetime else int(now // _DAY * _DAY + 7 * _DAY)
        return f"{self.url}/{path}?Expires={expires}&Signature={make_signature(path, expires)}&Key-Pair-Id=KDEMO"

    def check_signature(self, path: str, query: Mapping[str, str]) -> bool:
        """Whether the query of a signed URL is good, and still so."""
        expires = query.get("Expires", "")
        if not (expires.isascii() and expires.isdigit() and len(expires) < 15):
            return False
        good = hmac.compare_digest(make_signature(path, int(expires)).encode(), query.get("Signature", "").encode())
        return good and self.clock() < int(expires)


def make_signature(path: str, expires: int) -> str:
    """The signature of a path, in letters as CloudFront has them. Pure."""
    digest = hmac.digest(_KEY, f"{path} {expires}".encode(), hashlib.sha256)
    return base64.b64encode(digest).decode().translate(str.maketrans("+=/", "-_~"))


def name_folder(image: IsicImage) -> str:
    """Where the file of an image lies that is not public. Pure."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"isic {image.isic_id}"))


def describe_fields(image: IsicImage) -> dict[str, Any]:
    """The fields of an image that a query can name. Pure."""
    return {
        "isic_id": image.isic_id,
        "public": image.public,
        "copyright_license": image.licence,
        **image.acquisition,
        **image.clinical,
    }


def order_images(archive: IsicArchive) -> Ordering:
    """Of places of images: by when they were published."""

    def parse(text: str) -> dt.datetime:
        moment = dt.datetime.fromisoformat(text)
        return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)

    return Ordering(archive.created, lambda place: str(archive.created(place)), parse)


_FACETS = (
    *("diagnosis_1", "diagnosis_2", "diagnosis_3", "diagnosis_4", "diagnosis_5", "anatom_site_1", "anatom_site_2"),
    *("sex", "age_approx", "image_type", "dermoscopic_type", "diagnosis_confirm_type", "melanocytic"),
    *("concomitant_biopsy", "fitzpatrick_skin_type", "copyright_license", "tbp_tile_type", "mel_mitotic_index"),
)


def count_facets(images: Sequence[IsicImage], places: Places) -> dict[str, Any]:
    """Aggregations of a search engine: values of fields and how many images have each, the ten most frequent. Pure."""
    counts: dict[str, Counter[Any]] = {name: Counter() for name in _FACETS}
    for place in places:
        fields = describe_fields(images[place])
        for name, counter in counts.items():
            if name in fields:
                counter[fields[name]] += 1
    return {
        name: {
            "doc_count_error_upper_bound": 0,
            "sum_other_doc_count": counter.total() - sum(number for _, number in counter.most_common(10)),
            "buckets": [
                {"key": int(key), "key_as_string": str(key).lower(), "doc_count": number}
                if isinstance(key, bool)
                else {"key": key, "doc_count": number}
                for key, number in counter.most_common(10)
            ],
        }
        for name, counter in counts.items()
    }


_TYPES = ("dermoscopic", "clinical: close-up", "TBP tile: close-up", "clinical: overview", "TBP tile: overview")


def render_lesion(view: IsicView, lesion_id: str, places: Sequence[int]) -> dict[str, Any]:
    """A lesion as JSON. Its index image: with a biopsy, then the earliest, then by type."""
    images = [view.archive.images[place] for place in places]

    def rank(image: IsicImage) -> tuple[Any, ...]:
        kind, day = image.acquisition.get("image_type"), image.clinical.get("acquisition_day")
        return (
            image.clinical.get("concomitant_biopsy") is not True,
            day is None,
            day or 0,
            _TYPES.index(kind) if isinstance(kind, str) and kind in _TYPES else len(_TYPES),
            image.isic_id,
        )

    index = min(images, key=rank)
    levels = [index.clinical[name] for n in range(1, 6) if (name := f"diagnosis_{n}") in index.clinical]
    return {
        "id": lesion_id,
        "images": [view.render_image(image) for image in images],
        "images_count": len(images),
        "longitudinally_monitored": len({image.clinical.get("acquisition_day") for image in images} - {None}) > 1,
        "index_image_id": index.isic_id,
        "outcome_diagnosis": ":".join(map(str, levels)) or None,
        "outcome_diagnosis_1": levels[0] if levels else None,
    }


__all__ = ["BUCKET", "CONTENT", "NOBODY", "IsicView"]
