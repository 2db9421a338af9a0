package sim

import (
	"container/heap"
	"fmt"
	"time"
)

// event is something that happens at a time of the world.
type event struct {
	at  time.Duration
	seq uint64 // ties are broken by who came first
	do  func()
}

type queue []event

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *queue) Push(x any)   { *q = append(*q, x.(event)) }

func (q *queue) Pop() any {
	last := len(*q) - 1
	e := (*q)[last]
	*q = (*q)[:last]
	return e
}

// after has something happen later.
func (w *World) after(d time.Duration, do func()) {
	w.seq++
	heap.Push(&w.events, event{w.now + d, w.seq, do})
}

// step lets the next thing happen.
func (w *World) step() {
	e := heap.Pop(&w.events).(event)
	w.now = e.at
	e.do()
}

// one reports true once in n draws.
func (w *World) one(n int) bool { return w.rng.IntN(n) == 0 }

// between draws a duration.
func (w *World) between(low, high time.Duration) time.Duration {
	return low + time.Duration(w.rng.Int64N(int64(high-low)))
}

// say adds a line to the trace.
func (w *World) say(format string, args ...any) {
	if w.o.Trace {
		w.trace = append(w.trace, fmt.Sprintf("%9.3f ", w.now.Seconds())+fmt.Sprintf(format, args...))
	}
}

// fail notes the first broken promise.
func (w *World) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf("at %v: "+format, append([]any{w.now}, args...)...)
		w.say("BROKEN: %v", w.err)
	}
}

// linked reports whether what one host sends to another arrives now.
func (w *World) linked(from, to *host) bool { return from.up && to.up && !w.cut[from.n][to.n] }

// send has a message arrive, once, twice or never, in any order.
func (w *World) send(from, to *host, do func()) {
	if from == to {
		to.after(w.between(0, time.Millisecond), do)
		return
	}
	copies := 1
	switch {
	case !w.linked(from, to), w.losing && w.one(w.lossIn):
		return
	case w.losing && w.one(15):
		copies = 2
	}
	for range copies {
		w.after(w.between(w.delay/2, w.delay*2), func() {
			if to.up && !w.cut[from.n][to.n] {
				do()
			}
		})
	}
}
