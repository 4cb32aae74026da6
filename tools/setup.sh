# Sourced by demo.sh and test.sh: go to the root of the project and see that .venv is complete.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
unset PYTHONDONTWRITEBYTECODE  # uv compiles nothing: the first import does, once, and keeps it
stamp=.venv/requirements.txt   # a copy, written last: the set-up is done while the two are equal

fits() {   # do the installed torch and torchvision belong together?
    .venv/bin/python -c "import torch, torchvision" 2>/dev/null
}

fresh_venv() {
    rm -f "$stamp"   # first: whatever interrupts the rest, the next call starts again
    rm -rf .venv || return 1
    "${PYTHON:-python3}" -m venv .venv || return 1
    # uv installs in half a minute what takes pip two; without it pip does.
    .venv/bin/python -m pip install -q --disable-pip-version-check uv || true
}

install() {
    if .venv/bin/python -m uv --version >/dev/null 2>&1; then
        .venv/bin/python -m uv pip install --python .venv/bin/python "$@"
    else
        .venv/bin/python -m pip install --disable-pip-version-check "$@"
    fi
}

cpu_wheels() {   # about 200 MB instead of 5 GB; gives up at once where the index cannot be reached
    UV_HTTP_TIMEOUT=5 UV_HTTP_RETRIES=0 PIP_DEFAULT_TIMEOUT=5 PIP_RETRIES=0 \
        install --index-url https://download.pytorch.org/whl/cpu \
        $(grep -oE '^(torch|torchvision)[>=][^ ]*' requirements.txt) && fits
}

if ! cmp -s requirements.txt "$stamp"; then
    trap 'echo "set-up: stopped; the same command starts it again" >&2; exit 130' INT
    "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
        echo "set-up: Python 3.10 or newer is needed; name it with PYTHON=python3.12 bash ..." >&2
        exit 1
    }
    fresh_venv || exit 1
    if [ "$(uname)" = Linux ] && [ ! -e /proc/driver/nvidia/version ] && ! command -v nvidia-smi >/dev/null; then
        echo "set-up: no NVIDIA driver; trying PyTorch's index of CPU wheels"
        if cpu_wheels; then
            echo "set-up: CPU wheels installed"
        else
            echo "set-up: no fitting CPU wheels; taking the default index (about 5 GB)"
            fresh_venv || exit 1
        fi
    fi
    install -r requirements.txt || exit 1
    fits || {
        echo "set-up: the torch and torchvision of this package index do not fit together" >&2
        exit 1
    }
    cp requirements.txt "$stamp.part" && mv "$stamp.part" "$stamp" || exit 1
    trap - INT
fi
