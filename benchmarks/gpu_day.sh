#!/usr/bin/env bash
# What a GPU is wanted for, most telling first: its tests, milliseconds an update with bit-equality, records of ResNet34.
#
#     benchmarks/gpu_day.sh OUT MINUTES [DATA]             # DATA: cifar10, or a folder with its images
#     benchmarks/gpu_day.sh OUT MINUTES DATA --dry-run     # on a CPU, at tiny size
#
# Run it from the root of the repository. OUT gets a few files: the tests' output, device_loop.jsonl, and the records that
# are finished when the time is over. The same command resumes the records. PYTHON names another interpreter.
set -uo pipefail

out=${1:?a folder for the results} minutes=${2:?minutes} data=${3:-cifar10} python=${PYTHON:-python}
end=$((SECONDS + minutes * 60 - 30)) # half a minute for what cannot be stopped
work=$out/work
mkdir -p "$out" "$work"

# Runs a command until the time is over, or for at most so many seconds. TERM lets it record what is finished.
within() {
    local most=$1 left=$((end - SECONDS))
    shift
    ((left < most)) || left=$most
    if ((left < 5)); then
        echo "no time is left for: $*"
        return 0
    fi
    echo "+ $*"
    timeout --kill-after=20 --signal=TERM "$left" "$@" || echo "ended with $?: $*"
}

if [[ ${4:-} == --dry-run ]]; then
    tests=(tests/device/test_counters.py)
    measured=(--models small_resnet --batches 2 --rounds 1)
    recorded=(--model small_resnet --images 64 --epochs 2 --seeds 0 --device cpu)
else
    "$python" -c "import torch, sys; sys.exit(not torch.cuda.is_available())" || {
        echo "there is no CUDA device here; --dry-run as the fourth argument tries the script on a CPU" >&2
        exit 1
    }
    tests=(tests/device)
    measured=(--models resnet34 tnt)
    recorded=(--model resnet34 --precision tf32 --channels-last --at-once 3 --checkpoint-seconds 30)
fi

within 180 "$python" -m pytest -q -rs "${tests[@]}" 2>&1 | tee "$out/tests.txt" | tail -n 5
[[ -s $out/device_loop.jsonl ]] || within 240 "$python" -m benchmarks.studies.device_loop \
    --record "$out/device_loop.jsonl" "${measured[@]}" 2>&1 | tee "$out/device_loop.txt"
within 36000 "$python" -m benchmarks.cifar --data "$data" "${recorded[@]}" --out "$work/resnet34" 2>&1 | tail -n 3
# States for resuming stay in work/; records travel.
mkdir -p "$out/records"
cp "$work"/resnet34/*.json* "$out/records/" 2>/dev/null
ls -l "$out" "$out/records"
