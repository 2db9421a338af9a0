package block

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"scstore"
	"scstore/fs/block/disk"
	"scstore/fs/block/disk/crashdisk"
	"scstore/internal/invariant"
)

var (
	crashPoints = flag.Int("crash.points", 10000, "crash points to try")
	crashSeed   = flag.Uint64("crash.seed", 0, "replay this seed alone (0: all)")
)

const crashBlocks = 400

// history is what was done to one volume, a number for each block written. A
// recovered store must show a state between the last flushed number and the last
// issued one, the same for all blocks.
type history struct {
	mu      sync.Mutex
	issued  uint64
	flushed uint64
	blocks  [crashBlocks][]uint64 // the numbers of a block's writes; odd: zeroed
}

// write notes writes of n blocks before they are made; it returns the number of
// the first. Numbers rise by two, so that a zeroed block can be told apart.
func (h *history) write(first, n uint64, zero bool) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	start := h.issued + 2
	for i := range n {
		if zero {
			h.blocks[first+i] = append(h.blocks[first+i], start+1)
			continue
		}
		h.issued += 2
		h.blocks[first+i] = append(h.blocks[first+i], h.issued)
	}
	if zero {
		h.issued += 2
	}
	return start
}

// snapshot is the history at the moment of a crash.
func (h *history) snapshot() *history {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := &history{issued: h.issued, flushed: h.flushed}
	for i, b := range h.blocks {
		c.blocks[i] = b[:len(b):len(b)]
	}
	return c
}

// check compares the recovered content with every state that may be there, and
// returns the number up to which writes survived.
func (h *history) check(content []byte) (uint64, error) {
	low, high := h.flushed, h.issued+1
	for b, writes := range h.blocks {
		p := content[b*scstore.BlockSize : (b+1)*scstore.BlockSize]
		got := binary.BigEndian.Uint64(p[8:])
		if got != 0 && binary.BigEndian.Uint64(p) != uint64(b) {
			return 0, fmt.Errorf("block %d holds block %d", b, binary.BigEndian.Uint64(p))
		}
		// The writes of the block after which it reads like this.
		fits := false
		best := [2]uint64{}
		for i := -1; i < len(writes); i++ {
			at := uint64(0)
			if i >= 0 {
				at = writes[i]
			}
			from, to := at&^1, h.issued+1
			if i+1 < len(writes) {
				to = writes[i+1]&^1 - 1
			}
			shows := at
			if at&1 == 1 {
				shows = 0
			}
			if got == shows && to >= low && from <= high {
				// A block that reads as zeros may have been zeroed or never written:
				// the other blocks decide.
				if !fits {
					best = [2]uint64{from, to}
				}
				best = [2]uint64{min(best[0], from), max(best[1], to)}
				fits = true
			}
		}
		if !fits {
			return 0, fmt.Errorf("block %d reads %d; writes %v, flushed %d, issued %d, low %d, high %d", b, got, writes, h.flushed, h.issued, low, high)
		}
		low, high = max(low, best[0]), min(high, best[1])
		if low > high {
			return 0, fmt.Errorf("block %d reads %d: no one prefix of the writes looks like this", b, got)
		}
	}
	return low, nil
}

// syncedIndex is a memoryIndex that several goroutines may look at.
type syncedIndex struct {
	mu sync.Mutex
	memoryIndex
}

func (x *syncedIndex) commit(p rootPointer) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.memoryIndex.commit(p)
}

func (x *syncedIndex) root() (rootPointer, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.memoryIndex.root()
}

func (x *syncedIndex) copy() *syncedIndex {
	x.mu.Lock()
	defer x.mu.Unlock()
	return &syncedIndex{memoryIndex: memoryIndex{x.pointer}}
}

// crashPoint is a disk as a power loss left it, and what it has to show.
type crashPoint struct {
	d     *crashdisk.Disk
	index *syncedIndex
	want  *history
}

// world runs one store on one simulated disk and takes crash points while it runs.
type world struct {
	rng   *rand.Rand
	fs    func(*crashdisk.Disk) disk.FS // plants bugs
	plant planted

	d     *crashdisk.Disk
	index *syncedIndex
	hist  *history
	store *Store
	table *Table

	mu      sync.Mutex
	every   int // one crash point in so many operations, about
	crashes *rand.Rand
	points  []crashPoint
}

