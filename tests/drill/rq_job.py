"""What plain RQ's workers run in the comparison: the drill's program, as anybody would call one from a job. Loaded by RQ itself."""

import os
import subprocess


def run(argv: list[str], checkpoints: str) -> None:
    """Run the program to its end."""
    environment = {**os.environ, "OVERNIGHT_CHECKPOINT_DIR": checkpoints, "OVERNIGHT_ATTEMPT": "0"}
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, env=environment)
