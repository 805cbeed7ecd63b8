"""A night's report in words, the same in HTML and Markdown: headings, pairs of label and value, sentences. Pure."""

from collections.abc import Iterator
from zoneinfo import ZoneInfo

from api.wording import CAUSE_WORDS, clock, count, duration, energy, number, percent, words
from daemon.night.model import Best, Foretold, Group, Night, Ran, Repaired, Waits
from daemon.night.verdict import signed

COLOUR_WORDS = {"red": "Somebody is needed", "amber": "Not all of it can be trusted", "green": "All is well"}


def zone_of(night: Night) -> ZoneInfo:
    """The zone that its times are told in."""
    return ZoneInfo(night.zone)


def day_clock(at: float, night: Night) -> str:
    """Sat 22:10."""
    return clock(at, at + 2 * 86_400, zone_of(night))


def when(at: float, night: Night) -> str:
    """A time of day within the night, else with its day."""
    return clock(at, night.until, zone_of(night))


def heading(night: Night) -> str:
    """Night of 2026-11-21."""
    return f"Night of {night.date}"


def span_words(night: Night) -> str:
    """Sat 22:10 to Sun 07:32, 9 h 22 min, on rig."""
    span = f"{day_clock(night.since, night)} to {day_clock(night.until, night)}"
    return f"{span}, {duration(night.until - night.since)}, on {night.rig}" + ("" if night.over else " (so far)")


def facts(night: Night) -> list[tuple[str, str]]:
    """Hours, energy, heat, the rest: what was used and what it cost."""
    return [*_hours(night), *_energy(night), *_heat(night), *_rig(night)]


def _hours(night: Night) -> Iterator[tuple[str, str]]:
    hours = night.hours
    if hours.used_ratio is not None:
        share = f"{percent(hours.used_ratio)} of {duration(hours.available_s)}"
        yield "GPU time used", f"{duration(hours.used_s)}, {share}"
    for reason, seconds in hours.idle_s.items():
        if seconds >= 60:
            yield f"idle: {reason}", duration(seconds)


def _energy(night: Night) -> Iterator[tuple[str, str]]:
    used = night.energy
    if used.wall_j is not None:
        gaps = "" if used.coverage > 0.98 else f" ({percent(used.coverage)} of the time was measured)"
        yield "energy", energy(used.wall_j) + gaps
    if used.cost is not None:
        yield "cost", f"{used.cost:.2f} {used.currency}".strip()
    if used.co2_g is not None:
        yield "CO₂", f"{used.co2_g / 1000:.2f} kg"


def _heat(night: Night) -> Iterator[tuple[str, str]]:
    heat = night.heat
    if heat.temperature_max_c is None:
        return
    title = next((lane.title for lane in night.lanes if lane.slot == heat.slot), heat.slot)
    at = f", {when(heat.at, night)}" if heat.at is not None else ""
    yield "hottest", f"{number(heat.temperature_max_c)} °C ({title}{at})"
    slowed = [f"{words(name)} {duration(seconds)}" for name, seconds in heat.throttled_s.items() if seconds >= 1]
    yield "slowed down", ", ".join(slowed) or "never"


def _rig(night: Night) -> Iterator[tuple[str, str]]:
    if night.disk_free_bytes is not None:
        yield "disk free", f"{night.disk_free_bytes / 1e9:.0f} GB"
    for event in night.events[-5:]:
        code = f" {event.code}" if event.code is not None else ""
        yield f"{event.kind}{code}, {when(event.at, night)}", event.text


def group_title(group: Group) -> str:
    """6 x out of GPU memory, of sweep ranks."""
    title = f"{len(group.jobs)} x {group.words}"
    return f"{title}, sweep {group.sweep_name}" if group.sweep_name else title


def group_jobs(group: Group) -> str:
    """Whose they are, by number."""
    return ", ".join(f"#{job}" for job in group.jobs[:12]) + (
        f" and {len(group.jobs) - 12} more" if len(group.jobs) > 12 else ""
    )


def waited_words(group: Group) -> str:
    """What they took along."""
    return f"{count(len(group.waited), 'job')} that waited for it did not run." if group.waited else ""


def repaired_words(one: Repaired) -> str:
    """out of GPU memory; per_device_train_batch_size 8 → 4; it has succeeded since."""
    parts = [one.words, one.changed, "it has succeeded since" if one.done else "it is tried again"]
    return "; ".join(part for part in parts if part)


def best_words(best: Best) -> str:
    """eval_loss 1.108, -17 % against 1.342 (the sweep's base)."""
    said = f"{best.metric} {number(best.value)}"
    if best.baseline is None:
        return said
    change = f"{signed(best.change)} " if best.change is not None else ""
    judged = "" if best.better is None else ", better" if best.better else ", not better"
    return (
        f"{said}, {change}against {number(best.baseline.value)} of #{best.baseline.job} ({best.baseline.why}{judged})"
    )


def waits_words(waits: Waits, night: Night) -> str:
    """What is left and when it is done."""
    running = night.counts.running
    if not waits.count and not running:
        return "Nothing waits and nothing runs."
    said = f"{count(waits.count, 'job')} waiting, {number(running)} running"
    if waits.drains_at is not None:
        guess = "" if waits.sure else ", which rests on a guess"
        said += f"; done about {clock(waits.drains_at, night.made_at, zone_of(night))}{guess}"
    return said + (f"; {count(waits.never, 'job')} will not start as things stand." if waits.never else ".")


def foretold_words(told: Foretold, night: Night) -> str:
    """What was promised, what came."""
    said = f"Forecast at {when(told.at, night)}: {number(told.promised)} done by now; {number(told.kept)} of them are."
    if told.median_late_s is not None and abs(told.median_late_s) >= 60:
        side = "later" if told.median_late_s > 0 else "earlier"
        said += f" Half of all ended more than {duration(abs(told.median_late_s))} {side} than promised."
    if told.missed:
        named = ", ".join(f"#{job}" for job in told.missed[:10])
        said += f" Not done: {named}{' and more' if len(told.missed) > 10 else ''}."
    if told.unforeseen:
        said += f" {count(told.unforeseen, 'job')} came later and {'is' if told.unforeseen == 1 else 'are'} done, too."
    return said


def result_words(ran: Ran) -> str:
    """What came out, or why nothing did."""
    parts = [f"{ran.metric} {number(ran.value)}"] if ran.metric and ran.value is not None else []
    parts += [CAUSE_WORDS[ran.cause]] if ran.cause else []
    parts += [f"{ran.attempts} runs"] if ran.attempts > 1 else []
    parts += [f"low use: its GPUs were {percent(ran.low_use)} busy"] if ran.low_use is not None else []
    return ", ".join(parts)


def took_words(ran: Ran, night: Night) -> str:
    """From when to when."""
    start = when(ran.start, night) if ran.start is not None else ""
    return f"{start} to {when(ran.end, night)}" if ran.end is not None else f"from {start}" if start else ""
