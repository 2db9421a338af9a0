package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"scstore"
	"scstore/consensus/meta"
	"scstore/internal/api"
	"scstore/internal/cluster"
)

// The limits below which doctor warns.
const (
	lowSpaceBytes   = 2 << 30 // free on the file system
	lowSpacePercent = 5
)

// Status describes the host.
func (h *Host) Status(context.Context) (api.Status, error) {
	all, err := h.names.entries()
	if err != nil {
		return api.Status{}, err
	}
	st := api.Status{
		Version: h.o.Version, PID: os.Getpid(), StartedAt: h.started.UTC(), Dir: h.o.Dir,
		API: h.o.apiAddr.String(), NBD: h.o.nbdAddr.String(), Store: h.storeStatus(),
	}
	for _, e := range all {
		if e.Kind == meta.KindImage {
			st.Images++
		} else {
			st.Volumes++
		}
	}
	if h.cluster != nil {
		st.Cluster = h.cluster.summary(all)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.slots {
		st.Conns += s.conns
	}
	return st, nil
}

// Doctor checks what this host has open.
func (h *Host) Doctor(ctx context.Context, progress func(done, total int64)) (api.Report, error) {
	report, err := h.examine(ctx, progress)
	if err != nil {
		return api.Report{}, err
	}
	report.Online = true
	for _, a := range []api.Addr{h.o.apiAddr, h.o.nbdAddr} {
		report.Findings = append(report.Findings, checkDoor(a)...)
	}
	return report, nil
}

// Check opens the store in o.Dir without serving it, examines it and closes it.
// rebuild makes the index of the log anew first. Errors: those of Open.
func Check(ctx context.Context, o Options, rebuild bool, progress func(done, total int64)) (report api.Report, err error) {
	o, err = o.withDefaults()
	if err != nil {
		return api.Report{}, err
	}
	h := newHost(o)
	if h.folder, err = openFolder(o.Dir, false, o.Version); err != nil {
		return api.Report{}, err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	if err := h.openExamined(ctx, rebuild); err != nil {
		return api.Report{}, err
	}
	report, err = h.examine(ctx, progress)
	if rebuild && err == nil {
		report.Findings = append(report.Findings, api.Finding{
			Severity: api.SeverityInfo, Subject: indexName, Message: "the index was made anew from the segments",
		})
	}
	return report, err
}

// openExamined opens what Check looks at. A store of a cluster is opened without the
// cluster: its names are not known then.
func (h *Host) openExamined(ctx context.Context, rebuild bool) error {
	member, err := cluster.Exists(h.o.Dir)
	if err != nil {
		return err
	}
	if member {
		return h.openBlocks(ctx, rebuild)
	}
	return h.openLocal(ctx, rebuild)
}

// checkDoor looks at a socket as a client would.
func checkDoor(a api.Addr) []api.Finding {
	if a.Network != "unix" {
		return []api.Finding{{
			Severity: api.SeverityWarning, Subject: a.String(), Message: "everybody who reaches this address can use it",
			Hint: "use a unix socket where that is possible",
		}}
	}
	info, err := os.Lstat(a.Address)
	switch {
	case err != nil:
		return []api.Finding{{
			Severity: api.SeverityError, Subject: a.String(), Message: "the socket is gone: " + err.Error(),
			Hint: "restart scstore serve, which makes it anew",
		}}
	case info.Mode().Perm()&0o077 != 0:
		return []api.Finding{{
			Severity: api.SeverityWarning, Subject: a.String(), Message: fmt.Sprintf("others may use the socket: its mode is %04o", info.Mode().Perm()),
			Hint: "if that is not meant: chmod 0600 " + a.Address,
		}}
	}
	return nil
}

// checkSpace warns before the disk is full.
func checkSpace(dir string, free, total int64) []api.Finding {
	if free >= lowSpaceBytes && free >= total/100*lowSpacePercent {
		return nil
	}
	return []api.Finding{{
		Severity: api.SeverityWarning, Subject: dir, Message: fmt.Sprintf("%d MiB of %d MiB are free", free>>20, total>>20),
		Hint: "free space on this file system, or remove volumes; without space, writes of guests fail",
	}}
}

// checkNames finds records whose data are not there, and the reverse.
func (h *Host) checkNames(all []entry) (findings []api.Finding) {
	tables := map[scstore.VolumeID]int64{}
	for _, t := range h.blocks.Tables() {
		tables[t.ID] = t.SizeBytes
	}
	for _, e := range all {
		size, ok := tables[e.ID]
		switch {
		case !ok && h.cluster != nil && e.Holder != h.disk(): // it is elsewhere
		case !ok:
			findings = append(findings, api.Finding{
				Severity: api.SeverityError, Subject: e.Name, Message: fmt.Sprintf("the data of this %s are not in the log", kindOf(e.Kind)),
				Hint: "restore the folder from a backup, or remove the name",
			})
		case size != e.SizeBytes:
			findings = append(findings, api.Finding{
				Severity: api.SeverityError, Subject: e.Name, Message: fmt.Sprintf("the log holds %d bytes, the name says %d", size, e.SizeBytes),
				Hint: "restore the folder from a backup",
			})
		}
	}
	return findings
}

// examine verifies all stored blocks and looks at names and space.
func (h *Host) examine(ctx context.Context, progress func(done, total int64)) (api.Report, error) {
	verified, err := h.blocks.Verify(ctx, progress)
	if err != nil {
		return api.Report{}, fmt.Errorf("examine the store: %w", err)
	}
	var all []entry
	if h.names != nil {
		if all, err = h.names.entries(); err != nil {
			return api.Report{}, fmt.Errorf("examine the store: %w", err)
		}
	}
	report := api.Report{VerifiedBytes: int64(verified.Blocks) * scstore.BlockSize, Findings: h.checkNames(all)}
	report.Findings = append(report.Findings, h.checkDamage(all)...)
	st := h.blocks.Stats()
	report.Findings = append(report.Findings, checkSpace(h.o.Dir, int64(st.FreeBytes), int64(st.TotalBytes))...)
	if st.Poisoned != nil {
		report.Findings = append(report.Findings, api.Finding{
			Severity: api.SeverityError, Subject: segmentsName, Message: "the disk failed, and nothing is written any more: " + st.Poisoned.Error(),
			Hint: "check the disk and restart scstore: it replays what the disk holds",
		})
	}
	return report, nil
}

// checkDamage turns what failed to verify into findings, one for each volume.
func (h *Host) checkDamage(all []entry) (findings []api.Finding) {
	names := map[scstore.VolumeID]string{}
	for _, e := range all {
		names[e.ID] = e.Name
	}
	blocks := map[string]int{}
	for _, d := range h.blocks.Damage() {
		if !d.Volume.IsZero() && !d.Healed {
			blocks[cmp.Or(names[d.Volume], d.Volume.String())]++
			continue
		}
		severity, hint := api.SeverityError, "restore what is affected from a backup; scstore doctor --dir DIR --rebuild-index mends an index"
		if d.Healed {
			severity, hint = api.SeverityInfo, ""
		}
		findings = append(findings, api.Finding{
			Severity: severity, Subject: fmt.Sprintf("segment %016x", d.Segment),
			Message: fmt.Sprintf("%s at slot %d failed to verify%s", d.Kind, d.Slot, healed(d.Healed)), Hint: hint,
		})
	}
	for _, name := range slices.Sorted(maps.Keys(blocks)) {
		findings = append(findings, api.Finding{
			Severity: api.SeverityError, Subject: name, Message: fmt.Sprintf("%d blocks cannot be read", blocks[name]),
			Hint: "write them again from a backup; scstore volume info and image info list where they are",
		})
	}
	for _, t := range h.blocks.Tables() {
		if t.Quarantined {
			findings = append(findings, api.Finding{
				Severity: api.SeverityError, Subject: cmp.Or(names[t.ID], t.ID.String()),
				Message: "not served: a part of the log that may hold its writes is unreadable",
				Hint:    "restore it from a backup",
			})
		}
	}
	return findings
}

// healed says that nothing was lost.
func healed(ok bool) string {
	if ok {
		return "; there was a second copy"
	}
	return ""
}

// damagedAt returns where a volume's unreadable blocks are, in bytes, sorted.
func (h *Host) damagedAt(id scstore.VolumeID) (at []int64) {
	for _, d := range h.blocks.Damage() {
		if d.Volume == id && !d.Healed && len(at) < api.MaxDamageListed {
			at = append(at, int64(d.Block)*scstore.BlockSize)
		}
	}
	slices.Sort(at)
	return at
}

// storeStatus is the state of the log.
func (h *Host) storeStatus() api.StoreStatus {
	st, rec := h.blocks.Stats(), h.blocks.Recovery()
	out := api.StoreStatus{
		DiskTotalBytes: int64(st.TotalBytes), DiskFreeBytes: int64(st.FreeBytes),
		LogBytes: st.LogBytes, LiveBytes: st.LiveBytes, Segments: st.Segments, Tables: st.Volumes,
	}
	for _, d := range h.blocks.Damage() {
		if !d.Healed {
			out.DamagedBlocks++
		}
	}
	took := rec.Took.Round(time.Millisecond)
	switch {
	case rec.Clean:
		out.Recovery = fmt.Sprintf("after a clean stop, in %s", took)
	case rec.ReplayedRecords+rec.CutRecords > 0 || rec.LostRecords > 0:
		out.Recovery = fmt.Sprintf("after a crash: %d records replayed, %d cut off unsynced, %d lost, in %s", rec.ReplayedRecords, rec.CutRecords, rec.LostRecords, took)
	default:
		out.Recovery = fmt.Sprintf("in %s", took)
	}
	return out
}
