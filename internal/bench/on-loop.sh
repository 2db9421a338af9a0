#!/bin/sh
# Runs a command on a file system in a loop-mounted file, and removes it afterwards.
#
#   on-loop.sh xfs 24G /var/tmp scstore bench --dir @
#
# The arguments are the type (ext4 or xfs), the size, the folder for the file, and
# the command; @ in the command stands for the mounted folder. Needs root.
set -eu

if [ $# -lt 4 ]; then
	echo "usage: $0 ext4|xfs SIZE FOLDER COMMAND [ARG...]" >&2
	exit 2
fi
if [ "$(id -u)" != 0 ]; then
	echo "$0: mounting needs root" >&2
	exit 1
fi
type=$1
size=$2
folder=$3
shift 3

work=$(mktemp -d "$folder/on-loop.XXXXXX")
mounted=no
finish() {
	if [ "$mounted" = yes ]; then
		umount "$work/mnt"
	fi
	rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT TERM

# Allocated, not sparse: else the figures are those of two allocators.
fallocate -l "$size" "$work/image"
case $type in
ext4) mkfs.ext4 -q -F "$work/image" ;;
xfs) mkfs.xfs -q -f "$work/image" ;;
*)
	echo "$0: file system $type: want ext4 or xfs" >&2
	exit 2
	;;
esac
mkdir "$work/mnt"
mount -o loop "$work/image" "$work/mnt"
mounted=yes

n=$#
while [ "$n" -gt 0 ]; do
	arg=$1
	shift
	if [ "$arg" = @ ]; then
		arg=$work/mnt
	fi
	set -- "$@" "$arg"
	n=$((n - 1))
done
"$@"
