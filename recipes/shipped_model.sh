#!/usr/bin/env bash
# Train the model that comes with the package: shipped_model.sh DATA_DIR [OUT]
# DATA_DIR holds books/train/*.txt and books/validation/*.txt. Run it again to resume.
set -euo pipefail

data=${1:?usage: shipped_model.sh DATA_DIR [OUT]}
out=${2:-runs/shipped_model}
recipes=$(cd "$(dirname "$0")" && pwd)

if [ ! -e "$out/tokenizer/tokenizer.json" ]; then
    landmark tokenizer train "$data"/books/train/*.txt --vocab-size 4095 --out "$out/tokenizer"
fi

landmark train \
    --config "$recipes/shipped_model.json" \
    --tokenizer "$out/tokenizer" \
    --recipe "$recipes/shipped_model.toml" \
    --texts "$data"/books/train/*.txt \
    --validation "$data"/books/validation/*.txt \
    --block-size 31 --top-k 2 \
    --save-dtype float16 \
    --out "$out"
