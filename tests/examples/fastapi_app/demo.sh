#!/bin/sh
# The original problem: `uvicorn main:app` never returns, so whoever runs it hangs.
# Here the shell comes back at once, and nothing is left behind, whether the tests pass or fail.
# Usage: demo.sh [PORT]
set -u

cd "$(dirname "$0")"
spm="${SPM:-python ../../../simple_process_manager.py}"
port="${1:-8000}"

echo "== step by step"
$spm start api "uvicorn main:app --host 127.0.0.1 --port $port" &&
  $spm wait-healthy "$port" 30 &&
  PORT="$port" python -m pytest -q -p no:cacheprovider integration.py
result=$?
$spm stop api
[ "$result" = 0 ] || exit "$result"

echo "== the same as one command"
$spm run api "uvicorn main:app --host 127.0.0.1 --port {port}" --port "$port" \
  -- python -m pytest -q -p no:cacheprovider integration.py
