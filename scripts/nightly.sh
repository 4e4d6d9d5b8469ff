#!/usr/bin/env bash
# Every test, the long ones included, and the table of faults in tests/README.md written anew.
set -euo pipefail
cd "$(dirname "$0")/.."
export CVTRAIN_NIGHTLY=1 CVTRAIN_KILLS="${CVTRAIN_KILLS:-20}"
exec "${PYTHON:-python}" -m pytest -n 0 --faults tests/README.md "$@"
