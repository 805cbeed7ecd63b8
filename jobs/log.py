"""Lines for log.txt: short, for people, and there at once."""


def say(line: str) -> None:
    """One line for the log."""
    print(line, flush=True)


def clock_time(seconds: float) -> str:
    """1:02:03, or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
