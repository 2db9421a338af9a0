// Package quicnet is everything between hosts: QUIC with mutual TLS 1.3 on one UDP
// port, the door at which a host proves who it is, the protocol by which a new one
// joins, requests, and streams in classes of urgency. Raft rides on it (package
// raftnet), and so will deltas and fetches. It knows nothing of volumes.
//
// # A connection
//
// The host that dials knows whom: a disk id. TLS proves the identity in the other
// end's certificate (package authority), in both directions, in a full handshake each
// time. Then each end says hello on the control stream: cluster, incarnation, wire
// versions, disk, name, boot number, clock. What does not fit is refused with a code
// and a sentence, counted by reason, and logged now and then; so are handshakes that
// are broken off, streams that mean nothing, and packets that are nobody's. Everything
// that comes later is attributed to the identity in the certificate.
//
// To each peer there is one connection for Raft and control (slot 0) and a pool for
// the rest (slots 1 to N), because one connection's congestion control starves on a
// long path with loss; while packets are lost and no queue shows, the pool grows. They
// are dialed when needed, from either side, and either side opens streams on them. Of
// two that were dialed at once for one slot both ends keep the same one, and the other
// one's streams finish. A request that meets no free connection of the pool takes the
// least busy one while another is dialed; one that nobody waits for rather waits for
// that, unless it is one of few. A quiet connection of the pool is closed; who had a
// stream on its way to it knows from the code that it was not looked at, and sends it
// again.
//
// # Invariants
//
//	I1 No stream is served, and no request carried out, on a connection whose two ends
//	   have not both passed the hello; a connection that asks to join gets one stream
//	   and one answer.
//	I2 Peer is what the certificate proves. A hello that says otherwise is refused.
//	I3 A joining host sends the token's secret only to a host that proved that it is
//	   of the authority which the token names.
//	I4 What a peer can make this host hold is bounded by the limits in options.go and
//	   wire.go; no bytes from a peer cause a panic.
//	I5 Once Allowed refuses a host and Disconnect was called, no connection with it is
//	   open and none opens.
//	I6 A request that failed with ErrUnreachable or ErrBusy was not carried out; one
//	   that may have been failed with ErrIndeterminate.
//	I7 After Close no handler runs, or Close said so.
//
// Lock order: peer.mu, then Net.mu; windows.mu is a leaf. Nothing waits under them.
//
// Concurrency: one goroutine accepts connections, one for each connection accepts
// streams, one for each stream serves it; one closes what is idle, one widens the
// pools, one renews the certificate, one counts packets that are not of QUIC. All are
// joined by Close.
//
// Sources: RFC 9000 (QUIC), RFC 9001 (with TLS), RFC 9218 (urgency), RFC 8446 (TLS).
package quicnet
