#!/usr/bin/env bash
# From nothing to two small models that answer questions, one per prompt mask, and a table that compares them: the
# experiment in configs/quickstart. Run it again after an interruption: what is finished is found.
#   QUICKSTART_SEEDS=8       paired trainings instead of one, which is what a claim about masks takes
#   QUICKSTART_SCALE=smoke   a small world and few steps, only to see that everything works (about a minute)
#   QUICKSTART_OUT=FOLDER    instead of out/quickstart (out/quickstart-smoke)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

case "${QUICKSTART_SCALE:-full}" in
full) experiment=quickstart suffix="" ;;
smoke) experiment=smoke suffix="-smoke" ;;
*)
    echo "error: QUICKSTART_SCALE: expected full or smoke, got $(quoted "$QUICKSTART_SCALE")" >&2
    exit 2
    ;;
esac
out="${QUICKSTART_OUT:-out/quickstart$suffix}"
prepare_environment requirements.txt
python -m scripts.ablate --config "configs/quickstart/$experiment.yaml" --out "$out" \
    ${QUICKSTART_SEEDS:+--seeds "$QUICKSTART_SEEDS"}
echo
echo "Talk with a model (in a shell of your own, first: source .venv/bin/activate):"
for model in "$out"/sft-*; do echo "  python -m scripts.chat --model $(quoted "$model")"; done
