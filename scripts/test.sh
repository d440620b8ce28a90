#!/usr/bin/env bash
# Makes the environment when there is none, then checks format, lint and tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
prepare_environment requirements.txt requirements-dev.txt
ruff format --check .
ruff check .
python -m pytest "$@"
