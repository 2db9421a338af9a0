// Command demo is a tour on one machine, in two acts. It makes a bootable disk from
// Debian packages, which QEMU boots over NBD. The guest writes numbered records, each
// synced before its number is printed.
//
// One host: the disk is imported as an image, a volume is based on it, and the host is
// killed with SIGKILL under the guest. The guest, and once more a second boot, must
// find every record.
//
// Three sites, each in a network namespace of its own, 80 ms apart: the disk moves
// from a to b with no data, in one and a half round trips, and the guest boots there.
// It is copied to c; b is cut off while its guest writes; c is promoted and goes on;
// b comes back, and what only it has is kept under a name of its own.
//
//	demo [--keep] [--kills N]
//
// It exits with 0 only if nothing was lost. scripts/demo installs what it needs. The
// second act needs root.
package main
