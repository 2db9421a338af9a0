// Package wan is a wide-area network between real processes on one machine: sites
// that are tens or hundreds of milliseconds apart, with links of a given rate,
// loss and queue, which can be cut and healed while they run. Demonstrations,
// end-to-end tests and benchmarks use it alike. It needs no netem, no bridge and
// no other program.
//
// It is no part of the write or the read path; it is what the path is tested on.
//
// # Carriers
//
// Namespaces (root) gives each site a network namespace of its own, with a TUN
// device and a few addresses of one /24. This process holds the devices: it reads
// each IP packet that a site sends to another one, puts it through the model of
// that directed pair, and writes it to the other site's device when it is due.
// TCP, UDP and ICMP pass. Within a site traffic goes over the loopback device and
// is not delayed. The namespaces have no name and no file: they last as long as
// this process and the ones it started in them, and those end with it.
//
// Relay (no privilege) gives each site loopback addresses and carries UDP only: a
// process of one site that wants to reach an address of another one is told an
// address of a relay instead (Via), whose datagrams and the answers to them go
// through the models of the two directed pairs.
//
// # Structure
//
// model is the core: pure, generic over what is carried, in virtual time. pair
// puts one model under a clock, with one goroutine and one timer for all its
// packets. A carrier reads packets, gives each to a pair, and is the exit where
// they leave. Network is the common face.
//
// # Invariants
//
//	I1 Every packet that was sent is counted once: Sent = Delivered + Refused +
//	   Lost + Overflowed + Cut + InFlight, at every moment.
//	I2 No packet is delivered before its delay is over. How much later it is, is up
//	   to the machine's timer: about a millisecond when it is idle.
//	I3 Without jitter, packets of a directed pair leave in the order in which they
//	   were sent, also across changes of the link.
//	I4 When SetLink or Partition returns with a link down, nothing that was sent
//	   over it before or later is delivered until it is up again.
//	I5 What is held in flight is bounded by MaxFlight packets a directed pair.
//	I6 Equal seeds and equal sequences of packets give equal losses.
//
// Lock order: pair.delivering, pair.mu. No system call under pair.mu.
//
// Sources: the TUN interface (Documentation/networking/tuntap.rst of the kernel),
// namespaces(7), setns(2), prctl(2) for PR_SET_PDEATHSIG.
package wan
