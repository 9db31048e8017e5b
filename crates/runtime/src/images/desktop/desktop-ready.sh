#!/bin/sh
# The desktop is drawn, the browser waits, and what a first screenshot needs has been read.
export DISPLAY=:0
xdpyinfo >/dev/null && xdotool search --onlyvisible --class xfdesktop >/dev/null && xdotool search --onlyvisible --class xfce4-panel >/dev/null &&
  xrandr | grep -q '^screen connected 1024x768' && [ -S "$(readlink ~/.config/chromium/SingletonSocket)" ] &&
  scrot --pointer --overwrite /tmp/desktop-ready.png && rm /tmp/desktop-ready.png
