#!/usr/bin/env bash
# The short run, from nothing but Python 3.10 or newer. Flags are handed on to demo.py.
. "$(dirname "${BASH_SOURCE[0]}")/tools/setup.sh"
exec .venv/bin/python demo.py "$@"
