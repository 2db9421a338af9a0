// Command demo is a tour of a host on one machine. It makes a bootable disk from
// Debian packages, imports it as an image, bases a volume on it and boots QEMU from
// the volume over NBD. While the guest writes numbered records, each synced before
// its number is printed, it kills the host with SIGKILL, again and again. In the end
// the guest, and once more a second boot, must find every record.
//
//	demo [--keep] [--kills N]
//
// It exits with 0 only if nothing was lost. scripts/demo installs what it needs.
package main
