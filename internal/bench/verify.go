package bench

import (
	"context"
	"fmt"
	"sync"
	"time"

	"scstore"
	"scstore/nbd"
)

const (
	// MaxReportedLosses is how many losses a VerifyReport lists; it counts all.
	MaxReportedLosses = 64
	// verifyBytes and verifyDepth are the reads of a verification.
	verifyBytes = 256 << 10
	verifyDepth = 8
)

// VerifyOptions says what to compare.
type VerifyOptions struct {
	URL     string
	Journal *Journal
}

// LossKind says what is wrong with a block.
type LossKind string

// The kinds of losses.
const (
	LossFlushed      LossKind = "flushed"      // older than what a flush covered: no crash may do that
	LossAcknowledged LossKind = "acknowledged" // older than what was acknowledged: a power loss may, kill -9 may not
	LossDamaged      LossKind = "damaged"      // nothing that was ever written there: nothing may do that
)

// Loss is one block that is not as it must be.
type Loss struct {
	Block        scstore.BlockIndex `json:"block"`
	Kind         LossKind           `json:"kind"`
	Found        uint32             `json:"found"` // generation; 0: as before the first write
	Acknowledged uint32             `json:"acknowledged"`
	Flushed      uint32             `json:"flushed"`
	Detail       string             `json:"detail,omitempty"`
}

// String returns the loss as a line for people.
func (l Loss) String() string {
	s := fmt.Sprintf("block %d: %s: found generation %d, acknowledged %d, flushed %d", l.Block, l.Kind, l.Found, l.Acknowledged, l.Flushed)
	if l.Detail != "" {
		s += ": " + l.Detail
	}
	return s
}

// VerifyReport says what an export kept.
type VerifyReport struct {
	Blocks           int64   `json:"blocks"`            // checked
	Written          int64   `json:"written"`           // of those, the ones that were ever written
	Newer            int64   `json:"newer"`             // newer than the last flush: kept beyond the promise
	LostFlushed      int64   `json:"lost_flushed"`      // see LossFlushed
	LostAcknowledged int64   `json:"lost_acknowledged"` // see LossAcknowledged
	Damaged          int64   `json:"damaged"`           // see LossDamaged
	Losses           []Loss  `json:"losses,omitempty"`  // the first MaxReportedLosses
	Seconds          float64 `json:"seconds"`
}

// AfterPowerLoss returns an error if the export lost what it may not lose even
// when the power fails. Errors: ErrCorrupt.
func (r VerifyReport) AfterPowerLoss() error { return r.check(r.LostFlushed + r.Damaged) }

// AfterKill returns an error if the export lost what it may not lose when its
// server is killed. Errors: ErrCorrupt.
func (r VerifyReport) AfterKill() error {
	return r.check(r.LostFlushed + r.Damaged + r.LostAcknowledged)
}

func (r VerifyReport) check(lost int64) error {
	if lost == 0 {
		return nil
	}
	first := "none listed"
	if len(r.Losses) > 0 {
		first = r.Losses[0].String()
	}
	return fmt.Errorf("verify %d blocks: %d flushed lost, %d acknowledged lost, %d damaged; first: %s: %w",
		r.Blocks, r.LostFlushed, r.LostAcknowledged, r.Damaged, first, scstore.ErrCorrupt)
}

// Verify reads every block that the journal covers and compares. Afterwards the
// journal takes what it found for the truth, so that the next Load can go on with
// it. No load may be running.
//
// Errors: those of the connection; what is lost is in the report.
func Verify(ctx context.Context, o VerifyOptions) (VerifyReport, error) {
	c, err := dial(ctx, o.URL, verifyDepth)
	if err != nil {
		return VerifyReport{}, err
	}
	j := o.Journal
	end := j.BlockCount() * scstore.BlockSize
	if c.Size() < end {
		_ = c.Close() // the size is the error
		return VerifyReport{}, fmt.Errorf("verify %s: %d bytes long, the journal covers %d: %w", o.URL, c.Size(), end, scstore.ErrInvalid)
	}
	j.forget()
	var mu sync.Mutex
	var report VerifyReport
	p := newPipeline(c, verifyDepth, verifyBytes)
	off := int64(0)
	p.next = func(r *request) bool {
		if off == end {
			return false
		}
		r.Cmd, r.Offset, r.length = nbd.CmdRead, off, int(min(verifyBytes, end-off))
		r.Data = r.buf[:r.length]
		off += int64(r.length)
		return true
	}
	p.done = func(r *request, _ time.Duration) error {
		mu.Lock()
		defer mu.Unlock()
		for at := 0; at < r.length; at += scstore.BlockSize {
			report.add(j, (r.Offset+int64(at))/scstore.BlockSize, r.buf[at:at+scstore.BlockSize])
		}
		return nil
	}
	start := time.Now()
	err = p.run(ctx, ctx, nil)
	report.Seconds = time.Since(start).Seconds()
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		err = fmt.Errorf("verify %s: %w", o.URL, err)
	}
	return report, err
}

// add checks one block.
func (r *VerifyReport) add(j *Journal, b int64, content []byte) {
	found, err := j.find(b, content)
	j.mu.Lock()
	loss := Loss{Block: scstore.BlockIndex(b), Found: found, Acknowledged: j.acked[b], Flushed: j.flushed[b]}
	if j.issued[b] > 0 {
		r.Written++
	}
	j.mu.Unlock()
	r.Blocks++
	switch {
	case err != nil:
		loss.Kind, loss.Detail = LossDamaged, err.Error()
		r.Damaged++
	case found < loss.Flushed:
		loss.Kind = LossFlushed
		r.LostFlushed++
	case found < loss.Acknowledged:
		loss.Kind = LossAcknowledged
		r.LostAcknowledged++
	case found > loss.Flushed:
		r.Newer++
	}
	if loss.Kind != "" && len(r.Losses) < MaxReportedLosses {
		r.Losses = append(r.Losses, loss)
	}
	if err == nil {
		j.adopt(b, found)
	}
}
