"""Command lines as Slurm's commands read them, except that abbreviated options are refused. Standard library only."""

import re
import signal

from tests.slurm_shims.store import refuse


def parse_options(command, argv, longs, shorts, *, stop=False):
    """Split a command line into options (last one wins) and operands.

    `longs` maps a name to whether it takes a value, `shorts` a letter to its name. With `stop` the first operand ends
    the options, as sbatch's script does. Any other option ends the command with exit 1.
    """
    options, operands, rest = {}, [], list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            operands += rest
            break
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            if name not in longs:
                unknown(command, f"unrecognized option '{word}'")
            if not longs[name] and equals:
                unknown(command, f"option '--{name}' doesn't allow an argument")
            options[name] = take(command, f"option '--{name}' requires an argument", longs[name], equals, value, rest)
        elif len(word) > 1 and word[0] == "-":
            letters = word[1:]
            while letters:
                letter, letters = letters[0], letters[1:]
                if letter not in shorts:
                    unknown(command, f"invalid option -- '{letter}'")
                name = shorts[letter]
                text = f"option requires an argument -- '{letter}'"
                options[name] = take(command, text, longs[name], letters, letters, rest)
                if longs[name]:
                    break
        else:
            operands.append(word)
            if stop:
                operands += rest
                break
    return options, operands


def take(command, text, wanted, given, value, rest):
    """The value of an option: its own, the next word, or True for one that takes none."""
    if not wanted:
        return True
    if given:
        return value
    if not rest:
        unknown(command, text)
    return rest.pop(0)


def unknown(command, text):
    """Refuse as getopt does."""
    refuse(f'{command}: {text}\nTry "{command} --help" for more information')


def parse_minutes(text):
    """A time limit in seconds, whole minutes rounded up; None for no limit. Raises ValueError. See sbatch(1)."""
    if text.lower() in {"unlimited", "infinite", "-1"}:
        return None
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not match:
        raise ValueError(text)
    days, *numbers = (int(group) if group else 0 for group in match.groups())
    first, second, third = numbers
    if match[1]:
        seconds = days * 86400 + first * 3600 + second * 60 + third
    elif match[4]:
        seconds = first * 3600 + second * 60 + third
    else:
        seconds = first * 60 + second
    return -(-seconds // 60) * 60 or None


def parse_memory(text):
    """A size in MiB. Raises ValueError."""
    match = re.fullmatch(r"(\d+)([KMGT]?)B?", text, re.IGNORECASE)
    if not match:
        raise ValueError(text)
    size = int(match[1])
    return {"K": -(-size // 1024), "": size, "M": size, "G": size << 10, "T": size << 20}[match[2].upper()]


def parse_signal_name(text):
    """A signal's number, of `USR1`, `SIGUSR1` or `10`. Raises ValueError."""
    try:
        if text.isdigit():
            return int(signal.Signals(int(text)))
        return int(signal.Signals["SIG" + text.upper().removeprefix("SIG")])
    except KeyError:
        raise ValueError(text) from None


def parse_signal(text):
    """`[R:|B:]SIGNAL[@seconds]` as [number, seconds, whether to the batch shell]. Raises ValueError."""
    match = re.fullmatch(r"(?:([RB]+):)?(\w+)(?:@(\d+))?", text)
    if not match:
        raise ValueError(text)
    return [parse_signal_name(match[2]), int(match[3] or 60), "B" in (match[1] or "")]


def parse_dependency(text):
    """`afterany:1:2,afterok:3` as [[kind, [id, ...]], ...], all of which must hold. Raises ValueError."""
    found = []
    for piece in text.split(","):
        kind, *ids = piece.split(":")
        if kind not in {"after", "afterany", "afterok", "afternotok"} or not ids:
            raise ValueError(piece)
        if not all(re.fullmatch(r"\d+(_\d+)?", one) for one in ids):
            raise ValueError(piece)
        found.append([kind, ids])
    return found
