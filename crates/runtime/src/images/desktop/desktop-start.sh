#!/bin/sh
# What is in the snapshot: an X server large enough to become most sizes, a session, and the browser, without a window.
export DISPLAY=:0
/usr/bin/Xvfb :0 -ac -screen 0 1920x1200x24 -retro -dpi 96 -nolisten tcp -nolisten unix &
until /usr/bin/xdpyinfo >/dev/null 2>&1; do sleep 0.2; done
/usr/bin/startxfce4 &
until xdotool search --onlyvisible --class xfce4-panel >/dev/null 2>&1; do sleep 0.5; done
# Only now: the session gives the display the size that it likes best when it begins.
desktop-screen 1024x768 96
chromium --no-startup-window --keep-alive-for-test &
wait
