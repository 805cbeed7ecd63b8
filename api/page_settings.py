"""The page of the settings in force: read-only, with what each means and where it comes from.

/settings
"""

from typing import Any

import redis
from fastapi import APIRouter
from fastapi.responses import Response

from api import page, panels, routes_rig, settings_panel
from api.context import Context, Rig
from daemon.places import Refused
from daemon.rig_secrets import read_secrets
from daemon.settings import InvalidSettings, Settings, load

router = APIRouter(include_in_schema=False)


@router.get("/settings")
def settings_page(rig: Rig) -> Response:
    """Settings, slots, versions, names of secrets."""
    frame, settings = page.frame(rig), rig.settings
    file, broken = _file(settings)
    groups = settings_panel.shown(settings, _told_origins(rig), file)
    every = [one for _, group in groups for one in group]
    names, secrets_problem = _secret_names(settings)
    shown: dict[str, Any] = {
        "groups": groups,
        "changed": sum(not one.is_default for one in every),
        "amount": len(every),
        "pending": [one for one in every if one.pending],
        "broken": broken,
        "secrets": names,
        "secrets_problem": secrets_problem,
        "versions": routes_rig.versions(),
        "slots": panels.slots(frame["snap"]),
        "sources": settings_panel.ORIGIN_WORDS,
    }
    return page.render("settings.html", rig, **frame, **shown)


def _told_origins(rig: Context) -> dict[str, str] | None:
    """Where each value comes from, as the daemon told at its start."""
    try:
        return rig.store.rigs().get(rig.settings.rig, {}).get("origins")
    except redis.RedisError:
        return None


def _file(settings: Settings) -> tuple[Settings | None, str]:
    """What config.toml alone says by now; second: why it cannot be used."""
    try:
        return load({"home": settings.home, "rig": settings.rig}, {}), ""
    except InvalidSettings as error:
        return None, str(error)


def _secret_names(settings: Settings) -> tuple[list[str], str]:
    try:
        return sorted(read_secrets(settings.secrets_file)), ""
    except (Refused, OSError) as error:
        return [], str(error)
