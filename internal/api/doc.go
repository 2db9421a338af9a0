// Package api is the HTTP/JSON interface of one host: the server, the typed
// client that the command line uses, and the format in which the bytes of a
// volume travel through it. It stands on the Service interface, which
// internal/host satisfies, and knows nothing about how a volume is stored.
//
// The JSON types in types.go are version 1 of the interface: the paths begin
// with /v1, and the command line prints the same types for --json. A field is
// added, never renamed or removed.
//
//	GET    /v1/status                       Status
//	GET    /v1/doctor                       lines of Line, the last one holds the Report
//	GET    /v1/nbd                          NBD
//	GET    /v1/volumes, /v1/images          List
//	POST   /v1/volumes                      CreateVolume -> Volume
//	GET    /v1/volumes/NAME, /v1/images/NAME            Volume
//	DELETE /v1/volumes/NAME?force=1&dry_run=1           Removal
//	POST   /v1/volumes/VOLUME@SNAPSHOT/snapshot         lines of Line, the last one holds the Volume
//	POST   /v1/volumes/VOLUME@SNAPSHOT/rollback?force=1&dry_run=1   lines of Line, the last one holds the Rollback
//	GET    /v1/volumes/NAME/data            the bytes, as the stream of stream.go
//	PUT    /v1/images/NAME/data             import: the same stream as the request's body
//	POST   /v1/volumes/NAME/move            Move -> lines of Line, the last one holds the MoveReport
//	POST   /v1/volumes/NAME/promote         Promote -> PromoteReport
//	GET    /v1/volumes/NAME/placement       Placement, of a volume or an image
//	PUT    /v1/volumes/NAME/placement       Placement -> Placement
//	GET    /v1/cluster                      Cluster
//	POST   /v1/tokens                       NewToken -> Token
//	DELETE /v1/hosts/NAME?force=1&dry_run=1             HostRemoval
//	GET    /metrics                         Prometheus text
//	GET    /debug/pprof/...                 profiles of the process (go tool pprof)
//
// A NAME is one path segment: its slashes are escaped as %2F. Where it is a volume's it
// may be a snapshot's, VOLUME@SNAPSHOT, which can be read and removed. An error is a JSON
// Error with the HTTP status of the table in code.go.
//
// Invariants:
//
//	I1 An import lives as long as its request. Whatever ends the request before
//	   Commit returned (an error, a lost client, a stop of the server) aborts it.
//	I2 Every sentinel error of package scstore crosses the interface and comes out
//	   as itself: errors.Is holds on both sides.
//	I3 Close returns after the last handler has returned, so that the store below
//	   can be closed.
//
// The interface has no authentication of its own: it is served on a unix socket
// whose file mode decides who may use it.
package api
