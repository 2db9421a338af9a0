// Package failpoint has named points at which a test of real processes makes the program
// end or wait. It is outside of every path: the program as it is shipped has [Hit] as an
// empty function, and only the build tag failpoints gives it a body.
//
// With the tag, the environment variable SCSTORE_FAILPOINTS names a folder, one for each
// process. A point asks it at each visit whether there is a file of its name. "kill" in it
// ends the process with SIGKILL, "hold" has everybody who comes to the point wait there.
// The first visit renames the file to NAME.hit: so the test sees that the point was met,
// and a process that is started again is not killed again. Who is held goes on once
// NAME.hit is removed.
//
// Invariants:
//
//	I1 without the tag nothing is read and nothing is done
//	I2 a process that was killed at a point has done nothing beyond it
package failpoint
