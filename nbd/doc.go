// Package nbd is the NBD door: a server that exports volumes to unmodified
// hypervisors and tools (qemu, libnbd, nbdkit's clients, fio, the kernel), and
// the small client that import, export and load generation use.
//
// In the write path it is W1 (a request is read, checked and handed to
// Device.WriteAt) and W4 (FLUSH and FUA); in the read path it is R1 and R6.
//
// # One connection
//
// One goroutine reads requests through a large buffer and handles them in place;
// replies gather in an output buffer. Only when no further complete request waits
// in the read buffer, or the output buffer is full, it publishes what was written
// (one Device.Publish for the whole batch) and sends the buffer with one system
// call. So the cost of a system call and of a publish is shared by as many
// requests as the client keeps in flight, and at queue depth 1 nothing is added.
//
// What may wait for a device leaves that goroutine: a read that ReadNowAt
// declines, BLOCK_STATUS and CACHE go to at most MaxWorkers workers, FLUSH and FUA
// to one flusher, which answers all that wait with one Device.Flush. Workers and
// flusher are started when first needed and share a locked writer with the loop.
//
// # Invariants
//
//	I1 A reply to a write-class request (WRITE, TRIM, WRITE_ZEROES) is sent only
//	   after a Device.Publish that began after the request was applied succeeded;
//	   when it fails, every reply that waited for it carries the error.
//	I2 A reply to FLUSH, or to a request with FUA, is sent only after a
//	   Device.Flush that began after every request received before it on this
//	   connection was applied succeeded.
//	I3 What one client can make the server hold is bounded: connections, request
//	   and option sizes, workers, queues and buffers have the named limits below.
//	I4 No byte that a client sends can cause a panic, and a request that is refused
//	   changes nothing, except that the chunks of a WRITE longer than
//	   MaxWriteChunk are applied as they arrive.
//	I5 Between the end of Gate.Pause and Gate.Resume no request is carried out and
//	   none answered, but with ESHUTDOWN on a connection that ends.
//	I6 Serve returns after its goroutines ended, or after CloseTimeout, with an
//	   error that says how many did not.
//
// Lock order: writer.mu is a leaf; Server.mu is never held while a device or a
// socket is used.
//
// Sources: the NBD protocol, doc/proto.md of the NetworkBlockDevice project, and
// the behaviour of qemu-nbd and nbdkit where it leaves a choice; the conformance
// tests run the same bytes against all three.
package nbd
