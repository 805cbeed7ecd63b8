"""Supervised fine-tuning by TRL's SFTTrainer. With jobs.preferences the only module that knows TRL."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trl import SFTConfig, SFTTrainer  # noqa: TID253

from jobs.trainers import Sealed, arguments
from jobs.weights import Device


class SftTrainer(Sealed, SFTTrainer):  # type: ignore[misc]
    """Learns the tokens that are labelled."""


def trainer(spec: Mapping[str, Any], device: Device, drafts: Path, **parts: Any) -> SftTrainer:
    """A trainer for rows of `input_ids` and `labels`."""
    config = SFTConfig(
        **arguments(spec, device, drafts),
        loss_type=spec["loss_type"] or "nll",
        packing=spec["packing"],
        packing_strategy="bfd_split",
        eval_packing=False,
        # without packing the rows are as they must be; TRL would only copy them
        dataset_kwargs={"skip_prepare_dataset": not spec["packing"]},
    )
    return SftTrainer(args=config, **parts)
