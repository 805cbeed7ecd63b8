"""The application: every route, behind the guard and the token."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import metadata
from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic.json_schema import models_json_schema
from starlette.concurrency import run_in_threadpool

from api import (
    assets,
    page,
    page_compare,
    page_gpus,
    page_job,
    page_jobs,
    page_nights,
    page_plan,
    page_settings,
    page_submit,
    page_sweep,
    routes_acts,
    routes_compare,
    routes_diff,
    routes_estimate,
    routes_events,
    routes_fit,
    routes_inputs,
    routes_jobs,
    routes_login,
    routes_notify,
    routes_plan,
    routes_preview,
    routes_repeat,
    routes_report,
    routes_rig,
    routes_rigs,
    routes_runs,
    routes_sweeps,
    routes_telemetry,
)
from api.auth import Authenticated, Ended, Keys, Throttle, keep_token
from api.compress import Compressed
from api.context import Context
from api.documents import MAX_BATCH
from api.elsewhere import Elsewhere, HeldElsewhere
from api.guard import Guard
from api.hub import Hub
from api.night_keeper import NightKeeper
from api.nights import Nights
from api.problems import documented, install
from api.routes_preview import PreviewDocument
from api.sweep_views import Tables
from daemon.facts import Ledger
from daemon.settings import Settings
from daemon.store import Store
from jobs.pipeline import LOCAL_ID
from jobs.spec import KINDS
from jobs.sweep import SWEEP_DESCRIPTION, sweep_properties

DESCRIPTION = """Jobs for a GPU rig that works while its owner sleeps.

Every call but `/healthz` and `/readyz` needs `Authorization: Bearer <token>`. Errors are RFC 9457 problems."""

POSITION = {
    "type": "string",
    "pattern": "^(first|last|(before|after):[0-9]{1,18})$",
    "description": "Among the waiting jobs of its priority: first, last, before:139, after:139.",
}


def create_app(settings: Settings, store: Store, *, now: Callable[[], float] = time.time) -> FastAPI:
    """The API and the page of one rig. The first call makes the rig's token. Raises auth.TokenUnusable."""
    ended = Ended(settings.home / "logged-out.json", now)
    keys = Keys(keep_token(settings.token_file), store.use_once, now, ended=ended)
    hub, ledger, elsewhere = Hub(store), Ledger(store), Elsewhere(store, settings, now)
    nights = Nights(store, ledger, settings, now)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        routes_inputs.sweep_drafts(settings.inputs)
        hub.start()
        keeper = NightKeeper(app.state.context)
        keeper.start()
        yield
        keeper.close()
        hub.close()
        await run_in_threadpool(hub.join)
        nights.close()
        elsewhere.close()

    app = Api(
        title="Overnight",
        description=DESCRIPTION,
        version=_version(),
        lifespan=lifespan,
        responses=documented(422),
        openapi_url="/api/v1/openapi.json",
        docs_url=None,  # its scripts would come from a CDN
        redoc_url=None,
        redirect_slashes=False,  # a path that is not ours is nothing, whatever it ends with
    )
    app.state.settings, app.state.store, app.state.hub, app.state.ledger = settings, store, hub, ledger
    app.state.context = Context(
        settings, store, ledger, hub, keys, Throttle(), now, elsewhere, Tables(store, settings.runs), nights
    )
    install(app)

    async def hand_on(request: Request, error: Exception) -> Response:
        assert isinstance(error, HeldElsewhere)
        return await elsewhere.forward(request, error)

    app.add_exception_handler(HeldElsewhere, hand_on)
    for routes in (
        routes_jobs,
        routes_sweeps,
        routes_compare,
        routes_diff,
        routes_estimate,
        routes_fit,
        routes_preview,
        routes_runs,
        routes_repeat,
        routes_events,
        routes_inputs,
        routes_plan,
        routes_report,
        routes_rig,
        routes_rigs,
        routes_notify,
        routes_login,
        routes_telemetry,
    ):
        app.include_router(routes.router)
    app.include_router(routes_rig.health)
    app.include_router(routes_telemetry.prometheus)
    app.include_router(assets.router)
    app.include_router(page.router)
    for pages in (
        page_jobs, page_job, page_sweep, page_compare, page_gpus, page_nights, page_plan, page_settings, page_submit,
    ):  # fmt: skip
        app.include_router(pages.router)
    app.include_router(routes_acts.router)
    # the last one added is the first one asked
    app.add_middleware(Compressed)
    app.add_middleware(Authenticated, keys=keys, other_rig=elsewhere.admits)
    app.add_middleware(Guard, settings=settings)
    return app


