"""Made-up requests by the API's own OpenAPI: none makes it fail, and what it answers is what it promises.

A short run, the same each time. For a long one against a running rig, with its token:
`schemathesis run http://127.0.0.1:2200/api/v1/openapi.json -H "Authorization: Bearer TOKEN" --phases coverage,fuzzing`
"""

import json
import re
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from live_api import NOW
from starlette.testclient import TestClient

from daemon.store import Store

#: These answer with a stream that does not end.
ENDLESS = ["followAll", "followJob"]
EXAMPLES = 3


def test_no_made_up_request_makes_the_api_fail_or_break_its_word(app: FastAPI, token: str, store: Store) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    owner = {"Authorization": f"Bearer {token}", "Host": "localhost"}
    schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", app, headers=owner).exclude(operation_id=ENDLESS)
    names = ("status_code_conformance", "content_type_conformance", "response_schema_conformance")
    checks = [schemathesis.checks.not_a_server_error, *schemathesis.checks.CHECKS.get_by_names(names)]
    quiet = settings(
        max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    tried = 0
    for found in schema.get_all_operations():
        operation = found.ok()

        @quiet
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            store.beat("rig", {"at": NOW})  # on a slow machine an earlier one would be forgotten by now
            case.call_and_validate(headers=owner, checks=checks)

        ask()
        tried += 1
    assert tried > 40


def test_every_reference_in_the_openapi_is_there(client: TestClient) -> None:
    described = client.get("/api/v1/openapi.json").json()
    for name in re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(described)):
        found = described
        for part in name.split("/"):
            assert part in found, name
            found = found[part]


def test_a_document_without_its_kind_breaks_the_schema_as_it_breaks_the_rules(client: TestClient) -> None:
    schemas = client.get("/api/v1/openapi.json").json()["components"]["schemas"]
    for option in schemas["JobDocument"]["oneOf"]:
        assert "kind" in schemas[option["$ref"].rpartition("/")[2]]["required"]
    assert client.post("/api/v1/jobs", json={"argv": ["true"]}).status_code == 422


@pytest.mark.parametrize(
    "asked",
    [
        "telemetry?end=2437321188280409", "telemetry?start=nan", "telemetry?start=0&end=inf", "telemetry?slot=",
        "telemetry/idle?end=1e17", "telemetry/export?start=1e16&end=2e16", "report?night=0", "report?night=20261125",
    ],
)  # fmt: skip
def test_moments_without_a_date_are_refused_and_no_failure(client: TestClient, asked: str) -> None:
    assert client.get(f"/api/v1/{asked}").status_code == 422
