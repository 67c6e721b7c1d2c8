"""The demo data of the ISIC Archive: awkward images by hand, or as many as wanted, made up when they are looked at."""

from __future__ import annotations

import datetime as dt
import random
from pathlib import Path

import msgspec

from pipeline.demo.isic_records import (
    Generated,
    IsicArchive,
    IsicCollection,
    IsicImage,
    Kind,
    Metadata,
    Saved,
    read_catalogue,
    save_catalogue,
)

# Images of each scale that is made up; their files are a few kB each.
COUNTS = {"many": 20_000, "listing": 500_000}
SCALES = ("small", *COUNTS)
START = dt.datetime(2014, 10, 9, 19, 36, 11, 989000, tzinfo=dt.UTC)

CHALLENGE, DERMOSCOPY, CLINIC, TILES, PRIVATE, EMPTY = 65, 212, 249, 328, 301, 302
COLLECTIONS = tuple(
    IsicCollection(id=number, name=name, created=START + dt.timedelta(days=30 * place), **flags)  # type: ignore[arg-type]
    for place, (number, name, flags) in enumerate(
        (
            (
                CHALLENGE,
                "Demo Challenge 2019: Training",
                {"pinned": True, "locked": True, "doi": "10.34970/100001", "description": "For *training*, made up."},
            ),
            (DERMOSCOPY, "Demo Dermoscopy", {"pinned": True, "description": "Overlaps the challenge."}),
            (CLINIC, "Demo Clinic, Ünïcode & more", {"doi": "10.34970/100002"}),
            (TILES, "Demo Tiles", {}),
            (PRIVATE, "Demo Private", {"public": False, "owner": "owner"}),
            (EMPTY, "Demo Empty", {}),
        )
    )
)
HOSPITAL = "Department of Dermatology, Demo Hospital"
# Of cohorts. The last one is what a spreadsheet takes for a formula.
ATTRIBUTIONS = (HOSPITAL, "Anonymous", 'Klinik "Süd", Wien; 100% déjà vu', "=Demo & Söhne <dermatology>")
LICENCES = ("CC-0", "CC-BY", "CC-BY-NC")
_MELANOMA = ("Malignant", "Malignant melanocytic proliferations (Melanoma)")
_NEVUS = ("Benign", "Benign melanocytic proliferations", "Nevus")
_CARCINOMA = ("Malignant", "Malignant epidermal proliferations", "Squamous cell carcinoma in situ")
DIAGNOSES: tuple[tuple[str, ...], ...] = (
    _NEVUS,
    (*_NEVUS, "Nevus, NOS, Dermal"),
    (*_MELANOMA, "Melanoma Invasive", "Melanoma Invasive, Superficial spreading"),
    (*_MELANOMA, "Melanoma in situ"),
    (*_CARCINOMA, "Squamous cell carcinoma in situ, Bowens disease"),
    ("Benign", "Benign epidermal proliferations", "Seborrheic keratosis"),
    ("Indeterminate", "Indeterminate epidermal proliferations", "Solar or actinic keratosis"),
    (),
)
SITES: tuple[tuple[str, ...], ...] = (
    ("Trunk", "Anterior trunk", "Anterior chest"),
    ("Head and neck", "Head", "Face", "Forehead"),
    ("Upper extremity",),
    ("Lower extremity", "Lower leg"),
    (),
)
_CONFIRMED = ("histopathology", "serial imaging showing no change", "single image expert consensus")
# ISIC numbers are not in the order of publication. The step has no factor in common with 10 million.
_SPACE, _STEP, _FIRST = 10_000_000, 6_180_339, 15_729
_BACK = pow(_STEP, -1, _SPACE)
SMALL = 60
# Images of `small` that tests ask for, by place.
NAMED = {
    "bare": 3,
    "unusual": 4,
    "two-attributions": 5,
    "tile": 6,
    "png": 20,
    "mosaic": 33,
    "large": 40,
    "private": 57,
    "private-lesion": 58,
}
TIED = range(10, 15)  # published at one time


class IsicDemo(msgspec.Struct, frozen=True):
    """What was built. `named`: ISIC ids of `small` that tests ask for, by the words of `NAMED`."""

    root: Path
    archive: IsicArchive
    named: dict[str, str]


