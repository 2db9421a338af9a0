package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"scstore/e2e"
)

// The wide-area network of the second act.
const (
	siteRTT     = 80 * time.Millisecond
	siteBits    = 200_000_000 // a second, each direction of each pair of sites
	siteTimeout = 60 * time.Second
	// writesBeforeCut is how long the guest writes before its site is cut off.
	writesBeforeCut = 4 * time.Second
	rescued         = "rescued"
)

// threeSites is the second act: the disk moves, is copied, and survives its owner.
func (t *tour) threeSites(ctx context.Context) error {
	t.act(fmt.Sprintf("Three sites, %d ms and %d Mbit/s between any two", siteRTT.Milliseconds(), siteBits/1_000_000))
	t.acked = 0
	for _, step := range []func(context.Context) error{t.openSites, t.writeAtA, t.moveToB, t.copyToC, t.loseB, t.healB} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	t.say("nothing was lost and nothing was mixed")
	return nil
}

// at returns what runs commands at a site.
func (t *tour) at(site string) runner {
	return func(ctx context.Context, args ...string) (string, error) { return t.sites.Run(ctx, site, args...) }
}

// openSites starts the sites.
func (t *tour) openSites(ctx context.Context) error {
	dir := filepath.Join(t.dir, "sites")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	began := time.Now()
	var err error
	t.sites, err = e2e.OpenSites(ctx, e2e.SitesOptions{
		Binary: t.binary, Dir: dir, Names: []string{"a", "b", "c"}, RTT: siteRTT, BitsPerSecond: siteBits,
	})
	if err != nil {
		return err
	}
	t.say("a cluster of three sites, joined by two tokens, after %.1f s", time.Since(began).Seconds())
	return nil
}

// writeAtA makes the disk at site a and has the guest write there.
func (t *tour) writeAtA(ctx context.Context) error {
	if err := t.importAt(ctx, t.at("a")); err != nil {
		return err
	}
	return t.writeAndStop(ctx, "a")
}

// writeAndStop boots the guest at a site, checks what it finds, lets it write and
// stops it.
func (t *tour) writeAndStop(ctx context.Context, site string) (err error) {
	m, err := t.boot(ctx, t.at(site), volume, "write")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.kill()) }()
	if m.found != t.acked {
		return fmt.Errorf("LOST: the guest found %d records at site %s, %d were acknowledged", m.found, site, t.acked)
	}
	if m.found > 0 {
		t.say("the guest at %s found all %d records", site, m.found)
	}
	if _, err := m.writeMore(ctx); err != nil {
		return err
	}
	found, err := m.finish(ctx)
	if err != nil {
		return err
	}
	t.acked = m.acked
	return t.compare(found, "written at "+site+", and the guest is off")
}

// moveToB hands the volume to site b, which has none of it, and boots the guest
// there.
func (t *tour) moveToB(ctx context.Context) error {
	before := t.sites.AllBytes()
	r, err := t.sites.Move(ctx, "a", volume, "b")
	if err != nil {
		return err
	}
	moved := t.sites.AllBytes()
	t.say("scstore volume move --to b: %.0f ms without a writer, %.0f ms in all, the round trip is %.0f ms; %.1f MiB on the wire",
		r.PauseMs, r.TotalMs, r.RTTMs, mib(moved-before))
	t.say("b writes it now (fence %d), and %.1f MiB of it are still at %s", r.Fence, mib(uint64(r.MissingBytes)), orNowhere(r.OnlyAt))
	if err := t.writeAndStop(ctx, "b"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, siteTimeout)
	defer cancel()
	if err := t.sites.WaitCurrent(ctx, "b", volume); err != nil {
		return err
	}
	t.say("b has all of it: %.1f MiB on the wire since the move; a may be switched off", mib(t.sites.AllBytes()-moved))
	return nil
}

// copyToC places a copy at site c and waits for it.
func (t *tour) copyToC(ctx context.Context) error {
	before, began := t.sites.AllBytes(), time.Now()
	if _, err := t.sites.Run(ctx, "b", "placement", "set", volume, "--replicas", "c", "--mode", "async"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, siteTimeout)
	defer cancel()
	if err := t.sites.WaitCurrent(ctx, "b", volume, "c"); err != nil {
		return err
	}
	t.say("scstore placement set --replicas c: c is current after %.1f s, %.1f MiB on the wire", time.Since(began).Seconds(), mib(t.sites.AllBytes()-before))
	return nil
}

// loseB cuts site b off while its guest writes, and goes on at site c.
func (t *tour) loseB(ctx context.Context) (err error) {
	atC := t.acked // at least
	m, err := t.boot(ctx, t.at("b"), volume, "write")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.kill()) }()
	for began := time.Now(); time.Since(began) < writesBeforeCut; {
		if _, err := m.writeMore(ctx); err != nil {
			return err
		}
	}
	if err := t.sites.Cut("b"); err != nil {
		return err
	}
	atCut := m.acked
	if _, err := m.writeMore(ctx); err != nil {
		return err
	}
	t.say("b was cut off at record %d; its guest goes on, and has written %d", atCut, m.acked)
	began := time.Now()
	r, err := t.sites.Promote(ctx, volume, "c")
	if err != nil {
		return err
	}
	t.say("scstore volume promote --to c: done after %.1f s; the history goes on from %s, the newest committed was %s", time.Since(began).Seconds(), r.Position, r.Head)
	t.say("it leaves out %d committed epochs%s; silent: %s; not known: %s", r.Epochs, lost(r.Bytes), strings.Join(r.Silent, ", "), r.Unknown)
	again, err := t.boot(ctx, t.at("c"), volume, "verify")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, again.kill()) }()
	found, err := again.kept(ctx)
	if err != nil {
		return err
	}
	if found < atC {
		return fmt.Errorf("LOST: the guest found %d records at site c, which was current at %d", found, atC)
	}
	t.acked = m.acked
	t.say("the guest at c found records 1 to %d: one past state of the disk, whole", found)
	return nil
}

// healB lets site b come back, and boots the guest on what it kept: a clone of the
// branch.
func (t *tour) healB(ctx context.Context) error {
	if err := t.sites.Heal("b"); err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, siteTimeout)
	defer cancel()
	began := time.Now()
	branch, err := t.sites.WaitBranch(wait, "c", volume)
	if err != nil {
		return err
	}
	t.say("b is back and stopped writing; after %.1f s what only it has is listed as %s", time.Since(began).Seconds(), branch)
	if _, err := t.sites.WaitBranch(wait, "b", volume); err != nil {
		return err
	}
	if _, err := t.sites.Run(ctx, "b", "volume", "clone", branch, rescued); err != nil {
		return err
	}
	return t.bootAndCompare(ctx, t.at("b"), rescued, "found in a clone of "+branch)
}

// lost says how much a promote left out, if that is known.
func lost(bytes *int64) string {
	if bytes == nil {
		return ""
	}
	return fmt.Sprintf(" (%.1f MiB)", mib(uint64(*bytes)))
}

// orNowhere names a host.
func orNowhere(host string) string {
	if host == "" {
		return "no other host"
	}
	return host
}

// mib returns bytes as MiB.
func mib(bytes uint64) float64 { return float64(bytes) / (1 << 20) }
