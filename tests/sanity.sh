#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Runs "ansible-test sanity" over the collection as it is shipped: the archive that "ansible-galaxy collection build"
# makes, unpacked under build/sanity. Arguments are passed on, e.g. "tests/sanity.sh --test validate-modules".
#
# ansible-test makes a virtual environment for every group of tests and fills it from the Python package index. It wants
# to bootstrap pip from a server of its own; where that server is out of reach a wheel of pip from the package index does
# as well, so its place in the cache of ansible-test is taken by a small script. All of it is in build/, not in the
# user's home. Nothing is compiled that may never be imported: that was a third of the time.
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
if [ -x "$here/.venv/bin/ansible-test" ]; then
    PATH="$here/.venv/bin:$PATH"
fi
work="$here/build/sanity"
tree="$work/ansible_collections/cvm/fde"
cache="$work/cache"

rm -rf "$work/ansible_collections" "$work/archive"
mkdir -p "$tree/tests" "$cache"
ansible-galaxy collection build --output-path "$work/archive" "$here" >/dev/null
tar -xzf "$work"/archive/cvm-fde-*.tar.gz -C "$tree"
cp "$here/galaxy.yml" "$tree/"
# One list of exceptions, whatever the version of ansible-core; ansible-test wants one for each.
mkdir "$tree/tests/sanity"
core=$(python3 -c 'from ansible.release import __version__ as v; print(".".join(v.split(".")[:2]))')
grep -v '^#' "$here/tests/sanity/exceptions.txt" >"$tree/tests/sanity/ignore-$core.txt"
# ansible-test asks git for the list of files, and must not ask the checkout, which ignores build/.
git init --quiet "$tree"
echo /tests/output/ >"$tree/.git/info/exclude"

requirements=$(python3 -c 'import ansible_test, os; print(os.path.join(list(ansible_test.__path__)[0], "_internal/python_requirements.py"))')
for version in $(sed -n "s/.*pip='\([0-9.]*\)'.*/\1/p" "$requirements"); do
    wheel="$cache/pip-$version-py3-none-any.whl"
    if [ ! -e "$wheel" ]; then
        python3 -m pip --disable-pip-version-check --quiet download --no-deps --dest "$cache" "pip==$version"
    fi
    cat >"$cache/get_pip_$(echo "$version" | tr . _).py" <<SHIM
import subprocess
import sys

subprocess.check_call([sys.executable, "$wheel/pip", "install", "--no-index", "$wheel"])
SHIM
done

# One Python, the one that ansible-test itself runs on: others that are found on a machine may be broken or incomplete.
python=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
cd "$tree"
# sanity LANE [ARGUMENT...]: every lane has a home of its own, because ansible-test keeps one virtual environment there for
# all tests that require nothing, and two that start at once delete it from under each other.
sanity() {
    home="$work/homes/$1"
    shift
    mkdir -p "$home/.ansible/test" "$home/.config" "$home/.pip"
    ln -sfn "$cache" "$home/.ansible/test/cache"
    if [ -e "${HOME:-/nonexistent}/.config/pip" ]; then
        ln -sfn "$HOME/.config/pip" "$home/.config/pip"
    fi
    printf '[install]\nno-compile = true\nquiet = 2\n' >"$home/.pip/pip.conf"
    HOME="$home" ansible-test sanity --local --python "$python" --color no "$@"
}
if [ $# -gt 0 ]; then
    sanity chosen "$@"
    exit
fi

# The slow tests run beside the others, as no test uses more than one core for long.
# The test "import" has neither cryptography nor tpm2-pytss. Modules must be importable without them, because a target may
# lack them; the control node always has cryptography, which ansible-core depends on.
begun=$(date +%s)
sanity pylint --test pylint >"$work/pylint.log" 2>&1 &
pylint=$!
sanity import --test import plugins/modules/ plugins/module_utils/ plugins/doc_fragments/ >"$work/import.log" 2>&1 &
import=$!
failed=""
sanity others --skip-test pylint --skip-test import || failed="$failed others"
wait $pylint || failed="$failed pylint"
wait $import || failed="$failed import"
cat "$work/pylint.log" "$work/import.log"
if [ -n "$failed" ]; then
    echo "sanity: failed:$failed" >&2
    exit 1
fi
echo "sanity: all passed in $(($(date +%s) - begun)) s"
