"""One attempt with its peak of GPU memory: `python measured_attempt.py RUN_FOLDER`. The last line it prints is JSON."""

import json
import sys
from pathlib import Path

from jobs.__main__ import main


def measured(folder: Path) -> dict[str, int]:
    """How it ended, and the most that torch had reserved; `context` is what the driver counts beside that."""
    status = main(folder)
    import torch

    if not torch.cuda.is_available():
        return {"status": status, "reserved": 0, "context": 0}
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return {
        "status": status,
        "reserved": torch.cuda.max_memory_reserved(),
        "context": total - free - torch.cuda.memory_reserved(),
    }


if __name__ == "__main__":
    print(json.dumps(measured(Path(sys.argv[1]).absolute())))
