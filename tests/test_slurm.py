"""The SLURM script: what it starts, and which exit codes go back into the queue."""

import os
import subprocess
from pathlib import Path

import pytest

from didr_jax.exits import CannotSave, Hacked, NotFinite, Preempted

REPO = Path(__file__).resolve().parent.parent


def submitted(tmp_path, code, restarts=0):
    """(exit code, what srun was given, what scontrol was given) of the script where srun ends with a code."""
    for name, ends in (("srun", code), ("scontrol", 0)):
        program = tmp_path / name
        program.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > {tmp_path}/{name}.given\nexit {ends}\n')
        program.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17", "SLURM_SUBMIT_DIR": str(REPO),
        "SLURM_RESTART_COUNT": str(restarts),
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "scripts/train.sbatch", "--config=digits", "--workdir=a b"],
        cwd=REPO,
        env=environment,
        capture_output=True,
        text=True,
    )
    given = [(tmp_path / f"{name}.given") for name in ("srun", "scontrol")]
    return done.returncode, *(path.read_text().splitlines() if path.exists() else None for path in given)


@pytest.mark.parametrize("code", [Preempted.code, 134])
def test_a_run_that_was_asked_to_stop_or_lost_a_process_goes_back_into_the_queue(code, tmp_path):
    assert submitted(tmp_path, code) == (
        0, ["--kill-on-bad-exit=0", "python", "run.py", "--config=digits", "--workdir=a b"], ["requeue", "17"],
    )  # fmt: skip


@pytest.mark.parametrize("code", [0, 2, NotFinite.code, CannotSave.code, Hacked.code, 1])
def test_whatever_else_ends_is_not_repeated(code, tmp_path):
    ended, _, requeued = submitted(tmp_path, code)
    assert ended == code and requeued is None


def test_a_run_that_dies_again_and_again_is_left_dead(tmp_path):
    assert submitted(tmp_path, 134, restarts=100)[::2] == (134, None)
