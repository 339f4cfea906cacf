#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-3.0-or-later
# Run the parts of the tests that are named, each a target of the Makefile and each to its end even when an earlier one
# failed. At last repeat what each part came to, and how long it took.
set -euo pipefail

cd "$(dirname "$(readlink -f "$0")")/.."
mkdir -p build
log=build/tests.log
: >"$log"

failed=""
took=""
for part in "$@"; do
    begun=$SECONDS status=0
    make --no-print-directory "$part" 2>&1 | tee -a "$log" || status=$?
    took+=$(printf '%-12s %5d s  %s' "$part" $((SECONDS - begun)) "$([ $status = 0 ] && echo passed || echo failed)")$'\n'
    [ $status = 0 ] || failed+=" $part"
done

echo "--- what the parts came to, in $SECONDS s"
printf '%s' "$took"
grep -E '^(=+ .*(passed|failed|error|skipped).* in .*=+|(lint|sanity): .*(passed|failed).*)$' "$log" || true
if [ -n "$failed" ]; then
    echo "failed:$failed"
    exit 1
fi
