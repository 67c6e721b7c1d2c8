"""The squeue and sacct commands. Standard library only."""

# ruff: noqa: SIM905

import itertools
import os
import re
import time

from tests.slurm_shims import options as opt
from tests.slurm_shims.store import (
    all_tasks,
    exit_text,
    find_tasks,
    format_limit,
    format_span,
    format_time,
    known,
    open_cluster,
    refuse,
    root,
    say,
    use_up,
)

COMPACT = {
    "PENDING": "PD", "RUNNING": "R", "COMPLETING": "CG", "COMPLETED": "CD", "FAILED": "F", "CANCELLED": "CA",
    "TIMEOUT": "TO", "NODE_FAIL": "NF", "PREEMPTED": "PR", "OUT_OF_MEMORY": "OOM", "SUSPENDED": "S",
    "CONFIGURING": "CF", "BOOT_FAIL": "BF", "DEADLINE": "DL", "REQUEUED": "RQ", "REQUEUE_HOLD": "RH",
}  # fmt: skip
DEFAULT_FORMAT = "JobArrayID:18,Partition:10,Name:9,UserName:9,StateCompact:3,TimeUsed:11,ReasonList:16"


def shown_state(task, knobs):
    """A task's state in squeue's words."""
    if task["state"] == "RUNNING":
        return "COMPLETING" if task["why"] or task["want"] else knobs["state_word"] or "RUNNING"
    return task["state"]


def ranges(indices):
    """Indices as Slurm shortens them: `0-3,7`."""
    pieces = []
    for _, group in itertools.groupby(enumerate(indices), lambda pair: pair[1] - pair[0]):
        run = [index for _, index in group]
        pieces.append(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]))
    return ",".join(pieces)


def rest_of_array(job, indices):
    """The index expression of tasks that were never started; cut at SLURM_BITSTR_LEN bytes unless that is 0."""
    text, most = ranges(indices), int(os.environ.get("SLURM_BITSTR_LEN", "64"))
    if most and len(text) > most:
        text = text[: most - 3].rpartition(",")[0] + ",..."
    return text + (f"%{job['throttle']}" if job["throttle"] else "")


def rows_of(pairs, *, each):
    """(job, task, index text) of every line; tasks of an array that were never started share one unless `each`.

    So do those that were cancelled before they started.
    """
    rows, waiting = [], {}
    for job, task in pairs:
        if each or not job["array"] or task["raw"]:
            rows.append((job, task, "N/A" if task["index"] is None else str(task["index"])))
        else:
            key = job["id"], task["state"]
            if key not in waiting:
                waiting[key] = [job, task, []]
                rows.append(waiting[key])
            waiting[key][2].append(task["index"])
    return [(j, t, text if isinstance(text, str) else rest_of_array(j, text)) for j, t, text in rows]


