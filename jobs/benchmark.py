"""A benchmark: how fast a model runs here, cell by cell, each on disk as soon as it is measured. Loads torch and transformers.

A cell that does not fit, or a precision that cannot run here, is an answer, too: it gets its reason, and the rest goes on.
"""

import gc
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import psutil
import torch  # noqa: TID253

from jobs import cells, environment, model_facts, weights
from jobs.cells import DOES_NOT_FIT, NOT_RUN, Cell, cell_of, least_s, measured_row, plan, table, unmeasured_row
from jobs.cells.measure import Meter
from jobs.energy_counter import EnergyCounter, uuid_of_this_process
from jobs.estimate import inference_bytes
from jobs.log import clock_time, say
from jobs.model import Cause
from jobs.model_facts import ModelFacts, NoFacts
from jobs.run import Interrupted, JobError, Run
from jobs.rundir import append_json_line, keep_json_lines, read_json_lines, sync_files, write_text

#: Causes that say "not in this precision, on this machine"; anything else ends the job.
VARIANT_CAUSES = frozenset({Cause.BAD_INPUT, Cause.OOM_GPU})
#: A CPU has no limit of its own: more than this of what is free would swap, or end somebody else's program.
SHARE_OF_FREE_MEMORY = 0.9


def run(run: Run) -> dict[str, Any]:
    """Measure every cell that has no row yet. Returns the best speeds and the least waits."""
    weights.quiet_libraries()
    weights.limit_threads()
    environment.record(run)
    run.phase("loading")
    return Benchmark(run).work()


