#!/bin/sh
# Sees to it that the browser tests find a Chromium on PATH: chromium, chromium-browser or google-chrome.
# Root on Debian gets it installed. Elsewhere a missing one means that those tests are skipped; with CI=true it is a failure.
set -u

found() {
    command -v chromium || command -v chromium-browser || command -v google-chrome
}

if found >/dev/null; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing Chromium for the browser tests ..."
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null
    if found >/dev/null; then
        exit 0
    fi
fi
echo "No Chromium on PATH, so the browser tests cannot run. Install it, on Debian with: apt-get install chromium" >&2
if [ "${CI:-}" = true ]; then
    exit 1
fi
