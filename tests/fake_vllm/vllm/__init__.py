"""A stand-in for vLLM with the names, signatures and outputs of the real one (0.33) that our driver uses, and no model.

It answers with what it was asked. `FAKE_VLLM` says how it fails: `load`, `large` (does not fit), `slow`; in its second shard `memory`,
or `dies` (is killed, and a process of its own still holds the pipe).
"""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm.lora.request import LoRARequest

__version__ = "0.33.0"
#: A prompt of so many tokens is refused, as one that is too long is by the real one.
REFUSED_LENGTH = 13


@dataclass
class SamplingParams:
    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    max_tokens: int | None = 16


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: Sequence[int]
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    request_id: str
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput] = field(default_factory=list)


class LLM:
    def __init__(
        self,
        model: str,
        *,
        tokenizer: str | None = None,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        revision: str | None = None,
        seed: int = 0,
        max_model_len: int | None = None,
        enable_lora: bool = False,
        max_loras: int = 1,
        max_lora_rank: int = 16,
    ) -> None:
        print("INFO: loading, on standard output as the real one does")
        if os.environ.get("FAKE_VLLM") == "load":
            raise ValueError("No available memory for the cache blocks.")
        if os.environ.get("FAKE_VLLM") == "large":
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        self.enable_lora, self.max_lora_rank, self.shards = enable_lora, max_lora_rank, 0

    def generate(
        self,
        prompts: Sequence[dict[str, Any]],
        sampling_params: Sequence[SamplingParams],
        *,
        use_tqdm: bool = True,
        lora_request: Sequence[LoRARequest | None] | None = None,
    ) -> list[RequestOutput]:
        self.shards += 1
        if os.environ.get("FAKE_VLLM") == "memory" and self.shards == 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if os.environ.get("FAKE_VLLM") == "dies" and self.shards == 2:
            if os.fork():
                os.kill(os.getpid(), signal.SIGKILL)
            os.read(0, 1)  # until the recipe gives up
            os._exit(0)
        if os.environ.get("FAKE_VLLM") == "slow":
            time.sleep(0.5)
        if any(len(prompt["prompt_token_ids"]) == REFUSED_LENGTH for prompt in prompts):
            raise ValueError("The decoder prompt is longer than the maximum model length.")
        loras: Sequence[LoRARequest | None] = lora_request or [None] * len(prompts)
        assert len(prompts) == len(sampling_params) == len(loras)
        return [self._output(*each) for each in zip(prompts, sampling_params, loras, strict=True)]

    def _output(self, prompt: dict[str, Any], asked: SamplingParams, lora: LoRARequest | None) -> RequestOutput:
        assert lora is None or (self.enable_lora and os.path.isdir(lora.lora_path))
        tokens = prompt["prompt_token_ids"]
        said = f"{lora.lora_name if lora else 'base'} {len(tokens)} {asked.max_tokens} {asked.seed}"
        ended = [7, *(asked.stop_token_ids or [])[:1]]
        outputs = [CompletionOutput(n, f"{said} #{n}", ended, "stop") for n in range(asked.n)]
        return RequestOutput("0", tokens, outputs[::-1])
