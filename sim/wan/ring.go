package wan

// ring is a queue over a slice that grows by doubling and is never given back.
type ring[T any] struct {
	slots []T // a power of two
	head  int
	count int
}

// minRingSlots is the first size of a ring, a power of two.
const minRingSlots = 64

func (r *ring[T]) len() int { return r.count }

// at returns the i-th element from the front. Precondition: 0 <= i < len.
func (r *ring[T]) at(i int) *T {
	return &r.slots[(r.head+i)&(len(r.slots)-1)]
}

func (r *ring[T]) push(v T) {
	if r.count == len(r.slots) {
		grown := make([]T, max(minRingSlots, 2*len(r.slots)))
		n := copy(grown, r.slots[r.head:])
		copy(grown[n:], r.slots[:r.head])
		r.slots, r.head = grown, 0
	}
	r.count++
	*r.at(r.count - 1) = v
}

// pop removes the first element. Precondition: there is one.
func (r *ring[T]) pop() T {
	var zero T
	first := r.at(0)
	v := *first
	*first = zero // what it points to is not kept alive
	r.head = (r.head + 1) & (len(r.slots) - 1)
	r.count--
	return v
}