class Api(FastAPI):
    """FastAPI, with the schemas of documents that are read by hand."""

    def openapi(self) -> dict[str, Any]:
        """OpenAPI 3.1."""
        if not self.openapi_schema:
            schema = super().openapi()
            schema["components"]["schemas"] |= document_schemas()
            schema["components"]["securitySchemes"] = {
                "token": {"type": "http", "scheme": "bearer"},
                "session": {"type": "apiKey", "in": "cookie", "name": "overnight_session"},
            }
            schema["security"] = [{"token": []}, {"session": []}]
            for path in ("/healthz", "/readyz"):
                schema["paths"][path]["get"]["security"] = []
        return self.openapi_schema or {}


JOB_ID = {"type": "string", "pattern": "^[1-9][0-9]*$"}


def document_schemas() -> dict[str, Any]:
    """JobDocument, BatchDocument and JobChanges, and what they are made of."""
    models = [(model, "validation") for model in (*KINDS.values(), PreviewDocument)]
    _, schema = models_json_schema(models, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    for model in KINDS.values():
        told = schema["$defs"][model.__name__]
        told["required"] = sorted({*told.get("required", ()), "kind"})  # its default is for the code, not for documents
    refs = {kind: f"#/components/schemas/{model.__name__}" for kind, model in KINDS.items()}
    member = {
        "type": "object",
        "description": "A job document. It may have a local `id`, by which others name it: `after: [ID]`, `job:ID`.",
        "required": ["kind"],
        "properties": {"id": {"type": "string", "pattern": f"^{LOCAL_ID.pattern}$"}, "kind": {"enum": list(KINDS)}},
    }
    return {
        **schema["$defs"],
        "JobDocument": {
            "oneOf": [{"$ref": ref} for ref in refs.values()],
            "discriminator": {"propertyName": "kind", "mapping": refs},
        },
        "BatchDocument": {
            "oneOf": [
                _object({"jobs": {"type": "array", "items": member, "minItems": 1, "maxItems": MAX_BATCH}}),
                _object(
                    {
                        "base": {"type": "object", "description": "A job document, without the fields of the sweep."},
                        "sweep": {"$ref": "#/components/schemas/SweepDocument"},
                    }
                ),
                _object(
                    {
                        "jobs": {"type": "array", "items": member, "minItems": 1, "maxItems": MAX_BATCH},
                        "sweep": {"$ref": "#/components/schemas/SweepDocument"},
                    }
                ),
            ]
        },
        "SweepDocument": {
            "type": "object",
            "description": SWEEP_DESCRIPTION,
            "minProperties": 1,
            "properties": sweep_properties(),
            "additionalProperties": {"type": "array", "minItems": 1},
        },
        "JobChanges": {
            "type": "object",
            "description": "Fields of the job's document as a JSON merge patch (RFC 7396), and these.",
            "minProperties": 1,
            "properties": {"held": {"type": "boolean"}, "position": POSITION},
        },
        "MoveDocument": _object(
            {"jobs": {"type": "array", "items": JOB_ID, "minItems": 1, "maxItems": 1_000}, "position": POSITION}
        ),
    }


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _version() -> str:
    try:
        return metadata.version("overnight")
    except metadata.PackageNotFoundError:
        return "0"  # run from a checkout
