"""Which jobs must not be forked from a preloaded process."""

from typing import Any

import pytest

from workers.warm import needs_cold_start


@pytest.mark.parametrize(
    ("document", "cold"),
    [
        ({"kind": "finetune", "method": "lora", "optim": "adamw_torch_fused"}, False),
        ({"kind": "finetune", "method": "qlora", "optim": "adamw_torch_fused"}, True),
        ({"kind": "finetune", "method": "full", "optim": "paged_adamw_8bit"}, True),
        ({"kind": "benchmark", "quantizations": ["none", "nf4"]}, True),
        ({"kind": "benchmark", "quantizations": ["none"]}, False),
        ({"kind": "generate"}, False),
    ],
)
def test_what_needs_bitsandbytes_starts_cold(document: dict[str, Any], cold: bool) -> None:
    """There the package is hidden: its import would touch CUDA in the process that forks."""
    assert needs_cold_start(document) is cold
