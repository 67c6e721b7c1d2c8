"""The batch scripts: they find medhaul by the documented setting, exec it rightly, and bear hostile paths."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.schedulers.attempt import SCRIPTS

HOSTILE = 'it\'s a "run" \u2013 na\u00efve $HOME `x` *\nnew line'
NAMES = ("array_task.sh", "reduce.sh", "submit_array.sh")
PLAIN = {"PATH": "/usr/bin:/bin"}
REPORT = f"""#!{sys.executable}
import json, os, sys
print(json.dumps([sys.argv, os.getpid(), dict(os.environ)]))
"""


def put_medhaul(folder: Path) -> Path:
    """A `medhaul` that prints its arguments, process id and environment."""
    folder.mkdir(parents=True)
    command = folder / "medhaul"
    command.write_text(REPORT)
    command.chmod(0o755)
    return command


def environment_file(folder: Path, binaries: Path) -> str:
    """A file as MEDHAUL_ENV names it."""
    file = folder / "environment.sh"
    file.write_text(f'echo "$UNSET_VARIABLE" >/dev/null\nexport PATH={shlex.quote(str(binaries))}:"$PATH"\n')
    return str(file)


def call(script: Path, environ: dict[str, str], *words: str, cwd: Path | None = None) -> list:
    """Run a script and return what its medhaul printed, after the script's own process id."""
    with subprocess.Popen(
        ["bash", str(script), *words], env=environ, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        out, err = child.communicate()
    assert child.returncode == 0, err
    return [child.pid, *json.loads(out)]


@pytest.fixture
def place(tmp_path):
    """Return a folder with a hostile name that holds a `medhaul`."""
    folder = tmp_path / HOSTILE
    put_medhaul(folder / "bin")
    return folder


def test_array_task(place, tmp_path):
    """An array task becomes `medhaul task` with index plus offset, in the very process the scheduler started."""
    spool = Path(shutil.copy(SCRIPTS / "array_task.sh", tmp_path / "slurm_script"))
    run = str(place / "storage\n" / "r1")
    environ = PLAIN | {
        "MEDHAUL_ENV": environment_file(place, place / "bin"),
        "MEDHAUL_RUN": run,
        "MEDHAUL_ATTEMPT": "2",
        "MEDHAUL_OFFSET": "1000",
        "SLURM_ARRAY_TASK_ID": "7",
    }
    pid, argv, medhaul_pid, _ = call(spool, environ)
    assert argv[1:] == ["task", run, "--attempt", "2", "--index", "1007"]
    assert pid == medhaul_pid


def test_reduce(place, tmp_path):
    """The reduce job becomes `medhaul reduce`."""
    spool = Path(shutil.copy(SCRIPTS / "reduce.sh", tmp_path / "slurm_script"))
    environ = PLAIN | {"MEDHAUL_ENV": environment_file(place, place / "bin"), "MEDHAUL_RUN": str(place)}
    assert call(spool, environ)[1][1:] == ["reduce", str(place)]


@pytest.mark.parametrize("words", [["a b.toml"], ["-q", "x\ny.toml", "--dry-run"]])
def test_submit_passes_its_words(place, words):
    """The submit script hands all its words to `medhaul submit` unchanged."""
    environ = PLAIN | {"MEDHAUL_ENV": environment_file(place, place / "bin")}
    assert call(SCRIPTS / "submit_array.sh", environ, *words)[1][1:] == ["submit", *words]


def test_path_is_next(place):
    """Without the setting the `medhaul` on PATH is taken."""
    environ = {"PATH": f"{place / 'bin'}:/usr/bin:/bin", "MEDHAUL_RUN": "x"}
    assert call(SCRIPTS / "reduce.sh", environ)[1][0] == str(place / "bin" / "medhaul")


@pytest.mark.parametrize("name", ["array_task.sh", "reduce.sh"])
def test_checkout_is_last(place, name):
    """Without a medhaul on PATH that of MEDHAUL_HOME's own virtual environment is taken."""
    command = put_medhaul(place / ".venv" / "bin")
    environ = PLAIN | {
        "MEDHAUL_HOME": str(place),
        "MEDHAUL_RUN": "x",
        "MEDHAUL_ATTEMPT": "1",
        "MEDHAUL_OFFSET": "0",
        "SLURM_ARRAY_TASK_ID": "0",
    }
    assert call(SCRIPTS / name, environ)[1][0] == str(command)


@pytest.mark.parametrize("how", ["beside", "home", "submit-dir", "scontrol"])
def test_submit_finds_its_checkout(place, tmp_path, how):
    """The submit script finds its checkout beside itself, and from a spool copy by what Slurm or the user says."""
    checkout = tmp_path / "check out's"
    command = put_medhaul(checkout / ".venv" / "bin")
    (checkout / "slurm").mkdir()
    script = Path(shutil.copy(SCRIPTS / "submit_array.sh", checkout / "slurm"))
    environ = dict(PLAIN)
    if how != "beside":
        (tmp_path / "spool" / "job7").mkdir(parents=True)
        spool = Path(shutil.copy(script, tmp_path / "spool" / "job7" / "slurm_script"))
    else:
        spool = script
    if how == "home":
        environ["MEDHAUL_HOME"] = str(checkout)
    if how == "submit-dir":
        environ["SLURM_SUBMIT_DIR"] = str(checkout)
    if how == "scontrol":
        tools = tmp_path / "tools"
        tools.mkdir()
        show = tools / "scontrol"
        text = f"JobId=7 JobName=x\n   Command={script} c.toml --dry-run\n   WorkDir=/"
        show.write_text(f"#!/bin/sh\n[ \"$*\" = 'show job 7' ] && echo {shlex.quote(text)}\n")
        show.chmod(0o755)
        environ |= {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": "/", "PATH": f"{tools}:/usr/bin:/bin"}
    _, argv, _, seen = call(spool, environ, "c.toml", cwd=tmp_path)
    assert Path(argv[0]).resolve() == command.resolve()
    assert Path(seen["MEDHAUL_HOME"]).resolve() == checkout.resolve()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("setting", [{}, {"MEDHAUL_ENV": "/does/not/exist.sh"}])
def test_no_medhaul_is_one_line(tmp_path, name, setting):
    """When there is no medhaul, or the setting names no file, the script says so and ends with exit code 78."""
    spool = Path(shutil.copy(SCRIPTS / name, tmp_path / "slurm_script"))
    done = subprocess.run(["bash", str(spool)], env=PLAIN | setting, capture_output=True, text=True, check=False)
    assert done.returncode == 78
    assert "MEDHAUL_ENV" in done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_scripts_are_sound(name):
    """Each script is valid bash, ends in `exec`, and is executable."""
    script = SCRIPTS / name
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    assert script.read_text().rstrip().splitlines()[-1].startswith('exec "$medhaul" ')
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize("name", NAMES)
def test_scripts_pass_shellcheck(name):
    """Shellcheck has nothing to say."""
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, str(SCRIPTS / name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_scripts_are_package_data():
    """The scripts are found inside the package, where a wheel ships them."""
    assert {path.name for path in SCRIPTS.glob("*.sh")} == set(NAMES)
    assert SCRIPTS.parent.name == "pipeline"
