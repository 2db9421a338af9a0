// Package authority is who is who between hosts: the cluster's own certificate
// authority, the identity that a host's certificate carries, the files in which a
// host keeps its keys, and the one-time token with which a new host joins. It does
// no network I/O; package quicnet builds TLS and the join protocol on it.
//
// # Where keys live
//
// The authority's key is made with the cluster and sealed in a file of mode 0600.
// Every voter may hold it, so that any of them can admit a host or renew a
// certificate; others never do. It leaves a host only over mutual TLS, asked for by
// a host that joined already (quicnet.Net.FetchAuthority). A host's own key is made
// on that host and never leaves it. Certificates last 30 days unless the authority
// says otherwise, and are renewed at half of their life with a fresh key.
//
// # Invariants
//
//	I1 A certificate names exactly one identity: cluster, disk and host, in one URI.
//	   Nothing else in it is read.
//	I2 A certificate is accepted only if this cluster's authority signed it, it is
//	   within its time, it is no authority itself, and its cluster is ours.
//	I3 A file that holds a secret has mode 0600 from its first byte on, and is loaded
//	   only if nobody but its owner can read it.
//	I4 What a crash leaves is a whole folder, or one without a good host certificate
//	   that Create or Install begins anew; a join that was interrupted goes on with
//	   the same key.
//	I5 A token is printed by Encode alone: its String, in a log by mistake, tells
//	   no secret.
//
// Concurrency: Keys is safe for concurrent use; the other types are values, or
// immutable once made. The package starts no goroutine and reads no clock.
//
// Sources: RFC 5280 (certificates), RFC 2986 (requests), RFC 8446 (TLS 1.3); the
// one-time token that pins the authority's fingerprint follows what cluster
// managers agreed on.
package authority
