#!/bin/bash
# What a quarter of an hour on a machine with a card is for; each part ends by itself in under ten minutes:
#     bash benchmarks/gpu_session.sh check FOLDER [SECONDS]       # right, and how fast: 440
#     bash benchmarks/gpu_session.sh tests FOLDER [SECONDS]       # pytest -m gpu: 360
#     bash benchmarks/gpu_session.sh training FOLDER [SECONDS]    # self-labelling on CIFAR-10, see gpu_training.py: 300
# Results are in FOLDER as they come; PYTHON and DATA say which Python and where CIFAR-10 is.
set -u
part=${1:?check, tests or training} out=$(realpath -m "${2:?a folder}") seconds=${3:-}
cd "$(dirname "$0")/.." && mkdir -p "$out"
export PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export NUMBA_CACHE_DIR=${NUMBA_CACHE_DIR:-/tmp/otlabel-numba}
python=${PYTHON:-python3}
nvidia-smi -L
"$python" -c 'import numba, numpy, torch, triton, otlabel
print(torch.__version__, triton.__version__, numba.__version__, numpy.__version__, torch.cuda.is_available())' || exit 3
case $part in
check)
    seconds=${seconds:-440}
    timeout 120 "$python" -m otlabel warmup >"$out/warmup.txt" 2>&1 &  # beside the first parts, which wait for the card
    timeout -k 5 $((seconds + 90)) "$python" benchmarks/gpu_check.py --budget "$seconds" --out "$out" >"$out/check.txt" 2>&1
    status=$?
    [ -e "$out/gpu_check.md" ] || { tail -20 "$out/check.txt"; exit "$status"; }
    sed -n '1,/^## copy/p' "$out/gpu_check.md"
    grep -E 'Failed|failure|wrong \|' "$out/gpu_check.md" | cut -c 1-400
    ;;
tests)
    seconds=${seconds:-360}
    timeout -k 5 $((seconds + 120)) "$python" benchmarks/gpu_tests.py --limit "$seconds" --out "$out" 2>&1 | tee "$out/tests.txt"
    status=${PIPESTATUS[0]}
    ;;
training)
    seconds=${seconds:-300}
    timeout -k 5 $((seconds + 120)) "$python" benchmarks/gpu_training.py ${DATA:+--data "$DATA"} \
        --limit "$seconds" --out "$out" 2>&1 | tee "$out/training.txt"
    status=${PIPESTATUS[0]}
    ;;
*)
    echo "$part is none of check, tests, training" >&2
    exit 2
    ;;
esac
echo "ended with $status"
exit "$status"