func newWorld(seed uint64) *world {
	return &world{
		rng: rand.New(rand.NewPCG(seed, 1)), crashes: rand.New(rand.NewPCG(seed, 2)), every: 12,
		d: crashdisk.New(crashdisk.Options{Seed: seed}), index: &syncedIndex{}, hist: &history{},
		fs: func(d *crashdisk.Disk) disk.FS { return d },
	}
}

// hook takes crash points before disk operations.
func (w *world) hook(op crashdisk.Op) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.crashes.IntN(w.every) == 0 && len(w.points) < 40 {
		index := w.index.copy()
		w.points = append(w.points, crashPoint{w.d.Crash(w.crashes), index, w.hist.snapshot()})
	}
	return nil
}

// open opens the store; hooked says whether crash points are taken meanwhile.
func (w *world) open(t testing.TB, hooked bool) error {
	if hooked {
		w.d.Fail(w.hook)
	}
	s, err := Open(t.Context(), Options{
		FS: w.fs(w.d), SegmentSlots: testSlots, ReserveBytes: 1 << 20, MapMemoryBytes: 1 << 20, index: w.index, plant: w.plant,
		pick: pickAny(w.rng.Uint64()),
	})
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	w.store = s
	w.table, err = s.Table(testID(1))
	if errors.Is(err, scstore.ErrNotFound) && w.hist.flushed == 0 {
		w.table, err = s.Create(CreateOptions{ID: testID(1), SizeBytes: crashBlocks * scstore.BlockSize})
	}
	return err
}

// pickAny has checkpoints merge any number of runs, so that small maps meet what
// large ones do.
func pickAny(seed uint64) func(int) int {
	var mu sync.Mutex
	rng := rand.New(rand.NewPCG(seed, 5))
	return func(runs int) int {
		mu.Lock()
		defer mu.Unlock()
		if runs > 8 {
			return runs - rng.IntN(2)
		}
		return rng.IntN(runs + 1)
	}
}

