"""Lines for log.txt: short, for people, and there at once."""

_quiet = False


def be_quiet() -> None:
    """From now on this process says nothing: another one tells the same."""
    global _quiet
    _quiet = True


def say(line: str) -> None:
    """One line for the log."""
    if not _quiet:
        print(line, flush=True)


def clock_time(seconds: float) -> str:
    """1:02:03, or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
