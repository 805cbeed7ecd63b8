"""The engines beside each other on real weights: the same answers, one prompt at a time, in padded batches, and continuously."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from attempts import run_folder
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from jobs.generation import continuous
from jobs.generation.answers import Answer, Sample
from jobs.generation.batches import Batches
from jobs.generation.continuous import Continuous
from jobs.generation.drawing import Draw, Drawing
from jobs.generation.engine import OUT_OF_MEMORY, Engine, Loaded, Unsupported
from jobs.generation.memory import Size
from jobs.generation.requests import Request
from jobs.generation.sampling import Sampling, of_row
from jobs.run import Interrupted, JobError, Order, Run

ROWS = 6
SMALL = Size(sequences=4, pages=40, step_tokens=48)


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> Iterator[Loaded]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    ends = [tokenizer.eos_token_id]
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    yield Loaded(model=model, tokenizer=tokenizer, device="cpu", ends=ends)
    torch.set_num_threads(threads)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    folder = run_folder(tmp_path, {"kind": "generate", "model": "m", "data": "d"}, {})
    return Run(folder, Order.read(folder))


@pytest.fixture
def drawing(loaded: Loaded) -> Drawing:
    return Drawing(loaded.ends, lambda tokens: str(loaded.tokenizer.decode(tokens, skip_special_tokens=True)))


@pytest.fixture
def ask(loaded: Loaded) -> Callable[..., list[Request]]:
    """Prompts of mixed lengths, with these parameters."""

    def made(**parameters: Any) -> list[Request]:
        sampling = Sampling(**{"max_new_tokens": 7, **parameters})
        texts = ["Where is the bolt? " * (1 + row * 5 % 7) for row in range(ROWS)]
        return [
            Request(row, {"prompt": text}, loaded.tokenizer(text)["input_ids"], of_row(sampling, 42, row))
            for row, text in enumerate(texts)
        ]

    return made


def answered(engine: Engine, requests: Sequence[Request]) -> list[Answer]:
    found: list[Answer] = []
    engine.answer(requests, found.extend)
    assert len({answer.request.key for answer in found}) == len(found)
    return sorted(found, key=lambda answer: answer.request.index)


def samples(answers: Sequence[Answer]) -> list[list[Sample]]:
    return [list(answer.samples) for answer in answers]


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"temperature": 0.9, "top_p": 0.9, "top_k": 50, "min_p": 0.01, "repetition_penalty": 1.2, "n": 2},
        {"stop": ("and", "I")},
    ],
    ids=["greedy", "drawn", "stopped"],
)
def test_every_engine_gives_the_same_answers(
    loaded: Loaded, run: Run, drawing: Drawing, ask: Callable[..., list[Request]], parameters: dict[str, Any]
) -> None:
    requests = ask(**parameters)
    alone = samples(answered(Batches(run, loaded, drawing, 1), requests))
    assert samples(answered(Batches(run, loaded, drawing, 4), requests)) == alone
    assert samples(answered(Continuous(run, loaded, drawing, SMALL), requests)) == alone
    assert all(len(each) == parameters.get("n", 1) for each in alone)
    assert len({sample.text for each in alone for sample in each}) > 1


def test_greedy_is_what_transformers_says_by_itself(
    loaded: Loaded, run: Run, drawing: Drawing, ask: Callable[..., list[Request]]
) -> None:
    requests = ask()[:3]
    for request, (sample,) in zip(
        requests, samples(answered(Continuous(run, loaded, drawing, SMALL), requests)), strict=True
    ):
        ids = torch.tensor([list(request.tokens)])
        plain = loaded.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=7, do_sample=False)
        assert sample.text == loaded.tokenizer.decode(plain[0, ids.shape[1] :], skip_special_tokens=True)


def test_each_request_has_its_own_parameters_in_one_batch(
    loaded: Loaded, run: Run, drawing: Drawing, ask: Callable[..., list[Request]]
) -> None:
    greedy, drawn = ask(), ask(temperature=1.0, max_new_tokens=4)
    mixed = [(drawn if row % 2 else greedy)[row] for row in range(ROWS)]
    alone = samples(answered(Batches(run, loaded, drawing, 1), mixed))
    assert samples(answered(Continuous(run, loaded, drawing, SMALL), mixed)) == alone
    assert samples(answered(Batches(run, loaded, drawing, 4), mixed)) == alone
    assert max(sample.tokens for row in range(1, ROWS, 2) for sample in alone[row]) == 4


def test_a_stop_is_seen_before_the_next_batch(
    loaded: Loaded, run: Run, drawing: Drawing, ask: Callable[..., list[Request]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run.stop_requested = True
    monkeypatch.setattr(continuous, "STOP_PATIENCE_S", 0.0)
    for engine in (Batches(run, loaded, drawing, 4), Continuous(run, loaded, drawing, SMALL)):
        with pytest.raises(Interrupted):
            answered(engine, ask())


# -- draws --------------------------------------------------------------------------------------------------------------


def test_draws_follow_the_models_probabilities() -> None:
    shares = torch.tensor([0.5, 0.3, 0.15, 0.04, 0.01])
    request = Request(0, {}, [1], Sampling(temperature=1.0, stream="42/0"))
    draws = [Draw(request, 0, range(step)) for step in range(4000)]
    chosen = Drawing([0], lambda tokens: "")(shares.log().expand(len(draws), 5), draws).argmax(dim=-1)
    counts = torch.bincount(chosen, minlength=5)
    expected = shares * len(draws)
    assert float((((counts - expected) ** 2) / expected).sum()) < 18.5  # chi-squared with 4 degrees of freedom, 0.1 %


def test_filters_are_those_of_transformers() -> None:
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores = torch.randn(4, 500, generator=torch.Generator().manual_seed(1)) * 3
    for parameters, warpers in (
        ({"top_k": 7}, [TopKLogitsWarper(7)]),
        ({"top_p": 0.8}, [TopPLogitsWarper(0.8)]),
        ({"top_k": 50, "top_p": 0.9, "min_p": 0.02}, [TopKLogitsWarper(50), TopPLogitsWarper(0.9), MinPLogitsWarper(0.02)]),
    ):  # fmt: skip
        request = Request(0, {}, [1], Sampling(temperature=1.0, **parameters))
        ours = Drawing([0], lambda tokens: "")(scores, [Draw(request, 0, ())] * 4)
        theirs = scores
        for warper in warpers:
            theirs = warper(None, theirs)
        assert torch.equal(ours.isinf(), theirs.isinf())


# -- memory: torch's own error, raised where a GPU would raise it -------------------------------------------------------


class SmallGpu(Batches):
    """Answers at most `fits` sequences at a time."""

    def __init__(self, run: Run, loaded: Loaded, drawing: Drawing, rows: int, fits: int):
        super().__init__(run, loaded, drawing, rows)
        self.fits = fits
        self.sizes: list[int] = []

    def samples(self, batch: Sequence[Any]) -> list[Sample]:
        self.sizes.append(len(batch))
        if len(batch) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [Sample("x", 1, "stop") for _ in batch]


def test_a_batch_that_does_not_fit_is_halved_until_it_does(
    loaded: Loaded, run: Run, drawing: Drawing, ask: Callable[..., list[Request]]
) -> None:
    gpu = SmallGpu(run, loaded, drawing, 8, fits=3)
    assert len(answered(gpu, ask())) == ROWS
    assert gpu.sizes == [6, 3, 3]


def test_a_gpu_without_room_for_one_prompt_fails_the_job(
    loaded: Loaded, run: Run, drawing: Drawing, ask: Callable[..., list[Request]]
) -> None:
    with pytest.raises(JobError, match="even one prompt at a time") as caught:
        answered(SmallGpu(run, loaded, drawing, 8, fits=0), ask())
    assert caught.value.cause == "oom_gpu"
    assert not caught.value.next_fields


def test_one_prompt_that_does_not_fit_has_its_error(
    loaded: Loaded, run: Run, drawing: Drawing, ask: Callable[..., list[Request]]
) -> None:
    class LongOnesDoNotFit(SmallGpu):
        def samples(self, batch: Sequence[Any]) -> list[Sample]:
            self.fits = 0 if any(len(each.request.tokens) > 30 for each in batch) else 8
            return super().samples(batch)

    found = answered(LongOnesDoNotFit(run, loaded, drawing, 8, fits=8), ask()[:4])
    problems = {len(answer.request.tokens) > 30: answer.problem for answer in found}
    assert problems == {True: OUT_OF_MEMORY, False: None}


def test_continuous_batching_goes_on_with_half_when_memory_runs_out(
    loaded: Loaded, run: Run, drawing: Drawing, ask: Callable[..., list[Request]], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, sizes = type(loaded.model).forward, []

    def starving(model: Any, *args: Any, **inputs: Any) -> Any:
        sequences = len(inputs["cu_seq_lens_q"]) - 1
        sizes.append(sequences)
        if sequences > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(model, *args, **inputs)

    monkeypatch.setattr(type(loaded.model), "forward", starving)
    found = answered(Continuous(run, loaded, drawing, SMALL), ask())
    monkeypatch.undo()
    assert max(sizes) > 2 >= sizes[-1]
    assert samples(found) == samples(answered(Batches(run, loaded, drawing, 1), ask()))


def test_a_model_that_cannot_do_it_says_so_and_keeps_what_is_done(
    loaded: Loaded, run: Run, drawing: Drawing, ask: Callable[..., list[Request]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no paged attention for this model\nand more")

    monkeypatch.setattr(type(loaded.model), "forward", refusing)
    with pytest.raises(Unsupported, match=r"^no paged attention for this model$"):
        answered(Continuous(run, loaded, drawing, replace(SMALL, sequences=2)), ask())
