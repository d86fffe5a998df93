#!/bin/sh
# The basic workflow: start a server, wait until it really answers, use it, stop it.
# Usage: basic_workflow.sh [PORT]
set -eu

spm="${SPM:-python $(dirname "$0")/../../simple_process_manager.py}"
port="${1:-8000}"

$spm start web "python -m http.server $port --bind 127.0.0.1"
trap '$spm stop web' EXIT # also when something below fails
$spm wait-healthy "$port" 30
$spm list

python -c "
import urllib.request
with urllib.request.urlopen('http://127.0.0.1:$port/') as answer:
    print('the server answered with status', answer.status)
"
$spm logs web -n 1