// run does steps random operations.
func (w *world) run(steps int) error {
	for range steps {
		first := w.rng.Uint64N(crashBlocks)
		n := min(1+w.rng.Uint64N(4), crashBlocks-first)
		if w.rng.IntN(8) == 0 {
			n = min(1+w.rng.Uint64N(60), crashBlocks-first)
		}
		var err error
		switch k := w.rng.IntN(100); {
		case k < 6:
			w.hist.write(first, n, true)
			err = w.table.ZeroBlocks(scstore.Extent{First: scstore.BlockIndex(first), Count: n}, k%2 == 0)
		case k < 18:
			h := w.hist.snapshot()
			if err = w.store.Sync(); err == nil {
				w.hist.mu.Lock()
				w.hist.flushed = h.issued
				w.hist.mu.Unlock()
			}
		case k < 30:
			err = w.store.Publish()
		case k < 32:
			err = w.store.Checkpoint()
		case k < 33:
			err = w.cleanOne()
		default:
			p := make([]byte, n*scstore.BlockSize)
			number := w.hist.write(first, n, false)
			for i := range n {
				fillBlock(p[i*scstore.BlockSize:(i+1)*scstore.BlockSize], first+i, number+2*i)
			}
			err = w.table.WriteBlocks(scstore.BlockIndex(first), p)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// cleanOne empties the emptiest segment and frees it.
func (w *world) cleanOne() error {
	if err := w.store.checkpointMode(true, false); err != nil {
		return err
	}
	if victims := w.store.victims(true); len(victims) > 0 {
		if _, err := w.store.cleanSegment(context.Background(), unlimited(), victims[0]); err != nil {
			return err
		}
	}
	return w.store.Checkpoint()
}

// resume opens a crash point, checks it, and leaves it open with its history cut
// to what survived.
func resume(t testing.TB, p crashPoint, w *world, hooked bool) error {
	w.d, w.index, w.hist = p.d, p.index, p.want
	if err := w.open(t, hooked); err != nil {
		return err
	}
	content := make([]byte, crashBlocks*scstore.BlockSize)
	gaps, _, err := w.table.ReadBlocks(0, content, nil, false)
	if err != nil {
		return err
	}
	for _, g := range gaps {
		clear(content[g.First.Offset():g.End().Offset()])
	}
	if n := w.store.Damage(); len(n) > 0 {
		for _, d := range n {
			if !d.Healed {
				return fmt.Errorf("damage without rot: %+v", d)
			}
		}
	}
	upTo, err := w.hist.check(content)
	if err != nil {
		return fmt.Errorf("%w (recovery %+v)", err, w.store.Recovery())
	}
	w.hist.mu.Lock()
	defer w.hist.mu.Unlock()
	w.hist.issued, w.hist.flushed = max(w.hist.issued, upTo), upTo
	for b := range w.hist.blocks {
		got := binary.BigEndian.Uint64(content[b*scstore.BlockSize+8:])
		w.hist.blocks[b] = nil
		if got != 0 {
			w.hist.blocks[b] = []uint64{got}
		}
	}
	return nil
}

// crashRun plays one seed: a workload with crash points, each of them recovered;
// some of those go on working and crash again, also while they recover. It returns
// how many crash points were checked.
func crashRun(t testing.TB, seed uint64, tweak func(*world)) (checked int, err error) {
	w := newWorld(seed)
	tweak(w)
	if err := w.open(t, true); err != nil {
		return 0, err
	}
	err = w.run(120)
	w.d.Fail(nil)
	w.store.abandon()
	if err != nil {
		return 0, err
	}
	points := w.points
	for depth := 0; len(points) > 0 && depth < 3; depth++ {
		var next []crashPoint
		for i, p := range points {
			again := newWorld(seed<<8 + uint64(depth)<<6 + uint64(i))
			tweak(again)
			again.every = 25
			deeper := i%6 == 0
			if err := resume(t, p, again, deeper); err != nil {
				return checked, fmt.Errorf("crash %d.%d: %w", depth, i, err)
			}
			checked++
			if deeper {
				if err := again.run(30); err != nil {
					return checked, fmt.Errorf("crash %d.%d: %w", depth, i, err)
				}
			}
			again.d.Fail(nil)
			again.store.abandon()
			next = append(next, again.points...)
		}
		points = next
	}
	return checked, nil
}

func TestCrash_EveryFlushedBlockSurvives(t *testing.T) {
	var mu sync.Mutex
	checked, seed := 0, uint64(0)
	points := *crashPoints
	if invariant.Enabled { // with the race detector it takes ten times as long
		points /= 10
	}
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				mu.Lock()
				seed++
				mine, done := seed, checked >= points
				mu.Unlock()
				if *crashSeed != 0 {
					if mine > 1 {
						return
					}
					mine = *crashSeed
				}
				if done || t.Failed() {
					return
				}
				n, err := crashRun(t, mine, func(*world) {})
				if err != nil {
					t.Errorf("seed %d: %v (replay: -crash.seed=%d)", mine, err, mine)
				}
				mu.Lock()
				checked += n
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	t.Logf("%d crash points in %d runs", checked, seed)
}

// lazyDisk forgets to sync log segments now and then: the planted missing fsync.
type lazyDisk struct {
	*crashdisk.Disk
	calls *atomic.Uint64
}

func (l lazyDisk) Open(name string) (disk.File, error) {
	f, err := l.Disk.Open(name)
	return lazyFile{f, name, l.calls}, err
}

func (l lazyDisk) Create(name string) (disk.File, error) {
	f, err := l.Disk.Create(name)
	return lazyFile{f, name, l.calls}, err
}

type lazyFile struct {
	disk.File
	name  string
	calls *atomic.Uint64
}

func (f lazyFile) Datasync() error {
	if strings.HasSuffix(f.name, ".seg") && f.calls.Add(1)%3 == 0 {
		return nil
	}
	return f.File.Datasync()
}

func TestCrash_PlantedBugsAreCaught(t *testing.T) {
	for name, tweak := range map[string]func(*world){
		"missing fsync": func(w *world) {
			w.fs = func(d *crashdisk.Disk) disk.FS { return lazyDisk{d, new(atomic.Uint64)} }
		},
		"missing data check": func(w *world) { w.plant = plantTrustTail },
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(50) {
				if _, err := crashRun(t, seed+1, tweak); err != nil {
					t.Logf("caught at seed %d: %v", seed+1, err)
					return
				}
			}
			t.Fatal("the planted bug was not caught in 50 runs")
		})
	}
}
