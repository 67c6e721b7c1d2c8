#!/usr/bin/env bash
# Install the third-party archive readers that the tests compare with, where that is possible: as root on Debian.
# Elsewhere the tests that need a missing one say so and skip.
set -euo pipefail

missing=()
type -P xz >/dev/null || missing+=(xz-utils)
type -P bsdtar >/dev/null || missing+=(libarchive-tools)
type -P 7zz >/dev/null || type -P 7z >/dev/null || missing+=(7zip)
type -P busybox >/dev/null || missing+=(busybox)
type -P pixz >/dev/null || missing+=(pixz)
type -P sha256sum >/dev/null || missing+=(coreutils)
[[ ${#missing[@]} -gt 0 ]] || exit 0
if [[ "$(id -u)" != 0 ]] || ! type -P apt-get >/dev/null; then
    echo "not installed: ${missing[*]}; the tests that need them skip (root on Debian would install them)"
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
