// Package crashdisk is a disk.FS in memory whose power can fail. It stands where
// the real folder stands, below the block store, and offers what a test cannot ask
// of a real disk: every state that the contract of package disk allows after a
// crash, errors on purpose, bits that rot, a disk of a chosen size, and the list
// of the calls that were made.
//
// A Disk knows two contents: what its process sees, and what the platter holds
// for certain. Between them, each 4096-byte page keeps the versions written since
// the last Datasync of its file, each file the lengths it had, and the folder the
// changes of names since the last SyncDir.
//
// Invariants:
//
//	I1 a page buffer never changes once a file refers to it, so disks share them;
//	I2 a chunk is changed only by the inode that owns it; a shared one has no owner
//	   and is copied first, so that Crash and Kill copy no data;
//	I3 a page that is all zeros is not stored;
//	I4 with one caller at a time, equal seeds and equal calls give equal disks.
//
// Lock order: the Disk's mu, then its rngMu. The hook of Fail runs under neither.
//
// Sources: the contract in package disk; the idea of a disk that can be cloned as
// a crash would leave it is common to the tests of storage engines.
package crashdisk
