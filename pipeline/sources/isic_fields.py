"""The metadata fields of an ISIC image: groups, types, values, which a search knows, and what older names became. Pure.

A field's column is `metadata.<group>.<name>`, as the API shapes an image. The vocabulary is that of isic-metadata
(https://github.com/ImageMarkup/isic-metadata) in 2026; the site adds and drops fields, so readers keep unknown ones.
"""

from __future__ import annotations

import difflib
from typing import Literal

import msgspec

from pipeline.errors import ConfigError

Kind = Literal["text", "int", "decimal", "bool"]
SQL_TYPES: dict[Kind, str] = {"text": "VARCHAR", "int": "BIGINT", "decimal": "DECIMAL(18,2)", "bool": "BOOLEAN"}


class Field(msgspec.Struct, frozen=True, kw_only=True):
    """A column of an image.

    Attributes
    ----------
    name
        In the search language and in the API's JSON.
    column
        In rows: `metadata.clinical.sex`, `files.full.size`.
    values
        All values that it can have, where they are few.
    searchable
        Whether the site's search knows it.
    """

    name: str
    column: str
    kind: Kind = "text"
    values: tuple[str, ...] = ()
    searchable: bool = True


class OldName(msgspec.Struct, frozen=True, kw_only=True):
    """A name that the site used before. `new` "": nothing has taken its place. `values`: old spellings of values."""

    new: str
    note: str
    values: dict[str, str] = {}


class Resolved(msgspec.Struct, frozen=True):
    """The field that a path means, what became of the path's old name if it is one, and a note for people."""

    field: Field
    old: OldName | None = None
    note: str = ""


def _acquisition(name: str, kind: Kind = "text", *values: str, searchable: bool = True) -> Field:
    return Field(name=name, column=f"metadata.acquisition.{name}", kind=kind, values=values, searchable=searchable)


def _clinical(name: str, kind: Kind = "text", *values: str, searchable: bool = True) -> Field:
    return Field(name=name, column=f"metadata.clinical.{name}", kind=kind, values=values, searchable=searchable)


LICENCES = ("CC-0", "CC-BY", "CC-BY-NC")
TOP = (
    Field(name="isic_id", column="isic_id"),
    Field(name="copyright_license", column="copyright_license", values=LICENCES),
    Field(name="attribution", column="attribution", searchable=False),
    Field(name="public", column="public", kind="bool"),
    Field(name="files.full.url", column="files.full.url", searchable=False),
    Field(name="files.full.size", column="files.full.size", kind="int", searchable=False),
    Field(name="files.thumbnail_256.url", column="files.thumbnail_256.url", searchable=False),
    Field(name="files.thumbnail_256.size", column="files.thumbnail_256.size", kind="int", searchable=False),
)
_CLOSE_UP, _OVERVIEW = "clinical: close-up", "clinical: overview"
_TYPES = ("TBP tile: close-up", "TBP tile: overview", "RCM: macroscopic", "RCM: tile", "RCM: mosaic")
_SITES = ("Head and neck", "Trunk", "Upper extremity", "Lower extremity", "Anogenital region")
_DIAGNOSES = ("Benign", "Indeterminate", "Malignant")
# blurry, hairy, marker_pen and color_tint: the search reads them, but the site has no such columns and may fail.
METADATA = (
    _acquisition("pixels_x", "int", searchable=False),
    _acquisition("pixels_y", "int", searchable=False),
    _acquisition("image_type", "text", "dermoscopic", _OVERVIEW, _CLOSE_UP, *_TYPES),
    _acquisition("dermoscopic_type", "text", "contact polarized", "contact non-polarized", "non-contact polarized"),
    _acquisition("image_manipulation", "text", "instrument only", "altered", "synthetic"),
    _acquisition("blurry", "bool", searchable=False),
    _acquisition("hairy", "bool", searchable=False),
    _acquisition("marker_pen", "bool", searchable=False),
    _acquisition("color_tint", "text", "blue", "pink", "none", searchable=False),
    _clinical("tbp_tile_type", "text", "3D: white", "3D: XP", "2D"),
    _clinical("age_approx", "int"),
    _clinical("sex", "text", "male", "female"),
    _clinical("fitzpatrick_skin_type", "text", "I", "II", "III", "IV", "V", "VI"),
    _clinical("anatom_site_1", "text", *_SITES),
    *(_clinical(f"anatom_site_{level}") for level in range(2, 6)),
    _clinical(
        "anatom_site_special",
        "text",
        *("acral NOS", "nail NOS", "fingernail", "toenail", "acral palms or soles", "oral or genital"),
    ),
    _clinical("diagnosis_1", "text", *_DIAGNOSES),
    *(_clinical(f"diagnosis_{level}") for level in range(2, 6)),
    _clinical(
        "diagnosis_confirm_type",
        "text",
        "histopathology",
        "serial imaging showing no change",
        "single image expert consensus",
        "confocal microscopy with consensus dermoscopy",
        "single contributor clinical assessment",
    ),
    _clinical("concomitant_biopsy", "bool"),
    _clinical("melanocytic", "bool"),
    _clinical("personal_hx_mm", "bool"),
    _clinical("family_hx_mm", "bool"),
    _clinical("clin_size_long_diam_mm", "decimal"),
    _clinical("mel_thick_mm", "decimal"),
    _clinical("mel_mitotic_index", "text", "0/mm^2", "<1/mm^2", "1/mm^2", "2/mm^2", "3/mm^2", "4/mm^2", ">4/mm^2"),
    _clinical("mel_ulcer", "bool"),
    _clinical("acquisition_day", "int", searchable=False),
    _clinical("patient_id"),
    _clinical("lesion_id"),
    _clinical("rcm_case_id"),
)
FIELDS: dict[str, Field] = {field.column: field for field in (*TOP, *METADATA)}
_BY_NAME = {field.name: field for field in FIELDS.values()}
_GONE = "the site has removed it, and nothing has taken its place"
_COLLECTIONS = "data sets are collections now: give `collections` the numbers of those you want"

