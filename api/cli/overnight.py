"""`overnight`: everything but submitting, on the rig and from the laptop."""

import sys

import click

from api.cli import job_commands, queue_commands, rig_commands, sweep_commands
from api.cli.compare import compare
from api.cli.demo import demo
from api.cli.diff import diff
from api.cli.doctor import doctor
from api.cli.fit import fit
from api.cli.notify import notify
from api.cli.plan import plan
from api.cli.pull import pull
from api.cli.report import report
from api.cli.rerun import rerun
from api.cli.rigs import rigs
from api.cli.session import Commands
from api.cli.telemetry import telemetry
from api.cli.top import top


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="overnight")
def overnight() -> None:
    """Keep a GPU rig working while its owner sleeps. `submit` gives it work; this does the rest."""


_LISTED = (*rig_commands.COMMANDS, *job_commands.COMMANDS, *queue_commands.COMMANDS, *sweep_commands.COMMANDS)
_OTHERS = (compare, diff, pull, rerun, plan, report, fit, doctor, demo, top, telemetry, rigs, notify)
for _command in (*_LISTED, *_OTHERS):
    overnight.add_command(_command)


if __name__ == "__main__":
    sys.exit(overnight())
