# Sourced by quickstart.sh and test.sh: one virtual environment in .venv, installed once per content of the requirement files.

quoted() { # a foreign text as the shell reads it, without what would steer a terminal
    LC_ALL=C printf %q "$1"
}

is_suitable() { # can this interpreter make our environment?
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() { # $PYTHON, or the first suitable interpreter by name
    local name
    for name in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if is_suitable "$name"; then
            echo "$name"
            return
        fi
    done
    echo "error: Python 3.11 or newer with its venv module is needed and was not found" \
        "(tried $(quoted "${PYTHON:-python3}")); install it, or name it: PYTHON=/path/to/python bash $(quoted "$0")" >&2
    return 2
}

prepare_environment() { # arguments: requirement files
    if [ ! -f .venv/bin/activate ]; then
        local python
        python="$(find_python)"
        echo "Making .venv with $("$python" --version)"
        "$python" -m venv .venv
    fi
    source .venv/bin/activate
    if ! is_suitable python; then
        echo "error: .venv holds $(python --version 2>&1), and 3.11 or newer is needed; move .venv away and run again" >&2
        return 2
    fi
    local file
    for file in "$@"; do install_once "$file"; done
}

install_once() { # a requirement file, unless its content is the one installed last
    local hash stamp
    hash="$(python -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$1")"
    stamp=".venv/installed-$(basename "$1" .txt)"
    if [ "$(cat "$stamp" 2>/dev/null)" != "$hash" ]; then
        echo "Installing $1 (once; this can take some minutes)"
        python -m pip install --quiet --disable-pip-version-check -r "$1"
        echo "$hash" >"$stamp"
    fi
}
