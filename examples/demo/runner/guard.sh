#!/bin/sh
# Cleans up when the runner is gone, however it went, `kill -9` included: the pipe on standard input ends then. Until that moment
# each line names a process group that the runner started (its leader's pid).
trap '' INT TERM HUP

folder=$1
groups=
while read -r group; do
  groups="$groups $group"
done

for group in $groups; do
  kill -KILL "-$group" 2>/dev/null
done
rm -rf "$folder"
