#!/bin/sh
# Gives a wheel the tag of the oldest glibc that it runs on: `repair_wheel.sh WHEEL FOLDER`.
# Debian 12's GCC gives 2.34. (zig c++ gives 2.18, but its exceptions do not reach torch: a refused call aborts.)
# torch's libraries stay outside: the ones that count are those of the torch that the user has.
exec auditwheel repair --wheel-dir "$2" --exclude 'libtorch*' --exclude 'libc10*' "$1"
