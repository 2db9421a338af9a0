package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"scstore"
)

// fioResult is what of fio's JSON a run needs.
type fioResult struct {
	opsPerSecond, bytesPerSecond float64
	p99                          float64 // µs
}

// fioArgs returns the arguments that give fio the same load.
func fioArgs(o LoadOptions) []string {
	mode := "write"
	if o.ReadPercent == 100 {
		mode = "read"
	}
	if !o.Sequential {
		mode = "rand" + mode
	}
	args := []string{
		"fio", "--name=load", "--ioengine=nbd", "--uri=" + o.URL, "--rw=" + mode, "--bs=" + strconv.Itoa(o.BlockBytes),
		"--iodepth=" + strconv.Itoa(o.QueueDepth), "--offset=" + strconv.FormatInt(o.OffsetBytes, 10),
		"--size=" + strconv.FormatInt(o.WorkingSetBytes, 10), "--time_based",
		"--runtime=" + strconv.FormatFloat(max(o.Duration.Seconds(), 1), 'f', 0, 64),
		"--randseed=" + strconv.FormatUint(o.Seed>>1, 10), "--norandommap", "--output-format=json",
	}
	if o.ReadPercent < 100 {
		args = append(args, "--end_fsync=1")
	}
	return args
}

// runFio runs fio. Its rates leave the final flush out of the time, so they are
// shown beside ours.
func runFio(ctx context.Context, o LoadOptions) (fioResult, error) {
	ctx, cancel := context.WithTimeout(ctx, o.Duration+drainTimeout)
	defer cancel()
	out, err := output(ctx, fioArgs(o)...)
	if err != nil {
		return fioResult{}, err
	}
	return parseFio([]byte(out))
}

// parseFio reads fio's report; fio talks before it.
func parseFio(out []byte) (fioResult, error) {
	type direction struct {
		IOPS  float64 `json:"iops"`
		Bytes float64 `json:"bw_bytes"`
		Clat  struct {
			Percentile map[string]float64 `json:"percentile"`
		} `json:"clat_ns"`
	}
	var report struct {
		Jobs []struct {
			Read  direction `json:"read"`
			Write direction `json:"write"`
			Error int       `json:"error"`
		} `json:"jobs"`
	}
	start := max(bytes.IndexByte(out, '{'), 0)
	if err := json.Unmarshal(out[start:], &report); err != nil {
		return fioResult{}, fmt.Errorf("read fio's report: %w: %w", scstore.ErrInvalid, err)
	}
	if len(report.Jobs) != 1 || report.Jobs[0].Error != 0 {
		return fioResult{}, fmt.Errorf("read fio's report: %d jobs, with an error or none: %w", len(report.Jobs), scstore.ErrInvalid)
	}
	d := report.Jobs[0].Read
	if w := report.Jobs[0].Write; w.IOPS > d.IOPS {
		d = w
	}
	return fioResult{d.IOPS, d.Bytes, d.Clat.Percentile["99.000000"] / 1000}, nil
}

// fioVersion returns fio's version, or why there is none.
func fioVersion(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	v, err := firstLine(ctx, "fio", "--version")
	if err != nil {
		return "", scstore.Hint(err, "install fio, or leave it out")
	}
	return strings.TrimSpace(v), nil
}
