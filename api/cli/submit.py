"""`submit`: from flags, a command line or a file to jobs on a rig."""

import difflib
import sys
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import click

from api.cli.session import USAGE, Commands, Session, fail, with_rig


class SubmitGroup(Commands):
    """What is not one of its commands is a file to submit: `submit ft.toml --follow`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the hidden command `file` before everything that begins with no command's name."""
        own = {name for param in self.get_params(ctx) for name in param.opts}
        if args and args[0] not in self.commands and args[0] not in own:
            args = ["file", *args]
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Both ways."""
        formatter.write_usage(ctx.command_path, "finetune|generate|evaluate|benchmark|export|run [FLAGS]")
        formatter.write_usage(ctx.command_path, "FILE.toml|.yaml|.json [FLAGS]")
        formatter.write_usage(ctx.command_path, "POINTS.csv --base FILE [FLAGS]")


class SpecCommand(click.Command):
    """A command with a flag for every field of a kind of job. They are made when they are needed: that loads pydantic."""

    def __init__(self, kind: str | None, **attributes: Any):
        self.kind = kind
        # learning_rate and learning-rate, lora.r and lora-r: people type what their other tools call it
        settings = {"token_normalize_func": lambda text: text.replace("_", "-").replace(".", "-")}
        super().__init__(context_settings=settings | attributes.pop("context_settings", {}), **attributes)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Arguments, the fields of the kind, then how to submit."""
        return [*self._fields, *super().get_params(ctx)]

    @cached_property
    def _fields(self) -> list[click.Parameter]:
        from api.cli.flags import options  # here: it takes 0.1 s that `submit --help` need not wait for

        return options(self.kind)


@click.group(cls=SubmitGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="overnight")
def submit() -> None:
    """Give a rig work: a fine-tune, a generation, an evaluation, a command, or whatever a FILE describes.

    FILE is a job document, a list of them ([[jobs]]) that may name each other, or a base with a sweep; POINTS.csv has
    one job of a sweep on each line. Local data files go along.
    The exit status with --follow or --wait is the job's fate: 0 succeeded, 1 failed, 3 cancelled, 6 over its time limit.
    """


def how_to_submit(command: Callable[..., None]) -> Callable[..., None]:
    """The flags that every way of submitting has."""
    for option in reversed((
        click.option("--set", "sets", multiple=True, metavar="FIELD=VALUE", help="Any field, as in --set lora.r=8."),
        click.option("-f", "--follow", "--watch", "follow_", is_flag=True, help="Show log and progress until it has ended; Ctrl-C leaves it running."),
        click.option("-w", "--wait", is_flag=True, help="Say nothing until it has ended."),
        click.option("--dry-run", is_flag=True, help="Check and show what would be learnt: nothing is stored; some rows are sent to be measured."),
        click.option("--key", default="", help="Idempotency key: the same key never submits twice."),
        with_rig,
    )):  # fmt: skip
        command = option(command)
    return command


def _command(name: str, kind: str | None, **attributes: Any) -> Callable[[Callable[..., None]], click.Command]:
    """Register a SpecCommand under this name."""

    def register(function: Callable[..., None]) -> click.Command:
        params = list(reversed(getattr(function, "__click_params__", [])))
        command = SpecCommand(kind, name=name, callback=function, params=params, help=function.__doc__, **attributes)
        submit.add_command(command)
        return command

    return register


@_command("finetune", "finetune")
@how_to_submit
def finetune(session: Session, **values: Any) -> None:
    """Fine-tune a model with LoRA.

    Example: submit finetune --model NAME --data rows.jsonl --follow
    """
    _submit(session, "finetune", values)


@_command("generate", "generate")
@how_to_submit
def generate(session: Session, **values: Any) -> None:
    """Answer a file of prompts.

    Example: submit generate --model NAME --adapter job:141 --data prompts.jsonl
    """
    _submit(session, "generate", values)


@_command("evaluate", "evaluate")
@how_to_submit
def evaluate(session: Session, **values: Any) -> None:
    """Measure a model: perplexity and accuracy on rows, tasks of lm-eval.

    Example: submit evaluate --model NAME --adapter job:141 --data held-out.jsonl
    """
    _submit(session, "evaluate", values)


@_command("benchmark", "benchmark")
@how_to_submit
def benchmark(session: Session, **values: Any) -> None:
    """Measure how fast a model runs: tokens/s, latency, memory and energy over batch sizes and lengths.

    Example: submit benchmark --model NAME --batch-sizes 1,8 --prompt-lengths 128,1024 --quantizations none,nf4
    """
    _submit(session, "benchmark", values)


@_command("export", "export")
@how_to_submit
def export(session: Session, **values: Any) -> None:
    """Merge an adapter into its model, or write a model as a GGUF file.

    Example: submit export --adapter job:12 --to merged,gguf
    """
    _submit(session, "export", values)


@_command("run", "command", context_settings={"allow_interspersed_args": False})
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
@click.option("--no-workdir", is_flag=True, help="Send no folder along, even if the command names files in this one.")
@how_to_submit
def run(session: Session, argv: tuple[str, ...], no_workdir: bool, **values: Any) -> None:
    """Run any program on the rig. A command that names files of this folder takes the folder along.

    Example: submit run --gpus 2 -- torchrun train.py
    """
    _submit(session, "command", values, argv=argv, ship=not no_workdir)


@_command("file", None, hidden=True)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--base",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="For a CSV file: what its jobs have in common.",
)
@how_to_submit
def file(session: Session, file: Path, base: Path | None, **values: Any) -> None:
    """Submit what a file describes; flags change every job in it."""
    if not file.exists():
        fail(_no_such_file(file), USAGE)
    is_table = file.suffix.lower() == ".csv"
    if is_table and base is None:
        fail(f"{file} has the points of a sweep; --base FILE names the job document that they change", USAGE)
    if base is not None and not is_table:
        fail(f"--base goes with a CSV file of points, and {file} is none", USAGE)
    _submit(session, None, values, file=base or file, table=file if is_table else None)


def _submit(session: Session, kind: str | None, values: Mapping[str, Any], **fields: Any) -> None:
    from api.cli import sending  # here: it loads pydantic

    sending.submit(session, kind, values, **fields)


def _no_such_file(path: Path) -> str:
    if path.name in submit.commands:
        return f"Flags come after the command: submit {path.name} …"
    close = difflib.get_close_matches(str(path), [n for n in submit.commands if n != "file"], n=1)
    return f"{path} is neither a file nor a command of submit{f'; did you mean {close[0]!r}?' if close else ''}"


if __name__ == "__main__":
    sys.exit(submit())