def squeue(argv):
    """List tasks that the controller knows."""
    longs = {"noheader": False, "array": False, "states": True, "jobs": True, "name": True, "me": False, "user": True}
    longs["all"] = False  # also of hidden partitions, which there are none of here
    shorts = {
        "a": "all",
        "h": "noheader",
        "r": "array",
        "t": "states",
        "j": "jobs",
        "n": "name",
        "u": "user",
        "O": "Format",
    }
    options, operands = opt.parse_options("squeue", argv, longs | {"Format": True}, shorts)
    if operands:
        refuse(f"squeue: error: Unrecognized option: {operands[0]}")
    columns = [parse_column(column) for column in options.get("Format", DEFAULT_FORMAT).split(",")]
    states = parse_states("squeue", options.get("states", "PENDING,RUNNING,COMPLETING"))
    with open_cluster(root(), write=False) as cluster:
        failing, hang = cluster["knobs"]["squeue_fail"], cluster["knobs"]["squeue_hang"]
    time.sleep(hang)
    if failing:
        with open_cluster(root()) as cluster:
            use_up(cluster, "squeue_fail")
        refuse("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    with open_cluster(root(), write=False) as cluster:
        pairs = [pair for pair in all_tasks(cluster) if known(cluster, pair[1])]
        if "jobs" in options:
            pairs = asked_tasks(cluster, options["jobs"])
    if "name" in options:
        pairs = [pair for pair in pairs if pair[0]["name"] in options["name"].split(",")]
    if "user" in options:
        users = {*options["user"].split(",")}
        pairs = [pair for pair in pairs if users & {str(os.getuid()), pair[0]["user"]}]
    if states is not None:
        real = cluster["knobs"] | {"state_word": ""}
        pairs = [pair for pair in pairs if shown_state(pair[1], real) in states]
    if "noheader" not in options:
        say("".join(f"{name.upper():<{width}.{width}}" for name, width in columns))
    for job, task, index in rows_of(pairs, each="array" in options):
        fields = squeue_fields(job, task, index, cluster["knobs"])
        say("".join(f"{fields[name]:<{width}.{width}}" for name, width in columns))
    return 0


def parse_column(text):
    """A column's name in small letters and width, of `field:width`."""
    name, _, width = text.partition(":")
    if name.lower() not in FIELDS or not (width or "20").isdigit():
        refuse(f"squeue: error: Invalid job format specification: {text}")
    return name.lower(), int(width or 20)


def parse_states(command, text):
    """The states of a list, in long words; None for all."""
    if text.lower() == "all":
        return None
    words = {short: long for long, short in COMPACT.items()} | {long: long for long in COMPACT}
    for word in text.upper().split(","):
        if word not in words:
            valid = ",".join(COMPACT)
            refuse(
                f"{command}: error: Invalid job state specified: {word}\n{command}: error: Valid job states: {valid}"
            )
    return {words[word] for word in text.upper().split(",")}


def asked_tasks(cluster, text):
    """The tasks of a list of ids; one unknown id alone is an error, several are passed over."""
    specs, pairs = text.split(","), []
    for spec in specs:
        if not re.fullmatch(r"\d+(_(\d+|\[[\d,:-]+\]))?", spec):
            refuse(f"squeue: error: Invalid job id: {spec}")
        try:
            pairs += [pair for pair in find_tasks(cluster, spec) if pair not in pairs]
        except LookupError:
            if len(specs) == 1:
                refuse("slurm_load_jobs error: Invalid job id specified")
    return pairs


FIELDS = (
    "arrayjobid arraytaskid jobid jobarrayid state statecompact exit_code restartcnt submittime starttime endtime"
    " timelimit timeused nodelist name reason reasonlist username partition account dependency workdir command"
).split()


def squeue_fields(job, task, index, knobs):
    """All columns of one line."""
    state = shown_state(task, knobs)
    begun = 0 if task["state"] == "PENDING" else task["start"]
    again = task["eligible"] if task["reason"] == "BeginTime" else 0
    end, endless = task["end"], "NONE" if begun or again else "N/A"
    if task["state"] == "RUNNING" and job["limit"]:
        end = task["start"] + job["limit"] * knobs["minute"] / 60
    waits = task["state"] in {"PENDING", "FAILED", "TIMEOUT", "OUT_OF_MEMORY"}
    return dict(
        zip(
            FIELDS,
            (
                str(job["id"]),
                index,
                str(task["raw"] or job["id"]),
                f"{job['id']}_{index if index.isdigit() else f'[{index}]'}" if job["array"] else str(job["id"]),
                state,
                COMPACT.get(state, state),
                str(task["status"]),
                str(task["restarts"]),
                format_time(job["submitted"], "N/A"),
                format_time(begun or again, "N/A"),
                format_time(end, endless),
                format_limit(job["limit"]),
                format_limit((task["end"] or time.time()) - begun if begun else 0),
                task["node"],
                job["name"],
                task["reason"],
                f"({task['reason']})" if waits else task["node"],
                job["user"],
                job["partition"],
                job["account"] or "(null)",
                ",".join(":".join([kind, *ids]) for kind, ids in job["dependency"]) or "(null)",
                job["cwd"],
                job["command"],
            ),
            strict=True,
        )
    )


ACCOUNTED = (
    "jobid jobidraw jobname state exitcode derivedexitcode nodelist submit start end elapsed elapsedraw timelimit user"
    " account partition reason reqmem maxrss alloccpus"
).split()


def sacct(argv):
    """List what the accounting database knows, which forgets nothing but lags."""
    longs = dict.fromkeys(("allocations", "noheader", "parsable2", "parsable", "duplicates", "array"), False)
    longs |= dict.fromkeys(("jobs", "name", "starttime", "endtime", "user", "format", "state", "delimiter"), True)
    shorts = {"X": "allocations", "n": "noheader", "P": "parsable2", "p": "parsable", "D": "duplicates", "j": "jobs"}
    shorts |= {"S": "starttime", "E": "endtime", "u": "user", "o": "format", "s": "state"}
    options, operands = opt.parse_options("sacct", argv, longs, shorts)
    if operands:
        refuse(f"sacct: error: Unrecognized option: {operands[0]}")
    with open_cluster(root(), write=False) as cluster:
        pass
    if not cluster["knobs"]["accounting"]:
        refuse("Slurm accounting storage is disabled")
    columns = options.get("format", "JobID,JobName,Partition,Account,AllocCPUS,State,ExitCode").split(",")
    for column in columns:
        if column.partition("%")[0].lower() not in ACCOUNTED:
            refuse(f'sacct: error: Invalid field requested: "{column}"')
    since, until = (parse_when(options[key]) if key in options else None for key in ("starttime", "endtime"))
    if since is None and "jobs" not in options:
        since = time.mktime((*time.localtime()[:3], 0, 0, 0, 0, 0, -1))
    states = parse_states("sacct", options["state"]) if "state" in options else None
    lines = []
    for record in records(cluster, steps="allocations" not in options, old="duplicates" in options):
        wanted = [
            "jobs" not in options or any(record["ids"] & {spec} for spec in options["jobs"].split(",")),
            "name" not in options or record["name"] in options["name"].split(","),
            "user" not in options or {record["user"], str(os.getuid())} & set(options["user"].split(",")),
            not since or not record["ended"] or record["ended"] >= since,
            not until or record["submitted"] <= until,
            states is None or record["state"].split()[0] in states,
        ]
        if all(wanted):
            lines.append([record["fields"][column.partition("%")[0].lower()] for column in columns])
    if "noheader" not in options:
        lines.insert(0, [column.partition("%")[0] for column in columns])
    plain = "parsable2" in options or "parsable" in options
    mark = options.get("delimiter", "|")
    for line in lines:
        text = mark.join(line) + (mark if "parsable" in options else "")
        say(text if plain else " ".join(cut(word, column) for word, column in zip(line, columns, strict=True)))
    return 0


def cut(word, column):
    """A word in a column of fixed width, with a + where it was cut."""
    width = int(column.partition("%")[2] or 10)
    return f"{word[: width - 1] + '+' if len(word) > width else word:>{width}}"


def parse_when(text):
    """A time as sacct -S takes it."""
    match = re.fullmatch(r"now(?:-(\d+)(seconds|minutes|hours|days|weeks)?)?", text)
    if match:
        unit = {"minutes": 60, "hours": 3600, "days": 86400, "weeks": 604800}.get(match[2], 1)
        return time.time() - int(match[1] or 0) * unit
    for form in ("%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%d"):
        try:
            return time.mktime(time.strptime(text, form))
        except ValueError:
            continue
    return refuse(f"sacct: error: Invalid time specification (pos=0): {text}")


def records(cluster, *, steps, old):
    """The database's records, as it knows them now."""
    knobs, now = cluster["knobs"], time.time()
    late = now - knobs["sacct_lag"]
    pairs = []
    for job, task in all_tasks(cluster):
        dead = [{**task, **life, "reason": "None"} for life in task["lives"]]
        pairs += [(job, life) for life in (dead if old else []) if life["end"] <= late]
        last = dead[-1] if dead and task["state"] == "PENDING" else None
        shown = last if last and last["end"] > late else task
        if shown["end"] and shown["end"] > late and (shown["pid"] or shown["start"] < shown["end"]):
            shown = {**shown, "state": "RUNNING", "end": 0.0, "status": 0}
        pairs.append((job, shown))
    for job, task, index in rows_of(pairs, each=False):
        name = f"{job['id']}_{index if index.isdigit() else f'[{index}]'}" if job["array"] else str(job["id"])
        state = task["state"]
        word = f"CANCELLED by {os.getuid()}" if state == "CANCELLED" else state
        word = knobs["state_word"] or word if state == "RUNNING" else word
        begun = 0 if state == "PENDING" else task["start"]
        spent = (task["end"] or now) - begun if begun else 0
        values = (
            name, str(task["raw"] or job["id"]), job["name"], word, exit_text(task["status"]), "0:0",
            task["node"] or "None assigned", format_time(job["submitted"], "Unknown"), format_time(begun, "Unknown"),
            format_time(task["end"], "Unknown"), format_span(spent), str(int(spent)),
            "UNLIMITED" if job["limit"] is None else format_span(job["limit"]), job["user"], job["account"],
            job["partition"], task["reason"], f"{job['memory']}M" if job["memory"] else "", "", job["cpus"] or "1",
        )  # fmt: skip
        record = {
            "fields": dict(zip(ACCOUNTED, values, strict=True)),
            "ids": {str(job["id"]), name, str(task["raw"] or job["id"])},
            "name": job["name"],
            "user": job["user"],
            "state": word,
            "ended": task["end"],
            "submitted": job["submitted"],
        }
        yield record
        if steps and begun:
            batch = {
                "jobid": f"{name}.batch",
                "jobname": "batch",
                "state": word.split()[0],
                "user": "",
                "partition": "",
            }
            yield record | {"fields": record["fields"] | batch}
