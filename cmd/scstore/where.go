package main

import (
	"fmt"
	"strings"
	"time"

	"scstore/internal/api"
)

// printWhere writes what a volume's bytes hang on, a line for each fact.
func printWhere(line func(key, format string, args ...any), w api.Where) {
	owner := "no host"
	if w.Owner != "" {
		owner = hostAt(w.Site, w.Owner)
	}
	line("owner", "%s, fence %d, %s", owner, w.Fence, w.Phase)
	line("head", "%s", w.Head)
	line("here", "%s", w.Here)
	for _, c := range w.Copies {
		line("copy", "%s at %s%s", hostAt(c.Site, c.Host), c.Position, copyState(c))
	}
	if w.OnlyBytes > 0 {
		since := ""
		if w.OnlyForMs > 0 {
			since = ", the oldest for " + milliseconds(w.OnlyForMs)
		}
		line("only there", "%s at %s alone%s", humanSize(w.OnlyBytes), owner, since)
	}
	if w.Unknown != "" {
		line("not known", "%s", w.Unknown)
	}
	if t := w.Tether; t != nil {
		left := "time left is not known"
		if t.EtaMs > 0 {
			left = "about " + milliseconds(t.EtaMs) + " left"
		}
		line("fetches", "%s that are still at %s alone, %s", humanSize(t.MissingBytes), t.Source, left)
	}
	for _, b := range w.Branches {
		line("branch", "%s: writes that the history goes on without", b)
	}
	for _, s := range w.CanSwitchOff {
		answer := "nothing is lost if it is switched off now"
		if !s.OK {
			answer = "do not switch it off: " + s.Reason
		}
		line("site "+s.Site, "%s", answer)
	}
}

// copyState says what a copy is good for.
func copyState(c api.CopyInfo) string {
	var words []string
	if c.Owner {
		words = append(words, "writes")
	}
	if c.Current {
		words = append(words, "current")
	}
	if len(words) == 0 {
		return ""
	}
	return ", " + strings.Join(words, ", ")
}

// ownerOf returns the owner of a volume for a column.
func ownerOf(v api.Volume) string {
	if v.Where == nil || v.Where.Owner == "" {
		return "-"
	}
	return hostAt(v.Where.Site, v.Where.Owner)
}

// hostAt names a host as --to takes it.
func hostAt(site, host string) string { return site + "/" + host }

// milliseconds prints a duration for people.
func milliseconds(ms int64) string {
	d := time.Duration(ms) * time.Millisecond
	if d >= 10*time.Second {
		return d.Round(time.Second).String()
	}
	return d.Round(10 * time.Millisecond).String()
}

// pauseText prints milliseconds with a fraction.
func pauseText(ms float64) string { return fmt.Sprintf("%.0f ms", ms) }
