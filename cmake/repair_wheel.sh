#!/bin/sh
# Gives a wheel the tag of the oldest glibc that it runs on: `repair_wheel.sh WHEEL FOLDER`.
# torch's libraries stay outside: the ones that count are those of the torch that the user has.
exec auditwheel repair --wheel-dir "$2" --exclude 'libtorch*' --exclude 'libc10*' "$1"
