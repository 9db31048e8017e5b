#!/bin/sh
# Returns when no client's start of an X server is on its way: a shell that is about to run `Xvfb`, or that program of ours, which
# becomes the server or ends. Within 30 s, for a shell may also stay.
tries=0
while [ "$tries" -lt 300 ] && pgrep -f '^[^ ]*sh (-l )?(-c )?(/usr/local/bin/)?Xvfb :' >/dev/null; do
  sleep 0.1
  tries=$((tries + 1))
done
