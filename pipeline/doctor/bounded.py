"""Doing something that may hang, such as touching a dead file server, without hanging along."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def run_bounded(work: Callable[[], T], seconds: float) -> T:
    """Return what `work` returns; after `seconds` it is left to itself, in a thread that ends with the process.

    Raises
    ------
    TimeoutError
        When it took longer.
    Exception
        Whatever `work` raises.
    """
    results: list[T] = []
    problems: list[Exception] = []
    done = threading.Event()

    def call() -> None:
        try:
            results.append(work())
        except Exception as error:  # noqa: BLE001 - raised again where it is waited for
            problems.append(error)
        finally:
            done.set()

    threading.Thread(target=call, name="doctor", daemon=True).start()
    if not done.wait(seconds):
        raise TimeoutError(f"no answer within {seconds:g} s")
    if problems:
        raise problems[0]
    return results[0]
