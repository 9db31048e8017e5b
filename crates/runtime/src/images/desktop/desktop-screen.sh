#!/bin/sh
# desktop-screen WIDTHxHEIGHT DPI: gives the display of the snapshot another size, as if it had been started with it.
set -eu
size=$1 dpi=$2 width=${1%x*} height=${1#*x}
if ! xrandr | grep -q "^screen connected.* ${size}+0+0"; then
  if ! xrandr | grep -q "^ *$size "; then
    xrandr --newmode "$size" 60 "$width" "$width" "$width" "$width" "$height" "$height" "$height" "$height"
    xrandr --addmode screen "$size"
  fi
  xrandr --output screen --mode "$size"
  xdotool mousemove "$((width / 2))" "$((height / 2))"
fi
if [ "$dpi" != 96 ]; then xrandr --fb "$size" --dpi "$dpi"; fi
