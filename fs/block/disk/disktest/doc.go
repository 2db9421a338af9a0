// Package disktest is the conformance suite of disk.FS. The real folder and the
// simulated one both pass it; without that the crash tests would prove nothing
// about the real one.
//
// It checks what a running process can see. What a crash may leave is the business
// of package crashdisk and of its own tests.
package disktest
