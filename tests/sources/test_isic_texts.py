"""Texts of images in records: whole, but for what signs URLs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sources.isic_rows import read_image
from pipeline.sources.isic_table import image_row, plain_text
from tests.sources.isic_archive import image

SIGNED = "https://h/p.jpg?Expires=1&Signature=SECRET&Key-Pair-Id=K"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("https://example.org/lab?id=5 - Prof. M\u00fcller, University of X", None),
        ("https://example.org/#people, X", None),
        ("what? no URL", None),
        ("Who? Expires never = always", None),
        ("https://h/p.jpg?x=1", None),
        (7, None),
        (None, None),
        (SIGNED, "https://h/p.jpg"),
        (
            f"see {SIGNED} and {SIGNED}, or https://h/q?id=5",
            "see https://h/p.jpg and https://h/p.jpg, or https://h/q?id=5",
        ),
        (f'[{{"url": "{SIGNED}", "n": 1}}]', '[{"url": "https://h/p.jpg", "n": 1}]'),
        (f'["{{\\"u\\": \\"{SIGNED}\\"}}"]', '["{\\"u\\": \\"https://h/p.jpg\\"}"]'),
        ("//h/p?X-Amz-Signature=SECRET", "//h/p"),
        ("p?x=1&x-amz-credential=SECRET", "p"),
        ("https://h/p?expires=1&sig=SECRET", "https://h/p"),
        ("https://h/p?to=https%3A%2F%2Fh%3FSignature%3DSECRET", "https://h/p"),
        ("https://h/p#Signature=SECRET", "https://h/p"),
        ("https://h/p?a=1\\u0026Signature=SECRET", "https://h/p"),
    ],
)
def test_only_signatures_are_left_out(text: Any, kept: Any) -> None:
    """Of a text the queries that carry a signature go, wherever they stand, and nothing else."""
    assert plain_text("attribution", text) == (text if kept is None else kept)


def test_urls_of_files_have_no_query() -> None:
    """What comes after the path of a file's URL may be a signature of any kind."""
    for name in ("files.full.url", "files.mosaic.url", "files.full.url (as sent)"):
        assert plain_text(name, "https://h/p.jpg?token=x") == "https://h/p.jpg"
        assert plain_text(name, "https://h/p.jpg#x") == "https://h/p.jpg"
        assert plain_text(name, "lost? found") == "lost? found"


@given(st.text(), st.sampled_from(["Signature=", "Expires=", "Key-Pair-Id=", "X-Amz-Signature="]))
def test_no_signature_survives(text: str, name: str) -> None:
    """Whatever stands around it."""
    assert "SECRET" not in str(plain_text("attribution", f"{text} https://h/p?{name}SECRET {text}"))


def test_an_image_keeps_its_texts() -> None:
    """An attribution that begins with a URL is whole; signed URLs in fields that are new are not."""
    record = image(1) | {
        "attribution": "https://example.org/lab?id=5 - Prof. X",
        "renditions": [{"url": SIGNED}],
        "note": f"see {SIGNED}",
    }
    row, other = image_row(read_image(record))
    assert row["attribution"] == "https://example.org/lab?id=5 - Prof. X"
    assert other == {"renditions": '[{"url": "https://h/p.jpg"}]', "note": "see https://h/p.jpg"}
