#!/usr/bin/env bash
# From nothing to two small models that answer questions, one per prompt mask, and a table that compares them.
# Run it again after an interruption: finished stages are recognised and skipped.
#   QUICKSTART_SCALE=smoke   a small world and few steps, only to see that everything works (about a minute)
#   QUICKSTART_DATA=FOLDER   instead of data/quickstart (data/quickstart-smoke)
#   QUICKSTART_OUT=FOLDER    instead of out/quickstart (out/quickstart-smoke)
set -euo pipefail
shopt -s extglob
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

scale="${QUICKSTART_SCALE:-full}"
case "$scale" in
full) suffix="" vocab_size=2000 shortened="" ;;
smoke) suffix="-smoke" vocab_size=600 shortened="--max_steps 10 --schedule.warmup_steps 2" ;;
*)
    echo "error: QUICKSTART_SCALE: expected full or smoke, got $scale" >&2
    exit 2
    ;;
esac
data="${QUICKSTART_DATA:-data/quickstart$suffix}"
out="${QUICKSTART_OUT:-out/quickstart$suffix}"
threads="$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)"
export OMP_NUM_THREADS="$threads"
launch="accelerate launch --num_machines 1 --num_processes 1 --mixed_precision no --dynamo_backend no"
launch="$launch --num_cpu_threads_per_process $threads"
so_far="" # fingerprint of the stages so far: a stage runs again when one before it did

stage() { # title, what it writes, command
    local title="$1" output="$2" began=$SECONDS mark fingerprint command
    shift 2
    command="$*"
    mark="$(dirname "$output")/.$(basename "$output")"
    fingerprint="$(printf '%s\n' "$so_far" "${command/process +([0-9])/}" | cat - configs/quickstart/*.yaml dataset/token_store.py | cksum)"
    so_far="$fingerprint"
    echo
    if [ -e "$output" ] && [ "$(cat "$mark.finished" 2>/dev/null)" = "$fingerprint" ]; then
        echo "=== $title: finished before ($output)"
        return
    fi
    echo "=== $title (at ${SECONDS} s)"
    echo "\$ $*"
    start_afresh "$output" "$mark" "$fingerprint"
    "$@"
    mv "$mark.started" "$mark.finished"
    echo "=== $title took $((SECONDS - began)) s"
}

start_afresh() { # what an interrupted stage wrote goes, except of a training, which continues from its last save
    if [ ! -e "$1/settings.yaml" ] || [ "$(cat "$2.started" 2>/dev/null)" != "$3" ]; then
        rm -rf "$1"
    fi
    rm -f "$2.finished"
    mkdir -p "$(dirname "$1")"
    echo "$3" >"$2.started"
}

prepare() { # title, kind, source, store
    stage "$1" "$4" python -m scripts.prepare_data --kind "$2" --data "$3" --tokenizer "$data/tokenizer" --out "$4"
}

finetune_and_evaluate() { # prompt mask; two run at a time, each on half of the cores, which a small model uses better
    export OMP_NUM_THREADS=$((threads > 1 ? threads / 2 : 1))
    stage "Fine-tuning with prompt mask $1" "$out/sft-$1" python -m trainer.sft \
        --config configs/quickstart/sft.yaml --init "$out/pretrain" --data "$data/sft" --validation "$data/sft_val" \
        --prompt_mask "$1" --out "$out/sft-$1" $shortened
    stage "Evaluating $1" "$out/sft-$1/evaluation" python -m scripts.evaluate --model "$out/sft-$1" \
        --data "$data"/world/eval/*.jsonl --loss_data "$data/sft_val" --max_new_tokens 24 \
        --out "$out/sft-$1/evaluation"
}

beside() { # log file, command: runs it in the background, in a process group that can be stopped as a whole
    local log="$1"
    shift
    set -m
    "$@" </dev/null >"$log" 2>&1 &
    set +m
    background=$!
}

finish() { # exit status
    if [ -n "$background" ]; then # a training saves before it ends
        kill -TERM -- "-$background" 2>/dev/null || true
        wait "$background" || true
    fi
    [ "$1" -eq 0 ] || echo "The quickstart stopped here; the same command goes on from here." >&2
}

background="" # process group of what runs beside the script
trap 'finish $?' EXIT
prepare_environment requirements.txt
stage "The built-in world" "$data/world" python -m scripts.build_world --out "$data/world" --scale "$scale"
stage "Tokenizer" "$data/tokenizer" python -m scripts.train_tokenizer \
    --data "$data/world/pretrain.jsonl" "$data/world/sft.jsonl" --vocab_size "$vocab_size" --out "$data/tokenizer"
prepare "Token store for the first drill" sft "$data/world/drill_lists.jsonl" "$data/drill_lists"
prepare "Token store for the second drill" sft "$data/world/drill_questions.jsonl" "$data/drill_questions"
prepare "Token store for pretraining" pretrain "$data/world/pretrain.jsonl" "$data/pretrain"
prepare "Token store for its validation" pretrain "$data/world/pretrain_val.jsonl" "$data/pretrain_val"
prepare "Token store for fine-tuning" sft "$data/world/sft.jsonl" "$data/sft"
prepare "Token store for its validation" sft "$data/world/sft_val.jsonl" "$data/sft_val"
stage "Drill with lists" "$out/drill-lists" python -m trainer.sft \
    --config configs/quickstart/drill_lists.yaml --init fresh --data "$data/drill_lists" \
    --out "$out/drill-lists" $shortened
stage "Drill with questions" "$out/drill-questions" python -m trainer.sft \
    --config configs/quickstart/drill_questions.yaml --init "$out/drill-lists" --data "$data/drill_questions" \
    --out "$out/drill-questions" $shortened
stage "Pretraining" "$out/pretrain" $launch -m trainer.pretrain --config configs/quickstart/pretrain.yaml \
    --init "$out/drill-questions" --data "$data/pretrain" --validation "$data/pretrain_val" --out "$out/pretrain" $shortened
log="$out/sft-prefix.log"
echo
echo "=== Both prompt masks at once; what prefix says goes to $log and follows below"
beside "$log" finetune_and_evaluate prefix
(finetune_and_evaluate causal)
status=0
wait "$background" || status=$?
background=""
cat "$log"
[ "$status" -eq 0 ] || exit "$status"
echo
echo "=== Comparison (at ${SECONDS} s)"
python -m scripts.compare --runs "$out/sft-causal" "$out/sft-prefix" --out "$out"
echo
echo "Done after ${SECONDS} s. In a shell of your own, first: source .venv/bin/activate"
