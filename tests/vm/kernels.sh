#!/bin/sh
# Fetches the kernels that the VM tests boot, and unpacks each below the folder $1. Nothing is installed: this machine
# goes on booting what it booted before. Debian's own kernel has to be had; the newer one where apt knows it.
set -eu

folder=$1
mkdir -p "$folder"
cd "$folder"

# The package that a meta package stands for, by the name of its kernel.
real_package() {
	apt-cache depends --no-recommends --no-suggests "$1" 2>/dev/null \
		| sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1
}

fetch() {
	package=$(real_package "$1")
	[ -n "$package" ] || return 1
	version=${package#linux-image-}
	[ -e "$version/complete" ] && return 0
	echo "Fetching the kernel $version"
	rm -rf "$version"
	mkdir "$version"
	(cd "$version" && apt-get -q download "$package" && dpkg-deb -x ./*.deb . && rm ./*.deb) || return 1
	/sbin/depmod -b "$version" "$version"
	touch "$version/complete"
}

known() { [ -n "$(real_package linux-image-amd64)" ]; }

# An image of a container comes without apt's lists.
if ! known; then
	if [ "$(id -u)" -eq 0 ]; then apt-get -q update; else sudo apt-get -q update; fi
fi
fetch linux-image-amd64
fetch linux-image-6.12-amd64 || echo 'VM TESTS: apt has no linux-image-6.12-amd64: only one kernel is tested' >&2
