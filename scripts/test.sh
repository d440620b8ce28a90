#!/usr/bin/env bash
# Makes the environment when there is none, then checks format, lint and tests. Arguments go to pytest;
# --long adds the tests that take minutes, --bfloat16 native|absent lets the processor look as if it multiplied
# bfloat16 or not, OMP_NUM_THREADS how many threads a test computes with (1). The files of tests, and each test
# that takes minutes, are shared out to the cores, each of which computes by itself; -n 0 runs them one after the other.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
prepare_environment requirements.txt requirements-dev.txt
ruff format --check .
ruff check .
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
unset PYTHONDONTWRITEBYTECODE # some hundred processes start, each of which would compile every source again
python -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder "$@"
