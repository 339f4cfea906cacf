#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Checks style and types of everything in the checkout. Needs no network; changes nothing but caches.
# All checks run even when one of them fails; the exit status says whether all passed.
set -u

cd "$(dirname "$0")/.." || exit 1
here=$(pwd)
if [ -x "$here/.venv/bin/ruff" ]; then
    PATH="$here/.venv/bin:$PATH"
fi

# Ansible, mypy and the tests see the checkout under the name that Python imports it by.
collections="$here/build/collections"
mkdir -p "$collections/ansible_collections/cvm"
ln -sfn "$here" "$collections/ansible_collections/cvm/fde"
export ANSIBLE_COLLECTIONS_PATH="$collections"
plugins="build/collections/ansible_collections/cvm/fde/plugins"

failed=""
check() {
    name=$1
    shift
    echo "lint: $name"
    "$@" || failed="$failed $name"
}

shell_syntax() {
    status=0
    for script in $(git ls-files --cached --others --exclude-standard -- '*.sh'); do
        [ ! -e "$script" ] || bash -n "$script" || status=1
    done
    return $status
}

check ruff ruff check --quiet --output-format concise .
check format ruff format --check --output-format concise .
check types mypy "$plugins/module_utils" "$plugins/plugin_utils"
check shell shell_syntax
check ansible-lint ansible-lint --nocolor -q
check changelog antsibull-changelog lint
check plugin-docs antsibull-docs lint-collection-docs --plugin-docs --validate-collection-refs=self .

if [ -n "$failed" ]; then
    echo "lint: failed:$failed" >&2
    exit 1
fi
echo "lint: all passed"
