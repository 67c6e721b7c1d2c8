"""A stand-in for the `medhaul` command: `task` and `reduce` do what `behaviour.json` beside this file says.

Standard library only, and started without site packages, so that it starts fast. `behaviour.json` maps a shard (or
"reduce") to the words of its lives, of which the last one stays; without an entry all goes well.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent


def main():
    """Do what a `medhaul` command line says."""
    command, run = sys.argv[1], pathlib.Path(sys.argv[2])
    trace = HERE / "trace"
    trace.mkdir(exist_ok=True)
    life = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    if command == "task":
        attempt, index = int(sys.argv[sys.argv.index("--attempt") + 1]), int(sys.argv[sys.argv.index("--index") + 1])
        plan = json.loads((run / "attempts" / f"{attempt:03d}" / "plan.json").read_text())
        who, shard = str(plan["shards"][index]), plan["shards"][index]
    else:
        who, shard = command, -1
    words = json.loads((HERE / "behaviour.json").read_text()).get(who, ["ok"])
    word = words[min(life, len(words) - 1)]
    facts = {"argv": sys.argv[1:], "pid": os.getpid(), "began": time.time(), "environ": dict(os.environ), "word": word}

    def note(**more):
        facts.update(more)
        made = trace / f".{who}.{life}.tmp"
        made.write_text(json.dumps(facts))
        made.replace(trace / f"{who}.{life}.json")

    def stop(number, _frame):
        note(signal=number, ended=time.time())
        if "requeue" in word and number == signal.SIGUSR1:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it follows at once, and would be noted as what ended us
            array, index = os.environ["SLURM_ARRAY_JOB_ID"], os.environ["SLURM_ARRAY_TASK_ID"]
            subprocess.run(["scontrol", "requeue", f"{array}_{index}"], check=True)
        print(f"stopped by {number}", flush=True)
        os._exit(75)

    # "wait usr1 term": stops at those signals, ignores the other of the two; with "requeue" it asks for another life
    if word.startswith("wait"):
        for name in ("usr1", "term"):
            number = signal.Signals[f"SIG{name.upper()}"]
            signal.signal(number, stop if name in word else signal.SIG_IGN)
        child = os.fork()
        if child == 0:

            def heard(number, _frame):
                (trace / f"child.{number}").touch()
                os._exit(0)

            signal.signal(signal.SIGUSR1, heard)
            signal.signal(signal.SIGTERM, heard)
            facts["pid"] = os.getpid()
            while True:
                time.sleep(0.05)  # Python handles a signal that comes just before a sleep only after it
        note(child=child)
        print(f"waiting as {who}", flush=True)
        while True:
            time.sleep(0.05)
    note()
    print(f"{command} {who} life {life}: {word}", flush=True)
    if word == "leave":
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        note(child=child)
        word = "ok"
    if word.startswith("sleep"):
        time.sleep(float(word.split()[1]))
        word = "ok"
    if word == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "reduce":
        done = sorted((run / "receipts").rglob("*.json"))
        total = json.loads((run / "run.json").read_text())["shards"]
        note(receipts=len(done), ended=time.time())
        if len(done) < total:
            sys.exit(3)
        word = "ok"
    if word == "ok" and command == "reduce":
        archives = run / "archives"
        archives.mkdir(exist_ok=True)
        for archive in json.loads((run / "manifest.index.json").read_text())["archives"]:
            name = f"{archive['name']}.tar.xz"
            (archives / name).write_bytes(b"archive")
            index = name + ".index.jsonl.zst"
            (archives / index).write_bytes((run.parent / "indexes" / index).read_bytes())
        for part in (run / "parts").rglob("*.part"):
            part.unlink()
    if word == "ok" and command == "task":
        template = json.loads((HERE / "receipt.json").read_text())
        part = run / "parts" / "00" / f"{shard:06d}.0.part"
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(b"x" * 100)
        template |= {"shard": shard, "attempt": attempt, "index": f"{shard:06d}.0.index.zst"}
        (part.parent / template["index"]).touch()
        template["parts"] = [{"name": part.name, "length": 100, "sha256": "0" * 64}]
        receipt = run / "receipts" / "00" / f"{shard:06d}.json"
        receipt.parent.mkdir(parents=True, exist_ok=True)
        receipt.write_text(json.dumps(template))
    note(ended=time.time())
    sys.exit(int(word.split()[1]) if word.startswith("exit") else 0)


main()
