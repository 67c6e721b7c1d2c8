"""Bucket names of the NCI Imaging Data Commons on its two clouds. Pure.

Keys are the same on both. Source: https://learn.canceridc.dev/data/organization-of-data/files-and-metadata and
`idc_index.index.IDCClient`, which replaces the same two names.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# AWS name -> Google Cloud name, where they differ; `idc-open-data` is called the same on both.
GCS_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "idc-open-data-two": "idc-open-idc1",
        "idc-open-data-cr": "idc-open-cr",
    }
)


def mirror_bucket(bucket: str) -> str:
    """The Google Cloud name of an AWS bucket; a name that is not known to differ stays as it is."""
    return GCS_NAMES.get(bucket, bucket)
