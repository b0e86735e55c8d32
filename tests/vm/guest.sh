#!/bin/sh
# Inside the guest: makes it ready, runs the test binary $2 with the program $3 and the arguments behind, and says how that
# ended in the folder $1, which the host reads. Exit codes of a whole VM are not to be relied on.
set -eu

results=$1 tests=$2 program=$3
shift 3

# The host's root is shared over 9p, which is slow and read-only; what the tests make lies on a disk of their own.
disk=/run/disk
modprobe virtio_blk
modprobe loop
# Each test takes devices of its own.
modprobe nbd max_part=0 nbds_max=64
[ -e /dev/vda ] || sleep 1
mkdir -p "$disk"
# One that has a file system is of the machine that was killed.
mount -t ext4 /dev/vda "$disk" 2>/dev/null || {
	mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 /dev/vda
	mount /dev/vda "$disk"
}

appears() {
	for _ in $(seq 100); do
		[ -e "$1" ] && return 0
		sleep 0.1
	done
	return 1
}

# An NVDIMM is a raw block device at first. What makes files on it mappable is mode fsdax, and that stays; the same as
# ndctl create-namespace --force --reconfig=namespace0.0 --mode=fsdax
if [ -e /sys/firmware/acpi/tables/NFIT ]; then
	nd=/sys/bus/nd
	modprobe nfit
	modprobe nd_pmem
	appears /dev/pmem0
	if [ "$(cat $nd/devices/namespace0.0/mode)" = raw ]; then
		echo namespace0.0 >$nd/drivers/nd_pmem/unbind
		echo pmem >$nd/devices/pfn0.0/mode
		cat /proc/sys/kernel/random/uuid >$nd/devices/pfn0.0/uuid
		echo namespace0.0 >$nd/devices/pfn0.0/namespace
		echo pfn0.0 >$nd/drivers/nd_pmem/bind
		appears /dev/pmem0
	fi
fi
ip link set lo up 2>/dev/null || ifconfig lo up
cp "$tests" "$disk/tests"
cp "$program" "$disk/nbd-mirror"

echo "guest: Linux $(uname -r), $(nproc) CPUs, $(sed -n "s/MemTotal: *//p" /proc/meminfo), ready after $(cut -d" " -f1 /proc/uptime) s"
export TMPDIR="$disk" NBD_MIRROR_BIN="$disk/nbd-mirror" NBD_MIRROR_VM_RESULTS="$results" RUST_BACKTRACE=1
# It is emulated, on a host that may have other work.
export NBD_MIRROR_TEST_PATIENCE=4
{
	status=0
	"$disk/tests" --include-ignored --test-threads=1 --nocapture "$@" || status=$?
	dmesg >"$results/dmesg" || true
	echo "$status" >"$results/outcome"
} 2>&1 | tee "$results/output"
