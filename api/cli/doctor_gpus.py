"""What `overnight doctor` says of the GPUs, from what a process of its own asked the driver: no check waits for a wedged one."""

from collections.abc import Iterator, Mapping
from typing import Any

from api.cli import output
from api.cli.checks import FAIL, OK, WARN, Check

Json = Mapping[str, Any]

#: Below this distance to the temperature at which it slows down, a GPU has no room for a warm night.
ROOM_C = 8
#: Packets sent again on the link since the driver was loaded: a few are nothing.
MANY_REPLAYS = 100
#: Seconds slowed down since the driver was loaded that are worth a word.
SLOW_S = 60
#: The link's generation idles low: it is told under load only.
BUSY_RATIO, BUSY_PSTATE = 0.5, 2
#: Drivers whose lists of processes cannot be read (NVML's structure was another one for a while).
GARBLED = ((535, 43), (535, 85))


def check_gpus(found: Json) -> Iterator[Check]:
    """Every check of the machine's GPUs."""
    problem, cards = found.get("problem"), found.get("gpus") or []
    names = [card["gpu"]["name"] for card in cards]
    if found.get("replaced") and not names:
        yield Check(FAIL, "driver", "it was replaced while in use: nothing new can use the GPUs", "Reboot.")
        return
    if not names:
        yield Check(WARN, "gpus", f"none, so jobs run on CPU slots ({problem or 'no NVIDIA driver'})", "Install the NVIDIA driver, if there is a GPU.")  # fmt: skip
        return
    text = f"{len(names)}: {', '.join(sorted(set(names)))}"
    yield Check(WARN, "gpus", f"{text}; {problem}", "Look at nvidia-smi.") if problem else Check(OK, "gpus", text)
    yield driver(found)
    yield kernel_log(found.get("kernel_log"))
    for card in cards:
        label = f"gpu {card['gpu']['index']}"
        for check in (link, power, heat, memory, recovery, sharing):
            if told := check(label, card):
                yield told


def driver(found: Json) -> Check:
    """Its version, and whether it was replaced under us."""
    cards = found["gpus"]
    version = cards[0]["gpu"]["driver"]
    if found.get("replaced"):
        return Check(FAIL, "driver", f"{version} was replaced while in use: new jobs cannot use the GPUs", "Reboot.")
    if GARBLED[0] <= tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) <= GARBLED[1]:
        return Check(WARN, "driver", f"{version} tells wrong processes", "Install a later driver: whose memory it is cannot be told.")  # fmt: skip
    if not all(card.get("persistence") for card in cards):
        return Check(OK, "driver", f"{version}, without persistence mode", "`sudo nvidia-smi -pm 1` keeps the energy counters and saves each job a second.")  # fmt: skip
    return Check(OK, "driver", version)


def kernel_log(source: str | None) -> Check:
    """XIDs 79, 119 and 120 are often told there only."""
    if source is None:
        return Check(WARN, "xids", "the kernel's log cannot be read: some GPU faults are not seen", "Add the user to the group adm or systemd-journal, and log in anew.")  # fmt: skip
    return Check(OK, "xids", f"from the kernel's log ({source}) and from NVML")


def link(label: str, card: Json) -> Check | None:
    """Width and generation of the PCIe link, and whether it loses packets."""
    now = card["now"]
    width, widest = now.get("pcie_width"), now.get("pcie_width_max")
    generation, highest = now.get("pcie_generation"), now.get("pcie_generation_max")
    if not width or not generation:
        return None
    text = f"PCIe {generation}.0 x{width}"
    fix = "Seat the card anew, look at the riser cable, and at the slot's lanes in the board's manual."
    if (replays := now.get("pcie_replays") or 0) > MANY_REPLAYS:
        return Check(WARN, label, f"{text}; {replays} packets were sent again: a poor riser or slot", fix)
    if widest and width < widest:
        return Check(WARN, label, f"{text} of x{widest}: loading and gangs are slower", fix)
    busy = (now.get("utilization_ratio") or 0) >= BUSY_RATIO or (now.get("pstate") or 15) <= BUSY_PSTATE
    if not busy:
        return Check(OK, label, f"{text} at rest; its generation under load shows while a job runs (up to {highest}.0)")
    if highest and generation < highest:
        return Check(WARN, label, f"{text} under load, {highest}.0 is possible", "Set the slot's generation in the firmware; look at the riser cable.")  # fmt: skip
    return Check(OK, label, f"{text} under load")