OLD_NAMES: dict[str, OldName] = {
    "benign_malignant": OldName(
        new="diagnosis_1",
        note="removed in December 2024; diagnosis_1 has Benign, Malignant and Indeterminate",
        values={value.lower(): value for value in _DIAGNOSES},
    ),
    "diagnosis": OldName(
        new="diagnosis_3", note="removed in May 2025; the nearest is diagnosis_3, with other names of diagnoses"
    ),
    "anatom_site_general": OldName(
        new="anatom_site_1",
        note="removed in May 2026; the nearest are anatom_site_1 and anatom_site_2, with other names of sites",
    ),
    "image_type": OldName(
        new="image_type", note="its values have longer names now", values={"clinical": _CLOSE_UP, "overview": _OVERVIEW}
    ),
    "name": OldName(new="isic_id", note="an image's name is its isic_id now"),
    "license": OldName(new="copyright_license", note="the licence is that of each image now"),
    "pixelsX": OldName(new="pixels_x", note="spelled pixels_x now"),
    "pixelsY": OldName(new="pixels_y", note="spelled pixels_y now"),
    "pixelsx": OldName(new="pixels_x", note="spelled pixels_x now"),
    "pixelsy": OldName(new="pixels_y", note="spelled pixels_y now"),
    "age": OldName(new="age_approx", note="ages are given as age_approx, in steps of 5 years up to 85"),
    **{name: OldName(new="", note=_GONE) for name in ("nevus_type", "mel_class", "mel_type", "_modelType", "creator")},
    **{name: OldName(new="", note=f"{_GONE}; the cursor alone follows it") for name in ("created", "updated")},
    **{name: OldName(new="", note=f"{_GONE}; images have their isic_id") for name in ("_id", "image_id")},
    **{name: OldName(new="", note=_COLLECTIONS) for name in ("dataset", "dataset_id", "dataset_name", "tags")},
    **{name: OldName(new="", note=_COLLECTIONS) for name in ("collection", "collections")},
    **{
        name: OldName(new="", note="the site gives it to nobody through its API")
        for name in ("unstructured", "unstructuredExif", "private", "notes")
    },
}
# Beginnings of paths, the new ones and those of the API before 2022.
_GROUPS = (
    *("metadata.acquisition.", "metadata.clinical.", "meta.acquisition.", "meta.clinical.", "metadata.", "meta."),
    *("acquisition.", "clinical."),
)


def strip_group(path: str) -> str:
    """A path without the group that it begins with: `meta.clinical.sex` is `sex`."""
    for group in _GROUPS:
        if path.startswith(group) and len(path) > len(group):
            return path.removeprefix(group)
    return path


def resolve_path(path: str) -> Resolved:
    """Find the field that a path means: a column, a field's name, or what older APIs and modules called it.

    Raises
    ------
    ConfigError
        For an unknown path, with the nearest ones, and for an old one that nothing has taken the place of.
    """
    if path in FIELDS:
        return Resolved(field=FIELDS[path])
    name = strip_group(path)
    if name.startswith("dataset."):
        name = "license" if name == "dataset.license" else "dataset"
    name = name if name in OLD_NAMES or name in _BY_NAME else name.partition(".")[0]
    name = name if name in OLD_NAMES or name in _BY_NAME else strip_group(path)
    old = OLD_NAMES.get(name)
    if old and not old.new:
        raise ConfigError(f"{path}: {old.note}", hint=f"fields: {', '.join(_BY_NAME)}")
    if old and name != old.new:
        return Resolved(field=_BY_NAME[old.new], old=old, note=f"{path} is read as {old.new}: {old.note}")
    if name in _BY_NAME:
        return Resolved(field=_BY_NAME[name], old=old)
    names = [*_BY_NAME, *FIELDS]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6) or difflib.get_close_matches(path, names, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"fields: {', '.join(_BY_NAME)}"
    raise ConfigError(f"images have no field {path[:100]!r}", hint=hint)


def render_registry() -> list[tuple[str, str, str, str]]:
    """A table of all fields: column, type, whether a search knows it, values."""
    return [
        (field.column, field.kind, "yes" if field.searchable else "no", "; ".join(field.values))
        for field in FIELDS.values()
    ]
