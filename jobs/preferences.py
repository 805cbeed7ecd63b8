"""Learning from preferences by TRL: pairs of a better and a worse answer (DPO), or answers marked good or bad (KTO)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer  # noqa: TID253

from jobs.spec.finetune import BETA
from jobs.trainers import Prepared, Sealed, arguments
from jobs.weights import Device


class DpoTrainer(Prepared, Sealed, DPOTrainer):  # type: ignore[misc]
    """Learns to find the chosen answer likelier than the rejected one."""


class KtoTrainer(Prepared, Sealed, KTOTrainer):  # type: ignore[misc]
    """Learns to find good answers likelier and bad ones less likely."""


def dpo(spec: Mapping[str, Any], device: Device, drafts: Path, **parts: Any) -> DpoTrainer:
    """A trainer for rows of `prompt_ids`, `chosen_ids` and `rejected_ids`."""
    loss = [spec["loss_type"] or "sigmoid"]
    config = DPOConfig(**arguments(spec, device, drafts), beta=spec["beta"] or BETA, loss_type=loss)
    return DpoTrainer(args=config, **parts)


def kto(spec: Mapping[str, Any], device: Device, drafts: Path, **parts: Any) -> KtoTrainer:
    """A trainer for rows of `prompt_ids`, `completion_ids` and `label`.

    They are shuffled once, here: each micro-batch is compared with its own answers in another order, so its rows must stay together.
    """
    config = KTOConfig(
        **arguments(spec, device, drafts),
        beta=spec["beta"] or BETA,
        desirable_weight=spec["desirable_weight"],
        undesirable_weight=spec["undesirable_weight"],
    )
    train, evaluated = parts.pop("train_dataset"), parts.pop("eval_dataset")
    train = _with_others(train.shuffle(seed=spec["seed"]), spec["per_device_train_batch_size"])
    if evaluated is not None:
        evaluated = _with_others(evaluated, spec["per_device_eval_batch_size"])
    return KtoTrainer(args=config, train_dataset=train, eval_dataset=evaluated, **parts)


def _with_others(rows: Any, size: int) -> Any:
    """Beside each row the answer of the row before it in its micro-batch, as TRL pairs them."""

    def paired(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        answers = batch["completion_ids"]
        return {"KL_completion_ids": [answers[-1], *answers[:-1]]}

    return rows.map(paired, batched=True, batch_size=size)
