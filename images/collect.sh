#!/bin/sh
# Gathers what the images hold into build/images/: for each role the packages of its extra, from uv.lock with their
# hashes, and our own package; and launcher and measuring program as zipapps. Run from anywhere; needs `uv` (make setup brings one).
set -eu
cd "$(dirname "$0")/.."
UV=${UV:-uv}
python=${PYTHON:-.venv/bin/python}
mkdir -p build/images

collect() { # role, options of `uv export`
    role=$1
    shift
    directory=build/images/$role
    rm -rf "$directory"
    requirements=build/images/$role.txt
    "$UV" export --quiet --frozen --no-default-groups --no-emit-workspace --no-header "$@" \
        --output-file "$requirements" >/dev/null
    "$UV" pip install --quiet --python "$python" --target "$directory" --require-hashes --no-deps \
        --link-mode copy -r "$requirements"
    cp -R operator/uellm "$directory/uellm"
    find "$directory" -name __pycache__ -type d -prune -exec rm -rf {} +
}

collect operator --extra controller --extra extender --extra gateway
# The sidecar does not plan.
collect sidecar --extra sidecar --no-emit-package numpy
# Extras of the sidecar that its image is otherwise without, such as SIDECAR_EXTRAS="tracing predictor".
if [ -n "${SIDECAR_EXTRAS:-}" ]; then
    # shellcheck disable=SC2046,SC2086
    collect sidecar --extra sidecar $(printf -- '--extra %s ' $SIDECAR_EXTRAS)
fi
collect profiler --extra profiler
PYTHONPATH=operator "$python" -m uellm.launcher.build build/images/launcher.pyz
PYTHONPATH=operator "$python" -m uellm.measuring.build build/images/measuring.pyz
