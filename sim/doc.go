// Package sim is a deterministic world: one seed draws three sites with a host each,
// sometimes a witness, a few volumes with a client each, the links between them, a
// replicated log, and everything that happens. There is no goroutine, clock, disk or
// network in it; time is a number, and a heap of events moves it.
//
// The cores are the real ones: each host applies the log to a meta.State of its own, at
// its own pace; hand-offs are driven by handoff.Source and handoff.Target; replicas
// move by propagate.Jump, through real frames, answered by propagate.Offer and
// propagate.Answerer. What a host does around them is written here as a small model
// (host.go, move.go, replica.go, promote.go): the rules that a real host is held to.
//
//	event.go    the heap of events, the links
//	log.go      one replicated log, seen from outside
//	host.go     what is durable, restart, writes and flushes, fences
//	move.go     both sides of a hand-off
//	replica.go  jumps, reports, what may be dropped
//	promote.go  a forced promote, and what a fenced-out owner keeps
//	client.go   clients, and the actions that are drawn
//	check.go    the checkers
//
// A world first runs with faults: messages are lost, delayed and doubled, links are
// cut in one direction or both, hosts crash and lose what was not synced, the leader is
// lost, a host may be lost for good. Then all faults end, and it has to come to rest
// within SettleTime. After each event the checkers compare it with what was promised:
//
//	I1  a grant names exactly where the fence before it ends, and no two hosts
//	    acknowledge at once but after a forced promote of an owner that is cut off (G1)
//	I2  what was flushed survives a crash, and of the rest a prefix (G2)
//	I3  a position names one content, and what a replica has at it is that (G3)
//	I4  who is handed a volume begins with the last acknowledged write (G4)
//	I5  a forced promote reports as many lost epochs as there are (G5)
//	I6  what was acknowledged under a lost fence, and is on the disk that came back, is
//	    in a branch (G6)
//	I7  who is said to hold a position holds it, and no root or confirmed pin becomes
//	    unreadable while every disk is there
//	I8  who has said that it refuses data under a fence answers nothing under it
//	I9  in the end every volume has one owner, every placed replica is at the head,
//	    and all hosts have the same state, byte for byte
//
// Rules of a host that a world found to be needed:
//
//   - A host that starts anew may see an older state than it has acted on. The highest
//     fence that it has seen pass is on its disk, and it owns nothing at or below it.
//   - So its floor may be above the fence it served under before the state shows why.
//     It then refuses data, and keeps what it has until the state shows a fork or a
//     hand-off.
//   - It drops nothing before a report of this start is applied, and nothing that a
//     report on its way says it holds.
//   - It deletes after a Release was applied only if it has not reported since it asked.
//
// Run(Options) runs a world; the same options give the same world. A planted Bug breaks
// a rule on purpose, to see that the checkers notice.
package sim
