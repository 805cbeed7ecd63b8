"""Answer requests with vLLM. Run by the Python of an environment that has it: `PYTHON jobs/vllm_driver ORDER.json`.

Imports nothing of ours, and only the standard library beside vLLM. Lines of JSON, one shard each, on stdin:

    {"requests": [{"key", "tokens": [ids], "adapter": name or null, "sampling": {...}}]}

and on stdout first {"ready": version}, then for each shard {"answers": [{"key", "samples": [{"text", "tokens", "finish_reason"}]}
or {"key", "error"}]}. A line {"fatal": text} is the last one. Everything that vLLM prints goes to stderr.
"""

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

#: Ranks that vLLM takes.
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


def main(order_path: str) -> None:
    """Load the model, then answer shards until stdin ends."""
    lines = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # what vLLM prints is no answer
    try:
        driver = Driver(json.loads(Path(order_path).read_text(encoding="utf-8")))
        _say(lines, {"ready": driver.version})
        for line in sys.stdin:
            _say(lines, {"answers": driver.answers(json.loads(line)["requests"])})
    except Exception as error:  # whatever it is, the recipe must hear of it
        _say(lines, {"fatal": f"{type(error).__name__}: {error}"})
        raise


class Driver:
    """vLLM's LLM with the job's model and adapters."""

    def __init__(self, order: dict[str, Any]):
        import vllm
        from vllm.lora.request import LoRARequest

        self.version = vllm.__version__
        self._sampling_params = vllm.SamplingParams
        self._ends = set(order["ends"])
        adapters = {name: path for name, path in order["adapters"].items() if path}
        options: dict[str, Any] = {}
        if adapters:
            options = {"enable_lora": True, "max_loras": len(adapters), "max_lora_rank": _rank(adapters.values())}
        self._llm = vllm.LLM(
            model=order["model"],
            revision=order["revision"],
            tokenizer=order["tokenizer"],
            dtype=order["dtype"],
            tensor_parallel_size=order["gpus"],
            max_model_len=order["max_model_len"],
            trust_remote_code=order["trust_remote_code"],
            seed=0,
            **options,
        )
        self._loras = {name: LoRARequest(name, number, path) for number, (name, path) in enumerate(adapters.items(), 1)}

    def answers(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Answers of a shard, in its order. A request that vLLM refuses must not take the others along."""
        try:
            return self._answers(requests)
        except (ValueError, TypeError) as error:
            if len(requests) == 1:
                return [{"key": requests[0]["key"], "error": str(error)}]
        return [answer for request in requests for answer in self.answers([request])]

    def _answers(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        outputs = self._llm.generate(
            [{"prompt_token_ids": request["tokens"]} for request in requests],
            [self._sampling_params(**request["sampling"], stop_token_ids=sorted(self._ends)) for request in requests],
            use_tqdm=False,
            lora_request=[self._loras.get(request["adapter"]) for request in requests] if self._loras else None,
        )
        return [
            {"key": request["key"], "samples": [self._sample(one) for one in sorted(output.outputs, key=_index)]}
            for request, output in zip(requests, outputs, strict=True)
        ]

    def _sample(self, output: Any) -> dict[str, Any]:
        tokens = list(output.token_ids)
        ended = bool(tokens) and tokens[-1] in self._ends
        reason = "length" if output.finish_reason == "length" else "stop"
        return {"text": output.text, "tokens": len(tokens) - ended, "finish_reason": reason}


def _rank(folders: Iterable[str]) -> int:
    ranks: list[int] = []
    for folder in folders:
        config = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
        ranks.append(max([config["r"], *(config.get("rank_pattern") or {}).values()]))
    return next((rank for rank in LORA_RANKS if rank >= max(ranks)), max(ranks))


def _index(output: Any) -> int:
    return int(output.index)


def _say(lines: TextIO, value: dict[str, Any]) -> None:
    lines.write(json.dumps(value) + "\n")
    lines.flush()


if __name__ == "__main__":
    main(sys.argv[1])
