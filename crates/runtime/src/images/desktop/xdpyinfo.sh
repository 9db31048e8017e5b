#!/bin/sh
# A display that is being resized is not there yet.
desktop-settled
exec /usr/bin/xdpyinfo "$@"
