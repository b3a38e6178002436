#!/usr/bin/env bash
# Start Limner's page on Linux or macOS, with options of app.py, or run a command: ./start.sh train mira.toml
# The first start installs everything into .venv here.
# LIMNER_TORCH_INDEX names a package index to take torch from instead of the one that suits this machine.
set -euo pipefail
unset CDPATH
from=$PWD
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

fits() { # a Python, as the words of a command, that has a module
  $1 -c "import sys, $2; sys.exit(not (3, 11) <= sys.version_info < (3, 15))" 2>/dev/null
}

# scripts/install.py runs on any Python; one that Limner runs on too need not be fetched.
find_python() {
  local candidate
  if fits .venv/bin/python pip; then echo .venv/bin/python; return; fi
  for candidate in python3 python3.13 python3.12 python3.11 python3.14 python; do
    if fits "$candidate" ensurepip; then echo "$candidate"; return; fi
  done
  if command -v uv >/dev/null; then echo "uv run --quiet --no-project --python 3.13 python"; return; fi
  for candidate in python3 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null; then echo "$candidate"; return; fi
  done
  echo "Limner needs Python 3.11 to 3.14: https://www.python.org/downloads/" >&2
  exit 2
}

python=$(find_python)
$python scripts/install.py
case "${1--}" in
  -*) exec .venv/bin/python app.py "$@" ;;
esac
limner=$PWD/.venv/bin/limner
cd -- "$from"  # which the command's paths start from
exec "$limner" "$@"
