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

from pipeline.schedulers.submission import SCRIPTS

HOSTILE = 'it\'s a "run" \u2013 na\u00efve $HOME `x` *\nnew line'
NAMES = ("array_task.sh", "reduce.sh", "submit_array.sh")
PLAIN = {"PATH": "/usr/bin:/bin"}
BINARIES = Path(sys.executable).parent
GIVEN = {"MEDHAUL_RUN": "r", "MEDHAUL_ATTEMPT": "1", "MEDHAUL_OFFSET": "0", "SLURM_ARRAY_TASK_ID": "0"}
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


def put_scontrol(folder: Path, script: Path | str | None) -> str:
    """Make a `scontrol` that knows job 7 as one of `script`, or no job at all; return the PATH that has it."""
    folder.mkdir()
    show = folder / "scontrol"
    text = shlex.quote(f"JobId=7 JobName=x\n   Command={script} c.toml --dry-run\n   WorkDir=/")
    show.write_text(f"#!/bin/sh\n[ \"$*\" = 'show job 7' ] && echo {text}\n" if script else "#!/bin/sh\nexit 1\n")
    show.chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


def put_checkout(folder: Path) -> Path:
    """Make a checkout with a virtual environment; return its submit script."""
    put_medhaul(folder / ".venv" / "bin")
    (folder / "slurm").mkdir()
    return Path(shutil.copy(SCRIPTS / "submit_array.sh", folder / "slurm"))


def put_spool(folder: Path, script: Path) -> Path:
    """Copy a script to where Slurm runs it from."""
    (folder / "job00007").mkdir(parents=True)
    return Path(shutil.copy(script, folder / "job00007" / "slurm_script"))


@pytest.mark.parametrize("how", ["beside", "linked", "home", "submit-dir", "scontrol", "below", "aside"])
def test_submit_finds_its_checkout(tmp_path, how):
    """The submit script finds its checkout beside itself, and from a spool copy by what Slurm or the user says."""
    checkout = tmp_path / "check out's"
    script = put_checkout(checkout)
    put_checkout(tmp_path / "another")
    environ = PLAIN | {"SLURM_JOB_ID": "7", "PATH": put_scontrol(tmp_path / "tools", None)}
    if how == "linked":
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "haul.sh").symlink_to(script)
        script = tmp_path / "bin" / "haul.sh"
    elif how != "beside":
        script = put_spool(tmp_path / "spool", script)
    if how == "home":
        environ |= {"MEDHAUL_HOME": str(checkout), "SLURM_SUBMIT_DIR": str(tmp_path / "another")}
    if how == "submit-dir":
        environ["SLURM_SUBMIT_DIR"] = str(checkout)
    if how == "scontrol":
        environ["PATH"] = put_scontrol(tmp_path / "more tools", checkout / "slurm" / "submit_array.sh")
        environ["SLURM_SUBMIT_DIR"] = str(tmp_path / "another")
    if how in {"below", "aside"}:  # Slurm tells the path as it was given to sbatch
        given = "slurm/submit_array.sh" if how == "below" else f"../{checkout.name}/slurm/submit_array.sh"
        environ["PATH"] = put_scontrol(tmp_path / "more tools", given)
        environ["SLURM_SUBMIT_DIR"] = str(checkout if how == "below" else tmp_path / "another")
    _, argv, _, seen = call(script, environ, "c.toml", cwd=tmp_path)
    assert os.path.normpath(argv[0]) == str(checkout / ".venv" / "bin" / "medhaul")
    assert argv[1:] == ["submit", "c.toml"]
    assert os.path.normpath(seen["MEDHAUL_HOME"]) == str(checkout)


def test_a_surrounding_job_misleads_nobody(tmp_path):
    """On a login node, or in an interactive job, variables of a job say nothing about where the script came from."""
    script = put_checkout(tmp_path / "mine")
    shutil.rmtree(tmp_path / "mine" / ".venv")
    theirs = put_checkout(tmp_path / "theirs")
    environ = {
        "PATH": put_scontrol(tmp_path / "tools", theirs),
        "SLURM_JOB_ID": "7",
        "SLURM_SUBMIT_DIR": str(tmp_path / "theirs"),
    }
    done = subprocess.run(["bash", str(script), "c"], env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (78, "")


def test_what_is_sourced_sees_no_words_of_ours(place, tmp_path):
    """The file of MEDHAUL_ENV gets no positional parameters, and those that it sets stay its own."""
    (tmp_path / "activate").write_text(f'echo "$#" >>{shlex.quote(str(tmp_path / "seen"))}\nset -- stray words\n')
    file = Path(environment_file(place, place / "bin"))
    file.write_text(file.read_text() + "source activate\n")  # by its name on PATH, as conda's users write it
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "MEDHAUL_ENV": str(file)}
    assert call(SCRIPTS / "submit_array.sh", environ, "a b", "--dry-run")[1][1:] == ["submit", "a b", "--dry-run"]
    assert call(SCRIPTS / "reduce.sh", environ, "r 1", "--allow-partial")[1][1:] == ["reduce", "r 1", "--allow-partial"]
    assert (tmp_path / "seen").read_text() == "0\n0\n"


