"""Which jobs may be forked from a preloaded worker."""

from typing import Any

import pytest

from jobs.spec import dump, parse
from workers.warm import needs_cold_start


@pytest.mark.parametrize(
    ("fields", "cold"),
    [
        ({"kind": "finetune"}, False),
        ({"kind": "finetune", "method": "qlora"}, True),
        ({"kind": "finetune", "optim": "paged_adamw_8bit"}, True),
        ({"kind": "generate"}, False),
        ({"kind": "benchmark"}, False),
        ({"kind": "benchmark", "quantizations": ["none", "int8"]}, True),
        ({"kind": "command", "argv": ["true"]}, False),
    ],
)
def test_what_needs_bitsandbytes_starts_cold(fields: dict[str, Any], cold: bool) -> None:
    data = {"data": "d"} if fields["kind"] in ("finetune", "generate") else {}
    model = {"model": "m"} if fields["kind"] != "command" else {}
    assert needs_cold_start(dump(parse({**fields, **data, **model}))) is cold