class Benchmark:
    """One attempt: its plan, its rows, and the means to measure."""

    def __init__(self, run: Run):
        self._run, self._spec = run, run.order.spec
        self._plan = plan(self._spec, auto=weights.device({"kind": self._spec["kind"], "dtype": "auto"}).dtype)
        self._card = _card()
        self._energy = EnergyCounter(uuid_of_this_process())
        self._rows = self._resumed()
        self._facts: ModelFacts | None = None
        #: What refused each variant, so that a job of which nothing ran fails for the first one's cause.
        self._refusals: list[JobError] = []

    def work(self) -> dict[str, Any]:
        """Every variant, then the result. Raises JobError when no variant could run at all."""
        total = sum(map(len, self._plan))
        say(f"{total} cells on {self._card}, {len(self._rows)} of them measured before.")
        for members in self._plan:
            left = [cell for cell in members if not self._has(cell)]
            if left:
                self._variant(left)
        if self._refusals and all(row["state"] == NOT_RUN for row in self._rows):
            raise self._refusals[0]
        made = cells.metrics(self._rows)
        say(f"The table is in output/{self._run.folder.table.name}.")
        return made

    # -- variants ---------------------------------------------------------------------------------------------------------

    def _variant(self, left: list[Cell]) -> None:
        dtype, quantization = left[0].variant
        name = cells.variant_words((dtype, quantization))
        self._run.phase("loading", step=len(self._rows), total=sum(map(len, self._plan)))
        say(f"Loading the model: {name}.")
        try:
            device = weights.device({"kind": self._spec["kind"], "dtype": dtype})
            asked = None if quantization == "none" else weights.few_bits(quantization, device)
            model = weights.load_model(self._run.order, device, trainable=False, quantization=asked)
        except JobError as error:
            if error.cause not in VARIANT_CAUSES:
                raise
            self._refuse(left, error)
            return
        except torch.OutOfMemoryError:
            hint = "Use a smaller model, or a GPU with more free memory."
            self._refuse(left, JobError(Cause.OOM_GPU, "The model does not fit into the GPU's free memory.", hint))
            return
        self._facts = _facts(self._run)
        meter = Meter(self._run, model, device, self._energy)
        for cell in left:
            self._keep(self._measured(cell, meter, model, device))
        del model, meter
        _release(device)

    def _refuse(self, left: list[Cell], error: JobError) -> None:
        words = f"{error.message} {error.hint}".strip()
        say(f"Not run: {words}")
        self._refusals.append(error)
        state = DOES_NOT_FIT if error.cause is Cause.OOM_GPU else NOT_RUN
        for cell in left:
            self._keep(unmeasured_row(cell, state, words), quiet=True)

    # -- cells ------------------------------------------------------------------------------------------------------------

    def _measured(self, cell: Cell, meter: Meter, model: Any, device: weights.Device) -> dict[str, Any]:
        if self._run.stop_requested:
            raise Interrupted
        if unwanted := self._unwanted(cell, model, device):
            return unmeasured_row(cell, *unwanted)
        started_at = self._run.now()
        try:
            timings, memory, joules = meter.measure(
                cell, new_tokens=self._spec["new_tokens"], repeats=self._spec["repeats"], seed=self._spec["seed"]
            )
        except torch.OutOfMemoryError:
            timings = []  # outside of the handler, so that the traceback lets go of the tensors
        except RuntimeError as error:
            if "can't allocate memory" not in str(error):  # a CPU's own words
                raise
            timings = []
        if not timings:
            meter.release()
            return unmeasured_row(cell, DOES_NOT_FIT, "the memory ran out")
        row = measured_row(cell, timings, memory, joules)
        return row | {"card": self._card, "started_at": started_at, "ended_at": self._run.now()}

    def _unwanted(self, cell: Cell, model: Any, device: weights.Device) -> tuple[str, str] | None:
        """Why a cell is not even tried."""
        smaller = (r for r in self._rows if r["state"] == DOES_NOT_FIT and cell.at_least(cell_of(r)))
        if next(smaller, None) is not None:
            return DOES_NOT_FIT, "a smaller one did not"
        whole = cell.prompt_length + self._spec["new_tokens"]
        context = getattr(model.config, "max_position_embeddings", None)
        if context and whole > context:
            return NOT_RUN, f"{whole} tokens are more than the model's {context}"
        if not device.is_gpu and self._facts is not None:
            needs = inference_bytes(self._facts, cell.batch_size, cell.prompt_length, self._spec["new_tokens"], device.dtype, on_gpu=False)  # fmt: skip
            free = psutil.virtual_memory().available + psutil.Process().memory_info().rss
            if needs > SHARE_OF_FREE_MEMORY * free:
                return DOES_NOT_FIT, f"needs about {needs / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free"
        expected_s = least_s(cell, self._rows, self._spec["repeats"] + 1, self._spec["new_tokens"])
        if expected_s is not None and expected_s > self._spec["max_cell_s"]:
            return NOT_RUN, f"would take about {clock_time(expected_s)}, and max_cell_s is {self._spec['max_cell_s']:g}"
        return None

    # -- rows -------------------------------------------------------------------------------------------------------------

    def _resumed(self) -> list[dict[str, Any]]:
        """Rows of an earlier attempt: those of this card. What another card measured is measured again."""
        path = self._run.folder.cells
        if not self._run.order.resume:
            path.unlink(missing_ok=True)
        keep_json_lines(path, lambda row: row.get("state") == cells.MEASURED and row.get("card") == self._card)
        return list(read_json_lines(path))

    def _has(self, cell: Cell) -> bool:
        return any(cell_of(row) == cell for row in self._rows)

    def _keep(self, row: dict[str, Any], *, quiet: bool = False) -> None:
        """On disk, in the table, and told; `quiet`: its variant's reason was told already."""
        self._rows.append(row)
        append_json_line(self._run.folder.cells, row)
        sync_files(self._run.folder.cells)
        write_text(self._run.folder.table, self._table())
        left = [cell for members in self._plan for cell in members if not self._has(cell)]
        runs = self._spec["repeats"] + 1
        times = [least_s(cell, self._rows, runs, self._spec["new_tokens"]) for cell in left]
        known = sum(time for time in times if time is not None and time <= self._spec["max_cell_s"])
        done, total = len(self._rows), sum(map(len, self._plan))
        told: dict[str, float] = {name: row[name] for name in ("decode_tokens_per_s", "ttft_s") if name in row}
        self._run.progress(step=done, total=total, phase="measuring", eta_s=round(known, 1) if None not in times else None, metrics=told)  # fmt: skip
        if not quiet:
            say(f"{done}/{total}  {cells.variant_words(cell_of(row).variant)}, {_row_words(row)}")

    def _table(self) -> str:
        names = {"model": self._spec["model"], "adapter": self._spec["adapter"], "on": self._card}
        facts = [f"- {name}: {value}" for name, value in names.items() if value]
        facts.append(
            f"- {self._spec['new_tokens']} new tokens, {self._spec['repeats']} repeats after one that warms up"
        )
        facts.append(f"- torch {torch.__version__}, transformers {version('transformers')}, its own generate(), greedy")
        return table.markdown("How it runs", facts, self._rows)


def _row_words(row: Mapping[str, Any]) -> str:
    size = f"batch {row['batch_size']}, prompt {row['prompt_length']}"
    if row["state"] != cells.MEASURED:
        return f"{size}: {table.reason(row)}"
    first, rate = table.wait(row["ttft_s"]), table.short(row["decode_tokens_per_s"])
    return f"{size}: first token after {first}, then {rate} tokens/s, {cells.peak_bytes(row) / 2**30:.2f} GiB"


def _card() -> str:
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"{environment.cpu_model()}, {torch.get_num_threads()} threads"


def _facts(run: Run) -> ModelFacts | None:
    try:
        return model_facts.read_model(weights.folder(run.order))
    except NoFacts:
        return None


def _release(device: weights.Device) -> None:
    gc.collect()
    if device.is_gpu:
        torch.cuda.empty_cache()
