package e2e_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"scstore"
	"scstore/nbd"
)

// chain writes numbers to a volume, one after the other: write n fills block
// (n-1) mod blocks with what is made of n. So the content at any moment is that of
// one number, the last write, and a content that is of no number was never current.
type chain struct {
	blocks int
	acked  uint64    // the last number that was acknowledged
	ackAt  time.Time // when
}

// block returns what write n writes.
func (c *chain) block(n uint64) []byte {
	p := random(scstore.BlockSize, n)
	binary.BigEndian.PutUint64(p, n)
	return p
}

// offset returns where write n goes.
func (c *chain) offset(n uint64) int64 {
	return int64((n-1)%uint64(c.blocks)) * scstore.BlockSize
}

// write writes the next number.
func (c *chain) write(ctx context.Context, to *nbd.Client) error {
	n := c.acked + 1
	if err := to.WriteAt(ctx, c.block(n), c.offset(n), 0); err != nil {
		return err
	}
	c.acked, c.ackAt = n, time.Now()
	return nil
}

// writeAll writes some numbers and flushes.
func (c *chain) writeAll(t testing.TB, url string, count int) {
	t.Helper()
	to := dial(t, url)
	for range count {
		check(t, c.write(t.Context(), to))
	}
	check(t, to.Flush(t.Context()))
	check(t, to.Close())
}

// writeUntilEnd writes on until the connection fails, and flushes now and then.
func (c *chain) writeUntilEnd(ctx context.Context, to *nbd.Client) error {
	for {
		if err := c.write(ctx, to); err != nil {
			return err
		}
		if c.acked%64 == 0 {
			if err := to.Flush(ctx); err != nil {
				return err
			}
		}
	}
}

// read returns the number whose content an export has.
func (c *chain) read(ctx context.Context, url string) (uint64, error) {
	from, err := nbd.Dial(ctx, url, nbd.DialOptions{})
	if err != nil {
		return 0, err
	}
	defer func() { _ = from.Close() }() // it was only read
	content := make([]byte, c.blocks*scstore.BlockSize)
	for at := 0; at < len(content); at += mib {
		if err := from.ReadAt(ctx, content[at:min(at+mib, len(content))], int64(at)); err != nil {
			return 0, err
		}
	}
	last := uint64(0)
	for at := 0; at < len(content); at += scstore.BlockSize {
		last = max(last, binary.BigEndian.Uint64(content[at:]))
	}
	for i := range uint64(c.blocks) {
		want := make([]byte, scstore.BlockSize)
		// The last write to block i that is not later than the last write of all.
		if n := last - (last+uint64(c.blocks)-1-i)%uint64(c.blocks); last > 0 && n >= 1 && n <= last {
			want = c.block(n)
		}
		if got := content[i*scstore.BlockSize:][:scstore.BlockSize]; !bytes.Equal(got, want) {
			return 0, fmt.Errorf("block %d holds write %d, but the last of all is %d: %w",
				i, binary.BigEndian.Uint64(got), last, scstore.ErrCorrupt)
		}
	}
	return last, nil
}

// expect expects an export to have the content of a number in [least, most].
func (c *chain) expect(t testing.TB, url string, least, most uint64) uint64 {
	t.Helper()
	n, err := c.read(t.Context(), url)
	check(t, err)
	if n < least || n > most {
		t.Fatalf("%s has the content of write %d, want %d to %d", url, n, least, most)
	}
	return n
}
