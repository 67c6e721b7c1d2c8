"""Real DICOM files that pydicom's own package holds, as series: no download, whatever is installed is there."""

from __future__ import annotations

import importlib.resources

import msgspec


class Sample(msgspec.Struct, frozen=True):
    """A series of pydicom's test files; all are whole, with UIDs that agree in file meta and data set."""

    name: str
    files: tuple[str, ...]


SAMPLES = (
    Sample("ct-native", ("CT_small.dcm",)),
    Sample("ct-j2k-lossless", ("J2K_pixelrep_mismatch.dcm",)),
    Sample("ct-slices", tuple(f"dicomdirtests/77654033/CT2/{n}" for n in (17106, 17136, 17166, 17196))),
    Sample("mr-jpeg-ls", ("MR_small_jpeg_ls_lossless.dcm",)),
    Sample("mr-slices", tuple(f"dicomdirtests/98892003/MR700/{n}" for n in (4467, 4528, 4558, 4588, 4618, 4648, 4678))),
    Sample("mr-overlay", ("examples_overlay.dcm",)),
    Sample("nm-jpeg-extended", ("JPGExtended.dcm",)),
    Sample("us-jpeg-frames", ("examples_ybr_color.dcm",)),
    Sample("us-palette", ("examples_palette.dcm",)),
    Sample("us-rgb-and-j2k", ("examples_rgb_color.dcm", "examples_jpeg2k.dcm")),
    Sample(
        "sc-mixed", ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_dcmtk_+eb+cr.dcm", "SC_rgb_gdcm_KY.dcm", "SC_rgb_small_odd.dcm")
    ),
    Sample("sc-deflated", ("image_dfl.dcm",)),
    Sample("rtdose-rle", ("rtdose_rle.dcm",)),
    Sample("seg-bits", ("liver_1frame.dcm",)),
    Sample("sr-report", ("test-SR.dcm",)),
    Sample("ecg-waveform", ("waveform_ecg.dcm",)),
)


def read_sample(name: str) -> list[bytes]:
    """The files of a sample, as they are. Raises KeyError for an unknown name."""
    sample = {sample.name: sample for sample in SAMPLES}[name]
    folder = importlib.resources.files("pydicom.data").joinpath("test_files")
    return [folder.joinpath(*file.split("/")).read_bytes() for file in sample.files]
