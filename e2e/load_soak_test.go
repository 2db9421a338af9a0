//go:build soak

package e2e_test

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"scstore"
	"scstore/nbd"
)

// load is random writes of one block behind the chain, at a rate or as fast as they go.
type load struct {
	name      string
	depth     int // requests at once
	perSecond int // 0: as many as there can be
}

// request is one write. It counts from when it was due: one that waits for others is late,
// whoever is at fault.
type request struct{ due, end time.Time }

func (r request) took() time.Duration { return r.end.Sub(r.due) }

// run writes until ctx ends, and returns all requests.
func (l load) run(ctx context.Context, url string) ([]request, error) {
	client, err := nbd.Dial(ctx, url, nbd.DialOptions{MaxInFlight: l.depth})
	if err != nil {
		return nil, err
	}
	defer func() { _ = client.Close() }() // what counts was acknowledged
	began, next := time.Now(), atomic.Int64{}
	due := func() time.Time {
		if l.perSecond == 0 {
			return time.Now()
		}
		at := began.Add(time.Duration(next.Add(1)) * time.Second / time.Duration(l.perSecond))
		time.Sleep(time.Until(at))
		return at
	}
	done := make([][]request, l.depth)
	var workers errgroup.Group
	for i := range done {
		workers.Go(func() (err error) {
			done[i], err = write(ctx, client, rand.New(rand.NewPCG(uint64(i), 1)), due)
			return err
		})
	}
	err = workers.Wait()
	var all []request
	for _, list := range done {
		all = append(all, list...)
	}
	return all, err
}

// write is one of the requests at once.
func write(ctx context.Context, client *nbd.Client, rng *rand.Rand, due func() time.Time) (list []request, err error) {
	content := random(mib, rng.Uint64())
	blocks := (client.Size() - chainBytes) / scstore.BlockSize
	for ctx.Err() == nil {
		r := request{due: due()}
		p := content[rng.IntN(len(content)-scstore.BlockSize):][:scstore.BlockSize]
		if err := client.WriteAt(context.WithoutCancel(ctx), p, chainBytes+rng.Int64N(blocks)*scstore.BlockSize, 0); err != nil {
			return list, err
		}
		r.end = time.Now()
		list = append(list, r)
	}
	return list, nil
}
