"""What the demo ISIC Archive holds: images in the order of publication, collections, users and a study, as data."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import msgspec

from pipeline.errors import ConfigError

CATALOGUE = "isic_archive.json"
Kind = Literal["jpg", "png", "tif"]
Metadata = dict[str, str | int | bool | float | list[str] | None]


class IsicImage(msgspec.Struct, frozen=True, kw_only=True):
    """An image.

    Attributes
    ----------
    attribution
        Of its cohort, which the API gives.
    own_attribution
        Its own, which files and CSVs give; "": the same.
    detail, seed
        How its pixels are made: see `isic_pixels`.
    acquisition, clinical
        As the API gives them, without those that every image has; decimals are text.
    owner
        Who sees it though it is not public.
    """

    number: int
    created: dt.datetime
    licence: str
    attribution: str
    own_attribution: str = ""
    kind: Kind = "jpg"
    width: int
    height: int
    detail: int = 5
    seed: int = 0
    acquisition: Metadata = {}
    clinical: Metadata = {}
    collections: tuple[int, ...] = ()
    public: bool = True
    owner: str = ""

    @property
    def isic_id(self) -> str:
        """Its name, `ISIC_0000000`."""
        return f"ISIC_{self.number:07d}"

    @property
    def credit(self) -> str:
        """Whom files and CSVs name."""
        return self.own_attribution or self.attribution

    @property
    def key(self) -> str:
        """Of its file in the bucket."""
        return f"images/{self.isic_id}.{self.kind}"

    @property
    def thumbnail_key(self) -> str:
        """Of its thumbnail in the bucket."""
        return f"thumbnails/{self.isic_id}_thumbnail.jpg"


class IsicCollection(msgspec.Struct, frozen=True, kw_only=True):
    """A collection; which images are in it, they say themselves."""

    id: int
    name: str
    created: dt.datetime
    description: str = ""
    doi: str | None = None
    public: bool = True
    pinned: bool = False
    locked: bool = False
    owner: str = ""


class IsicUser(msgspec.Struct, frozen=True, kw_only=True):
    """An account; `staff` sees everything."""

    id: int
    name: str
    first_name: str = ""
    last_name: str = ""
    staff: bool = False
    accepted_terms: bool = True

    def sees(self, public: bool, owner: str) -> bool:
        """Whether something is for this user's eyes."""
        return public or self.staff or self.name == owner


NOBODY = IsicUser(id=0, name="")
USERS = (
    IsicUser(id=7, name="owner", first_name="Olive", last_name="Owner"),
    IsicUser(id=8, name="other", first_name="Otto", last_name="Other", accepted_terms=False),
    IsicUser(id=1, name="staff", first_name="Stella", last_name="Staff", staff=True),
)


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """A catalogue file. `generated`: how many images are made up by their place, in place of `images`."""

    scale: str
    collections: tuple[IsicCollection, ...] = ()
    images: tuple[IsicImage, ...] = ()
    generated: int = 0


class Generated(Sequence[IsicImage]):
    """Images that are made up when they are looked at, from their place in the list; two things without the rest."""

    def __init__(
        self,
        count: int,
        make: Callable[[int], IsicImage],
        *,
        created: Callable[[int], dt.datetime],
        collections: Callable[[int], tuple[int, ...]],
    ) -> None:
        self._count = count
        self._make = make
        self.created = created
        self.collections = collections

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> IsicImage: ...
    @overload
    def __getitem__(self, place: slice) -> list[IsicImage]: ...
    def __getitem__(self, place: int | slice) -> IsicImage | list[IsicImage]:
        if isinstance(place, slice):
            return [self._make(each) for each in range(*place.indices(self._count))]
        if not -self._count <= place < self._count:
            raise IndexError(place)
        return self._make(place % self._count)

    def __iter__(self) -> Iterator[IsicImage]:
        return (self._make(place) for place in range(self._count))


class IsicArchive:
    """Images, oldest first, and collections.

    Attributes
    ----------
    place_of
        The place of an image by its number; None for a number that none has.
    """

    def __init__(
        self,
        images: Sequence[IsicImage],
        collections: Sequence[IsicCollection] = (),
        *,
        place_of: Callable[[int], int | None] | None = None,
        scale: str = "",
    ) -> None:
        self.images = images
        self.collections: Mapping[int, IsicCollection] = {one.id: one for one in collections}
        self.scale = scale
        if place_of is None:
            places = {image.number: place for place, image in enumerate(images)}
            place_of = places.get
        self.place_of = place_of

    def created(self, place: int) -> dt.datetime:
        """When the image at a place was published."""
        images = self.images
        return images.created(place) if isinstance(images, Generated) else images[place].created

    def collections_of(self, place: int) -> tuple[int, ...]:
        """The collections that the image at a place is in."""
        images = self.images
        return images.collections(place) if isinstance(images, Generated) else images[place].collections

    def find(self, isic_id: str) -> int | None:
        """The place of an image by its name."""
        digits = isic_id.removeprefix("ISIC_")
        if len(isic_id) != 12 or len(digits) != 7 or not (digits.isascii() and digits.isdigit()):
            return None
        return self.place_of(int(digits))

    def image(self, isic_id: str) -> IsicImage:
        """An image by its name; KeyError when there is none."""
        place = self.find(isic_id)
        if place is None:
            raise KeyError(isic_id)
        return self.images[place]


def save_catalogue(saved: Saved, root: Path) -> None:
    """Write a catalogue below `root`."""
    root.mkdir(parents=True, exist_ok=True)
    (root / CATALOGUE).write_bytes(msgspec.json.encode(saved))


def read_catalogue(root: Path) -> Saved:
    """Read a catalogue; raises `ConfigError` when there is none, or another thing."""
    try:
        return msgspec.json.decode((root / CATALOGUE).read_bytes(), type=Saved)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"{root / CATALOGUE}: no catalogue of a demo ISIC: {error}", hint="build_isic makes one"
        ) from None


def render_time(moment: dt.datetime) -> str:
    """A moment as JSON has it: milliseconds and Z."""
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def render_collection(one: IsicCollection) -> dict[str, Any]:
    """A collection as JSON."""
    return {
        "doi": one.doi,
        "doi_url": f"https://doi.org/{one.doi}" if one.doi else None,
        "id": one.id,
        "name": one.name,
        "description": one.description,
        "public": one.public,
        "pinned": one.pinned,
        "locked": one.locked,
    }


def render_user(user: IsicUser) -> dict[str, Any]:
    """A user as JSON."""
    joined = dt.datetime(2019, 5, 6, 7, 8, 9, 123000, tzinfo=dt.UTC)
    return {
        "id": user.id,
        "email": f"{user.name}@demo.example",
        "first_name": user.first_name,
        "last_name": user.last_name,
        "created": render_time(joined),
        "accepted_terms": render_time(joined + dt.timedelta(days=1)) if user.accepted_terms else None,
        "hash_id": f"{user.name:A<5}"[:5].upper(),
        "full_name": f"{user.first_name} {user.last_name}",
    }
