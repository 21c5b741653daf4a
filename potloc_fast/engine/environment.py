"""What a run was made with: versions, the machine, the commit that was checked out; no time, so that runs repeat."""

from __future__ import annotations

import platform
import subprocess
from typing import Any


def environment() -> dict[str, Any]:
    """Versions, the machine, and the git commit of the working folder where there is one."""
    import numpy as np
    import torch

    import potloc_fast
    from potloc_fast.ops._library import _C

    return {
        "potloc_fast": potloc_fast.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}, {_C.cpu_capability()}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of the working folder, with "and changes" where files differ from it."""
    found = []
    for question in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no")):
        try:
            done = subprocess.run(("git", *question), capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
            return None
        found.append(done.stdout.strip())
    commit, changes = found
    return f"{commit[:12]} and changes" if changes else commit[:12]
