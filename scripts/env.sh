# Sourced by the other scripts: makes .venv and installs slotd with the given extras.
# Does nothing when the environment is there already and the project file has not changed.

find_python() {
    for candidate in "${PYTHON:-}" python3.13 python3.12 python3.11 python3; do
        if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return 0
        fi
    done
    echo "slotd needs Python 3.11 or newer; set PYTHON to one" >&2
    return 1
}

install_slotd() {
    extras=$1
    python=$(find_python) || exit 1
    if ! [ -x .venv/bin/python ]; then
        "$python" -m venv .venv || {
            echo "cannot make .venv; on Debian and Ubuntu: apt-get install python3-venv" >&2
            exit 1
        }
    fi
    stamp=.venv/installed-$extras
    if ! [ -f "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
        echo "installing slotd[$extras] into .venv" >&2
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[$extras]"
        touch "$stamp"
    fi
}
