// Package nbdtest holds what tests of the NBD door and of its devices share: a
// sparse device in memory, and a suite that every device must pass.
//
// MemDevice is a real device, not a stand-in: holes of 4096-byte blocks, all
// operations, any alignment. Hooks let a test delay, fail or count single calls.
//
// It does not import package nbd, so that tests within that package can use it.
//
//	I1 A block that was never written, or was zeroed or discarded, is a hole and
//	   reads as zeroes.
//	I2 Blocks are read and written one at a time: concurrent requests may
//	   interleave between blocks, never within one 1 MiB stripe's part of a call.
package nbdtest
