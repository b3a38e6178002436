#!/usr/bin/env bash
# Start Limner's page on Linux or macOS; arguments go to app.py. The first start installs everything into .venv here.
# LIMNER_TORCH_INDEX names a package index to take torch from instead of the one that suits this machine.
set -euo pipefail
unset CDPATH
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

find_python() {
  local candidate
  for candidate in python3.13 python3.12 python3.11 python3 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "Limner needs Python 3.11 or newer: https://www.python.org/downloads/" >&2
  exit 2
}

# macOS has one build of torch. cu128 serves the NVIDIA cards since the RTX 20 series, cu126 the older ones.
torch_index() {
  local capability pytorch=https://download.pytorch.org/whl
  if [ -n "${LIMNER_TORCH_INDEX:-}" ]; then
    echo "$LIMNER_TORCH_INDEX"
  elif [ "$(uname)" = Darwin ]; then
    echo https://pypi.org/simple
  elif capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d .) \
    && [ -n "$capability" ]; then
    if [ "$capability" -ge 75 ]; then echo "$pytorch/cu128"; else echo "$pytorch/cu126"; fi
  else
    echo "$pytorch/cpu"
  fi
}

if ! cmp -s pyproject.toml .venv/installed.toml; then
  python=$(find_python)
  index=$(torch_index)
  echo "Installing Limner, with torch from $index. This takes some minutes and several GB."
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  .venv/bin/python -m pip install --disable-pip-version-check --index-url "$index" "torch>=2.6"
  .venv/bin/python -m pip install --disable-pip-version-check -e .
  cp pyproject.toml .venv/installed.toml # an update that changes it installs again
fi
exec .venv/bin/python app.py "$@"