def power(label: str, card: Json) -> Check | None:
    """The limit in force, beside the usual one."""
    limit_w, watts = card["gpu"].get("power_limit_w"), (card.get("limits") or {}).get("power_mw") or {}
    usual, most = watts.get("default"), watts.get("max")
    if limit_w is None or not usual:
        return None
    text = f"power limit {limit_w:.0f} W (usual {usual / 1000:.0f}, at most {(most or usual) / 1000:.0f})"
    if slowed := _slowed(card, "power_brake"):
        return Check(FAIL, label, f"{text}; the power supply braked it for {slowed}", "Check its power cables, and whether the supply is large enough.")  # fmt: skip
    return Check(OK, label, text)


def heat(label: str, card: Json) -> Check | None:
    """Room until it slows down, and how often it had none."""
    now = card["now"]
    temp, limit = now.get("temperature_c"), now.get("throttle_temperature_c")
    if temp is None:
        return None
    fix = "Clean its fans, give the cards air, or lower the power limit: `sudo nvidia-smi -pl 280` costs little speed."
    slowed = _slowed(card, "sw_thermal") or _slowed(card, "hw_thermal")
    if limit is None:
        text = f"{temp:.0f} °C; where it slows down is not told"
    else:
        text = f"{temp:.0f} °C, slows down at {limit:.0f} °C"
        if limit - temp < ROOM_C:
            return Check(WARN, label, f"{text}: no room for a warm night", fix)
    if slowed:
        cool = " though its core is cool: its memory may be too hot" if limit and limit - temp >= 2 * ROOM_C else ""
        return Check(WARN, label, f"{text}; heat slowed it down for {slowed} since the driver was loaded{cool}", fix)
    return Check(OK, label, text)


def memory(label: str, card: Json) -> Check | None:
    """ECC, where the card has it."""
    if card.get("ecc") is None:
        return None
    if not card["ecc"]:
        return Check(OK, label, "ECC is off", "`sudo nvidia-smi -e 1` and a reboot turn it on: a few per cent of memory for certainty.")  # fmt: skip
    if (errors := card["now"].get("ecc_uncorrected") or 0) > 0:
        return Check(FAIL, label, f"ECC counted {errors} errors that it could not correct", "Reboot, and check it: `overnight gpus check`. If they come back, the card is broken.")  # fmt: skip
    _, replaced, pending, failed = card.get("remapped_rows") or (0, 0, 0, 0)
    if failed:
        return Check(FAIL, label, "a broken memory row could not be replaced", "The card must be exchanged: NVIDIA's warranty asks for `nvidia-smi -q -d ROW_REMAPPER`.")  # fmt: skip
    if pending:
        return Check(
            WARN, label, "a broken memory row is replaced at the next reset", "Reboot when its jobs have ended."
        )
    rows = f"; {replaced} broken rows were replaced" if replaced else ""
    return Check(OK, label, f"ECC is on and counted no error that it could not correct{rows}")


def recovery(label: str, card: Json) -> Check | None:
    """What the driver asks for."""
    now = card["now"]
    if now.get("state") not in (None, "ok"):
        return Check(FAIL, label, f"it is {now['state']}: the driver does not answer for it", "Look at the kernel's log; a reboot often helps.")  # fmt: skip
    if now.get("recovery_action"):
        return Check(FAIL, label, "the driver asks for a reset or a reboot before new work", "Reboot when its jobs have ended.")  # fmt: skip
    return None


def sharing(label: str, card: Json) -> Check | None:
    """MIG, and a screen."""
    if card["gpu"].get("mig"):
        return Check(
            WARN, label, "it is split by MIG, so it gets no jobs", "`sudo nvidia-smi -i N -mig 0` makes it whole."
        )
    if card.get("display"):
        return Check(OK, label, "a screen hangs on it: the desktop takes some of its memory")
    return None


def _slowed(card: Json, reason: str) -> str:
    seconds = (card["now"].get("throttled_s") or {}).get(reason) or 0
    return output.duration(seconds) if seconds >= SLOW_S else ""
