package meta

import (
	"slices"

	"scstore"
)

// Limits of a state of version 1.
const (
	maxRecordsV1  = 1 << 17
	maxSessionsV1 = 1024
	maxResultsV1  = 32
)

// readV1 reads a state of version 1 after its magic and version: that of one host,
// whose records had their names in them.
//
//	   8  8  commands applied
//	  16  4  number of records
//	  20  4  number of sessions
//	  24     the records by rising id, the sessions by rising client
//
//	Record: 16 id, 1 kind, 1 life, 2 zero, 8 size, 16 base, position of the base, 8 fence,
//	        position of the head, position of the parent, 32 digest, 8 created,
//	        string name, string holder
//	Session: 16 client, 8 last used, 8 floor, 2 number of results, then per result
//	        8 sequence, 1 code, 16 id, 8 fence, position
func (s *State) readV1(c *codec) {
	number(c, &s.applied)
	var counts [8]byte
	c.fixed(counts[:])
	heads := codec{mode: reading, b: counts[:]}
	records, sessions := heads.length(0, 1<<31-1), heads.length(0, 1<<31-1)
	if heads.failed || records > maxRecordsV1 || sessions > maxSessionsV1 {
		c.failed = true
	}
	var last scstore.VolumeID
	for i := 0; i < records && !c.failed; i++ {
		v := s.readRecordV1(c)
		if compareBytes(v.ID, last) <= 0 {
			c.failed = true
		}
		last = v.ID
	}
	for _, v := range s.records {
		if base := s.records[v.Base]; base != nil {
			base.refs = append(base.refs, Ref{Clone: v.ID, Position: v.BasePosition, AddedAtMs: v.CreatedAtMs})
		}
	}
	for _, v := range s.records {
		slices.SortFunc(v.refs, func(a, b Ref) int { return compareBytes(a.Clone, b.Clone) })
	}
	var lastClient ClientID
	for i := 0; i < sessions && !c.failed; i++ {
		ses := readSessionV1(c)
		if i > 0 && compareBytes(ses.client, lastClient) <= 0 {
			c.failed = true
		}
		lastClient = ses.client
		s.sessions[ses.client] = ses
	}
}

// readRecordV1 reads a record into the state.
func (s *State) readRecordV1(c *codec) *volume {
	v := &volume{}
	c.fixed(v.ID[:])
	octet(c, &v.Kind)
	octet(c, &v.Life)
	c.zeros(2)
	number(c, &v.SizeBytes)
	c.fixed(v.Base[:])
	c.position(&v.BasePosition)
	number(c, &v.Fence)
	c.position(&v.Head)
	c.position(&v.Parent)
	c.fixed(v.Digest[:])
	number(c, &v.CreatedAtMs)
	var name string
	text(c, &name, MaxNameBytes)
	wireDisk(c, &v.Holder)
	if c.failed || (v.Life == Live) != (name != "") || v.Kind > KindImage || name != "" && s.entries[name] != nil {
		c.failed = true
		return v
	}
	// Only the head of the history was kept, and one host had all of it.
	if v.Head != (scstore.Position{}) {
		v.points = []Point{{Position: v.Head, Parent: v.Parent, Digest: v.Digest}}
	}
	if v.Holder != "" {
		r := replica{Disk: v.Holder, AckedAt: v.Head}
		if v.Head != (scstore.Position{}) {
			r.Holds = []scstore.Position{v.Head}
		}
		v.replicas = []replica{r}
	}
	s.records[v.ID] = v
	if name != "" {
		s.entries[name] = &Entry{Name: name, ID: v.ID}
	}
	return v
}

func readSessionV1(c *codec) *session {
	ses := &session{}
	c.fixed(ses.client[:])
	number(c, &ses.lastUsed)
	number(c, &ses.floor)
	list(c, &ses.results, maxResultsV1, func(c *codec, r *sessionResult) {
		number(c, &r.seq)
		octet(c, &r.result.Code)
		c.fixed(r.result.ID[:])
		number(c, &r.result.Fence)
		c.position(&r.result.Position)
		c.failed = c.failed || r.result.Code < CodeOK || r.result.Code > CodeNotRemoved
	})
	return ses
}
