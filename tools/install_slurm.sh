#!/usr/bin/env bash
# Install the Slurm that the tests start for themselves, where that is possible: as root on Debian.
# Elsewhere the tests that need it say so and skip. No service is left running: the tests start their own.
set -euo pipefail

policy=/usr/sbin/policy-rc.d
missing=()
type -P slurmctld >/dev/null || [[ -x /usr/sbin/slurmctld ]] || missing+=(slurmctld)
type -P slurmd >/dev/null || [[ -x /usr/sbin/slurmd ]] || missing+=(slurmd)
type -P sbatch >/dev/null || missing+=(slurm-client)
type -P munged >/dev/null || [[ -x /usr/sbin/munged ]] || missing+=(munge)
type -P slurmdbd >/dev/null || [[ -x /usr/sbin/slurmdbd ]] || missing+=(slurmdbd)
type -P mariadbd >/dev/null || [[ -x /usr/sbin/mariadbd ]] || missing+=(mariadb-server)
[[ ${#missing[@]} -gt 0 ]] || exit 0
if [[ "$(id -u)" != 0 ]] || ! type -P apt-get >/dev/null; then
    echo "not installed: ${missing[*]}; the tests that need them skip (root on Debian would install them)"
    exit 0
fi

made_policy=
clean_up() {
    [[ -z "$made_policy" ]] || rm -f "$policy"
}
trap clean_up EXIT
if [[ ! -e "$policy" ]]; then
    # 101: invoke-rc.d(8) may not start the service.
    if printf '#!/bin/sh\nexit 101\n' 2>/dev/null >"$policy"; then
        made_policy=1
        chmod 755 "$policy"
    fi
fi
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; }; then
    echo "could not install: ${missing[*]}; the tests that need them skip"
fi
