"""The training child: `accelerate launch -m potstill.training.run SPEC`."""

import sys
import time
from pathlib import Path

from potstill.run_folder import RunFolder
from potstill.training.spec import TrainingSpec, TrainingStatus


def main() -> None:
    """Train as the spec says."""
    spec = TrainingSpec.model_validate_json(Path(sys.argv[1]).read_bytes())
    folder = RunFolder(Path(spec.run_dir))

    def train() -> TrainingStatus:
        started = time.monotonic()
        if spec.method == "sft":
            from potstill.training.sft import train_sft as train_rung
        else:
            from potstill.training.dpo import train_dpo as train_rung
        return train_rung(spec, folder).model_copy(update={"seconds": time.monotonic() - started})

    folder.work(train)


if __name__ == "__main__":
    main()