def build_isic(root: Path, scale: str = "small") -> IsicDemo:
    """Write the catalogue of a demo ISIC below `root`, for `load_isic` and an `IsicSite`.

    `small` has 60 images of 10 to 300 kB with what is awkward about real ones: ties in time, several licences and
    attributions, several collections of one image, missing and unusual fields, PNG and TIFF, private images. `many`
    has 20,000 of a few kB, `listing` 500,000, made up when they are looked at. Same scale, same bytes.

    Raises
    ------
    KeyError
        When the scale is unknown.
    """
    if scale == "small":
        saved = Saved(scale=scale, collections=COLLECTIONS, images=tuple(map(_make_small, range(SMALL))))
    else:
        saved = Saved(scale=scale, collections=COLLECTIONS, generated=COUNTS[scale])
    save_catalogue(saved, root)
    named = {name: number_of(place) for name, place in NAMED.items()} if scale == "small" else {}
    return IsicDemo(root, load_isic(root), named)


def load_isic(root: Path) -> IsicArchive:
    """The archive that `build_isic` made below `root`; raises `ConfigError` when there is none."""
    saved = read_catalogue(root)
    if not saved.generated:
        return IsicArchive(saved.images, saved.collections, scale=saved.scale)
    return make_generated(saved.generated, saved.scale)


def make_generated(count: int, scale: str = "") -> IsicArchive:
    """An archive of so many made up images, in constant memory. At most 10 million."""

    def place_of(number: int) -> int | None:
        place = (number - _FIRST) * _BACK % _SPACE
        return place if place < count else None

    images = Generated(count, make_image, created=_created, collections=_collections)
    return IsicArchive(images, COLLECTIONS, place_of=place_of, scale=scale)


def number_of(place: int) -> str:
    """The ISIC id of the image at a place of the demo data."""
    return f"ISIC_{_number(place):07d}"


def _number(place: int) -> int:
    return (_FIRST + place * _STEP) % _SPACE


def _created(place: int) -> dt.datetime:
    """Minutes apart; of every thousand there are ten of one time, across the edge of a page of 100."""
    if 95 <= place % 1000 < 105:
        place -= place % 1000 - 95
    return START + dt.timedelta(minutes=place, microseconds=place % 3 * 1234)


def _mix(place: int) -> int:
    """Bits that depend on a place, from which its image is made up."""
    return place * 2_654_435_761 % 2**32


def _collections(place: int) -> tuple[int, ...]:
    member = (CHALLENGE,) if place % 20 < 1 else (DERMOSCOPY,) if place % 20 < 3 else ()
    return (*member, TILES) if (_mix(place) >> 15) % 4 and place % 3 else member