@pytest.mark.parametrize(
    ("name", "command"), [("array_task.sh", "task"), ("reduce.sh", "reduce"), ("submit_array.sh", "submit")]
)
def test_strict_settings_of_what_is_sourced_do_no_harm(place, name, command):
    """A file of MEDHAUL_ENV may switch on bash's strict modes."""
    file = Path(environment_file(place, place / "bin"))
    file.write_text(file.read_text() + "set -euo pipefail\n")
    environ = PLAIN | {"MEDHAUL_ENV": str(file)} | (GIVEN if command == "task" else {})
    assert call(SCRIPTS / name, environ)[1][1] == command


@pytest.mark.parametrize("name", NAMES)
def test_a_setting_that_fails_is_told(place, name):
    """When the last command of the file of MEDHAUL_ENV fails, nothing runs: it might be another medhaul."""
    file = Path(environment_file(place, place / "bin"))
    file.write_text(file.read_text() + "false\n")
    environ = PLAIN | {"MEDHAUL_ENV": str(file)}
    done = subprocess.run(["bash", str(SCRIPTS / name)], env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (78, "")
    assert f"MEDHAUL_ENV={file}: " in done.stderr


def test_the_setting_is_passed_on_as_a_whole_path(place, tmp_path):
    """The submit script makes MEDHAUL_ENV absolute: tasks start elsewhere; no file of that name on PATH is taken."""
    (tmp_path / "environment.sh").write_text("exit 1\n")
    file = environment_file(place, place / "bin")
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "MEDHAUL_ENV": "environment.sh"}
    assert call(SCRIPTS / "submit_array.sh", environ, "c", cwd=place)[3]["MEDHAUL_ENV"] == file


@pytest.mark.parametrize("missing", GIVEN)
def test_an_array_task_guesses_nothing(place, missing):
    """Without one of its variables an array task says which, and does not start a shard."""
    environ = PLAIN | {"MEDHAUL_ENV": environment_file(place, place / "bin")}
    given = {key: value for key, value in GIVEN.items() if key != missing}
    command = ["bash", str(SCRIPTS / "array_task.sh")]
    done = subprocess.run(command, env=environ | given, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (64, "")
    assert f"{missing} is not set" in done.stderr


@pytest.mark.parametrize(("words", "code"), [([], 64), (["--help"], 0)])
def test_usage_is_told_by_medhaul(words, code):
    """Without words, or with --help, the submit script shows how `medhaul submit` is used."""
    environ = {"PATH": f"{BINARIES}:/usr/bin:/bin"}
    command = ["bash", str(SCRIPTS / "submit_array.sh"), *words]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "CONFIG|RUN" in done.stdout + done.stderr


def test_a_temporary_folder_of_another_machine_does_no_harm(tmp_path):
    """A TMPDIR that was inherited from a login node and is not here stops nothing, and is not made."""
    config = tmp_path / "con figs" / "demo.toml"
    config.parent.mkdir()
    shutil.copy(SCRIPTS.parent / "demo" / "demo.toml", config)
    gone = tmp_path / "login" / "tmp"
    environ = {"PATH": f"{BINARIES}:/usr/bin:/bin", "HOME": str(tmp_path), "TMPDIR": str(gone)}
    command = ["bash", str(SCRIPTS / "submit_array.sh"), str(config), "--scheduler", "local", "--dry-run"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "dry run" in done.stdout
    assert not gone.parent.exists()


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
def test_sbatch_reads_nothing_that_a_folder_may_lack(name):
    """Options for sbatch stand above all commands, ask for no resources, and write the log to the current folder."""
    lines = (SCRIPTS / name).read_text().splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    first = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    assert not [line for line in lines[first:] if "#SBATCH" in line]
    assert {option.partition("=")[0] for option in options} <= {"--job-name", "--output", "--open-mode"}
    assert all("/" not in option for option in options)


@pytest.mark.parametrize("name", NAMES)
def test_scripts_pass_shellcheck(name):
    """Shellcheck has nothing to say."""
    shellcheck = shutil.which("shellcheck", path=f"{BINARIES}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, str(SCRIPTS / name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_scripts_are_package_data():
    """The scripts are found inside the package, where a wheel ships them."""
    assert {path.name for path in SCRIPTS.glob("*.sh")} == set(NAMES)
    assert SCRIPTS.parent.name == "pipeline"
