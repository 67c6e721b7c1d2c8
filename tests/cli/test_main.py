"""The command line's border: every end has its code and a line that helps, and starting costs little."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from pipeline import __version__, errors
from pipeline.cli import main as main_module
from pipeline.cli.main import COMMANDS, SHORT_HELP, run_cli
from pipeline.errors import MedhaulError, render_table
from pipeline.schedulers.base import SchedulerError

ROOT = Path(__file__).parents[2]
HEAVY = ("requests", "requests_cache", "pydicom", "duckdb", "zstandard", "rich", "numpy", "ssl", "sqlite3")


# Those that every command may end with; the others are subclasses of these, with a code of their parent's.
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MedhaulError)]


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    """Verbosity of one call must not reach the next."""
    logger = logging.getLogger("medhaul")
    before = logger.level
    yield
    logger.setLevel(before)


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A command `boom` that raises the module's `error`."""
    module = types.ModuleType("made_up_commands")

    @click.command()
    def boom() -> None:
        """Raise."""
        raise module.error

    module.boom = boom
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(main_module.COMMANDS, "boom", "made_up_commands:boom")
    monkeypatch.setitem(main_module.SHORT_HELP, "boom", "Raise.")
    return module


def start(*arguments: str | bytes, code: str = "", **options: object) -> subprocess.CompletedProcess[bytes]:
    """Run the command line, or `code`, in a process of its own."""
    command = ["-c", code] if code else ["-m", "pipeline.cli.main"]
    return subprocess.run(
        [sys.executable, *command, *arguments], cwd=ROOT, capture_output=True, check=False, timeout=60, **options
    )  # type: ignore[call-overload]


@pytest.mark.parametrize("kind", [*KINDS, SchedulerError], ids=lambda kind: kind.__name__)
def test_every_error_is_one_line_with_a_hint_and_its_code(
    raising: types.ModuleType, capsys: pytest.CaptureFixture[str], kind: type[MedhaulError]
) -> None:
    """What happened, what to do now, the exit code: nothing on stdout, no traceback."""
    raising.error = kind("the thing broke", hint="mend it")
    assert run_cli(["boom"]) == kind.exit_code
    assert capsys.readouterr() == ("", "medhaul: the thing broke\n  -> mend it\n")
    raising.error = kind("the thing broke")
    assert run_cli(["boom"]) == kind.exit_code
    assert capsys.readouterr() == ("", "medhaul: the thing broke\n")


@pytest.mark.parametrize(
    "error", [ValueError("odd"), KeyError("x"), OSError(5, "io"), RecursionError(), AssertionError()]
)
def test_a_fault_is_70_without_traceback(
    raising: types.ModuleType, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    """People are told that it is not their fault and how to report it; with -v the traceback comes."""
    raising.error = error
    assert run_cli(["boom"]) == 70
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"medhaul: a fault in medhaul: {type(error).__name__}")
    assert "medhaul -v" in err
    assert "Traceback" not in err
    with pytest.raises(type(error)):
        run_cli(["-v", "boom"])


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interrupt_is_75(
    raising: types.ModuleType, capsys: pytest.CaptureFixture[str], error: BaseException
) -> None:
    """Ctrl-C is no fault: what was finished is kept."""
    raising.error = error
    assert run_cli(["boom"]) == 75
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["nonsense"], ["--nonsense"], ["plan"], ["plan", "--nonsense", "x"], ["task", "x", "--shard", "-1"],
        ["task", "x", "--shard", "one"], ["plan", "a", "b"], ["reduce"], ["-q"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage_is_64(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    """Unknown commands and options, missing and impossible arguments: told on stderr."""
    assert run_cli(arguments) == 64
    out, err = capsys.readouterr()
    assert out == ""
    assert err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["plan", "no-such.toml"], 78, "no-such.toml: no such config file"),
        (["task", "no-such-run", "--shard", "0"], 64, "not a run directory"),
        (["reduce", "no-such-run"], 64, "not a run directory"),
    ],
)
def test_what_is_not_there_is_told(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    """A wrong path is the user's to mend, never a fault."""
    assert run_cli(arguments) == code
    err = capsys.readouterr().err
    assert said in err
    assert "\n  -> " in err


HELP = """
from pipeline.cli.main import COMMANDS, run_cli
for command in COMMANDS:
    for option in ("--help", "-h"):
        print("::", command, option, run_cli([command, option]))
"""


def test_every_command_has_help() -> None:
    """`--help` and `-h` work, say what the command does, and the overview has a line about it."""
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
    told = done.stdout.split(":: ")
    for number, command in enumerate(COMMANDS):
        for text, option in ((told[2 * number], "--help"), (told[2 * number + 1], "-h")):
            assert "Usage:" in text
            assert f"{command} {option} 0" in told[2 * number + (1 if option == "--help" else 2)]
        assert SHORT_HELP[command].endswith(".")


def test_the_overview_lists_all_commands_and_codes(capsys: pytest.CaptureFixture[str]) -> None:
    """Without loading any of them."""
    assert run_cli(["--help"]) == 0
    out = capsys.readouterr().out
    assert set(SHORT_HELP) == set(COMMANDS)
    for name in COMMANDS:
        assert f"\n  {name} " in out
    for code in ("3", "64", "69", "73", "75", "77", "78"):
        assert code in out.partition("Exit codes:")[2]


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """One line, for bug reports."""
    assert run_cli(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    "code",
    [
        "import pipeline.cli.main",
        "import pipeline.cli.main as m; assert m.run_cli(['--help']) == 0",
        "import pipeline.cli.main as m; assert m.run_cli(['task', '--help']) == 0",
        "import pipeline.cli.main as m; assert m.run_cli(['task', 'no-such-run']) == 64",
        "import pipeline.cli.main as m; assert m.run_cli(['reduce', '--help']) == 0",
    ],
)
def test_starting_loads_nothing_heavy(code: str) -> None:
    """Thousands of tasks start at once: libraries that a step does not need are not even looked for."""
    done = start(code=f"import sys\n{code}\nprint('loaded', [n for n in {HEAVY!r} if n in sys.modules])")
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().splitlines()[-1] == "loaded []"


def test_a_reader_that_has_gone_is_no_error() -> None:
    """`medhaul ls ARCHIVE | head -1` ends quietly with 0."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli.main", "--help"], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE,
        check=False, timeout=60,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_names_that_are_not_utf8_can_be_spoken_of(tmp_path: Path) -> None:
    """A path of any bytes is shown somehow, and the code is the right one."""
    done = start("plan", os.fsencode(tmp_path) + b"/\xff.toml")
    assert done.returncode == 78
    assert b"no such config file" in done.stderr
    assert b"Traceback" not in done.stderr


def test_the_table_of_exit_codes_is_the_errors_own() -> None:
    """docs/exit-codes.md ends with what errors.py renders, so that neither can drift."""
    text = (ROOT / "docs" / "exit-codes.md").read_text(encoding="utf-8")
    assert text.endswith("\n\n" + render_table())
    for kind in (*KINDS, *MedhaulError.__subclasses__()):
        assert f"\n| {kind.exit_code} | " in render_table()
    for reason in errors.REASONS:
        assert f"| `{reason}` | " in render_table()
