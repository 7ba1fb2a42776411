"""Where benchmarks leave their figures, and on what machine they were taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from n2sr_deploy.doctor import report

FOLDER = Path(__file__).with_name("results")
_TOPICS = ("n2sr", "numpy", "onnxruntime", "torch", "kernels", "processor", "GPU", "training on")


def keep(name: str, figures: Any) -> Path:
    """Write figures and the machine's description to results/NAME.json."""
    machine = {topic: finding for topic, finding in report() if topic in _TOPICS}
    path = FOLDER / f"{name}.json"
    FOLDER.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "figures": figures}, indent=1) + "\n")
    return path
