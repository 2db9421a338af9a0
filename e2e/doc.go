// Package e2e drives whole hosts: the built program as a child process, and the
// clients that people use as they are, QEMU, qemu-img, qemu-io, libnbd and fio. It
// sits outside of the write and the read path and sees only what a user sees:
// command line, sockets, files, exit codes.
//
// The package itself is what its tests and the demo share: [Server], a host that
// can be started, asked, stopped and killed, and [Sites], a cluster of hosts with a
// wide-area network between them that can be cut.
//
// Invariants:
//
//	I1  A child ends with its parent, however that ends (PDEATHSIG).
//	I2  Nothing is ended by its name: only processes that were started here.
package e2e