def make_image(place: int) -> IsicImage:
    """The made up image at a place: a small JPEG, one of few pictures, with its own words in it. Pure."""
    mix = _mix(place)
    diagnosis, site = DIAGNOSES[mix % 8], SITES[(mix >> 3) % 5]
    clinical: Metadata = {f"diagnosis_{level}": word for level, word in enumerate(diagnosis, 1)}
    for level, word in enumerate(site, 1):
        clinical[f"anatom_site_{level}"] = word
    if (mix >> 6) % 8:
        clinical["sex"] = "male" if mix >> 9 & 1 else "female"
        clinical["age_approx"] = (mix >> 10) % 18 * 5
    if (mix >> 15) % 4:
        acquisition: Metadata = {"image_type": "TBP tile: close-up"}
        clinical["tbp_tile_type"] = "3D: white"
        clinical["clin_size_long_diam_mm"] = f"{(mix >> 17) % 1500 / 100:.2f}"
    else:
        acquisition = {"image_type": "dermoscopic", "dermoscopic_type": "contact polarized"}
    if place % 10 < 4:
        clinical["lesion_id"] = f"IL_{place // 10 * 2 + place % 10 // 2:07d}"
    clinical["patient_id"] = f"IP_{place // 20:07d}"
    return IsicImage(
        number=_number(place),
        created=_created(place),
        licence=LICENCES[(mix >> 20) % 3],
        attribution=ATTRIBUTIONS[place // 1000 % 4],
        width=96 + 16 * (mix >> 24 & 3),
        height=96 + 16 * (mix >> 26 & 3),
        detail=6,
        seed=mix >> 28 & 1,
        acquisition=acquisition,
        clinical=clinical,
        collections=_collections(place),
    )


def _make_small(place: int) -> IsicImage:
    chance = random.Random(f"isic {place}")  # noqa: S311 - the same each time
    width, height = chance.choice(((600, 450), (640, 480), (1024, 768), (450, 600), (400, 400)))
    kind: Kind = "jpg"
    if place == NAMED["png"]:
        kind, width, height = "png", 200, 150
    elif place == NAMED["mosaic"]:
        kind, width, height = "tif", 600, 500
    elif place == NAMED["large"]:
        width, height = 1024, 900
    elif place == NAMED["tile"]:
        width, height = 121, 133
    acquisition, clinical = _describe_small(place, chance)
    groups = ((CHALLENGE, range(30)), (DERMOSCOPY, range(15, 45)), (CLINIC, range(25, 55)), (PRIVATE, range(54, SMALL)))
    return IsicImage(
        number=_number(place),
        created=START + dt.timedelta(days=min(TIED) if place in TIED else place, microseconds=place % 2 * 5000),
        licence=chance.choice(LICENCES) if place != NAMED["bare"] else "CC-0",
        attribution=ATTRIBUTIONS[place // 4 % 4],
        own_attribution="Demo Contributor, on their own" if place == NAMED["two-attributions"] else "",
        kind=kind,
        width=width,
        height=height,
        detail=26 if place == NAMED["large"] else 40 if place == NAMED["tile"] else chance.randint(2, 14),
        seed=place,
        acquisition=acquisition,
        clinical=clinical,
        collections=tuple(number for number, places in groups if place in places),
        public=place < 56,
        owner="owner",
    )


def _describe_small(place: int, chance: random.Random) -> tuple[Metadata, Metadata]:
    """Metadata of an image of `small`: acquisition and clinical."""
    if place == NAMED["bare"]:
        return {}, {}
    acquisition: Metadata = {"image_type": "dermoscopic", "dermoscopic_type": "contact non-polarized"}
    if place == NAMED["png"]:
        acquisition = {"image_type": "RCM: tile"}
    elif place == NAMED["mosaic"]:
        acquisition = {"image_type": "RCM: mosaic"}
    elif place == NAMED["tile"]:
        acquisition = {"image_type": "TBP tile: close-up"}
    elif place % 7 == 5:
        acquisition = {"image_type": "clinical: close-up"}
    diagnosis = chance.choice(DIAGNOSES)
    clinical: Metadata = {f"diagnosis_{level}": word for level, word in enumerate(diagnosis, 1)}
    clinical |= {f"anatom_site_{level}": word for level, word in enumerate(chance.choice(SITES), 1)}
    if chance.random() < 0.8:
        clinical |= {"sex": chance.choice(("male", "female")), "age_approx": chance.randrange(0, 90, 5)}
    if chance.random() < 0.5:
        clinical["clin_size_long_diam_mm"] = f"{chance.uniform(1, 30):.2f}"
    if diagnosis:
        confirmed = "histopathology" if diagnosis[0] == "Malignant" else chance.choice(_CONFIRMED)
        clinical["diagnosis_confirm_type"] = confirmed
        clinical["concomitant_biopsy"] = confirmed == "histopathology"
        clinical["melanocytic"] = "melanocytic" in diagnosis[1]
    if "Melanoma Invasive" in diagnosis:
        clinical |= {"mel_thick_mm": "0.55", "mel_mitotic_index": "<1/mm^2", "mel_ulcer": False}
    if place == NAMED["tile"]:
        clinical["tbp_tile_type"] = "3D: XP"
    if place in (NAMED["png"], NAMED["mosaic"]):
        clinical["rcm_case_id"] = "IRCM_0000001"
    if place % 3 == 0:
        # Three places apart each; the last pair has a public image and a private one.
        clinical["lesion_id"] = f"IL_{7_000_000 + place // 6:07d}"
        clinical["acquisition_day"] = place % 2 * 90
    clinical["patient_id"] = f"IP_{1_000_000 + place // 6:07d}"
    if place in (NAMED["private"] - 2, NAMED["private-lesion"]):
        clinical |= {"lesion_id": "IL_7000099", "acquisition_day": 1, "patient_id": "IP_1000099"}
    if place == NAMED["unusual"]:
        acquisition |= {"image_manipulation": "altered", "demo_lens": ["macro", "50 mm"]}
        clinical |= {"fitzpatrick_skin_type": "VI", "demo_note": 'a\ttab, a "quote" and\na line', "demo_score": 0.25}
        clinical |= {"family_hx_mm": True, "personal_hx_mm": False, "anatom_site_special": "acral palms or soles"}
    return acquisition, clinical
