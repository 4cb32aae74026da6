#!/usr/bin/env bash
# The whole test suite, from nothing but Python 3.10 or newer. Flags are handed on to pytest.
. "$(dirname "${BASH_SOURCE[0]}")/tools/setup.sh"
exec .venv/bin/python -m pytest "$@"
