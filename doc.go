// Package scstore is the vocabulary of the project: the identifiers, units,
// positions and sentinel errors that every other package shares. It holds no
// logic beyond arithmetic on its own types, does no I/O, and imports only the
// standard library. Reading it is reading the words of ARCHITECTURE.md.
//
// One word has one meaning. A block is the 4096-byte unit of address and
// freshness; an extent is a run of blocks; an epoch is a numbered atomic batch
// of one volume's writes; a fence is the monotonic token of the right to write;
// a position (fence, epoch) names a volume's content.
package scstore
