package meta_test

import (
	"bytes"
	"errors"
	"testing"

	"scstore"
	"scstore/consensus/meta"
)

func open(s *meta.State, client meta.ClientID) meta.Result {
	return s.Apply(meta.Command{ID: meta.CommandID{Client: client}, Op: meta.OpenSession{}})
}

func TestSession_RetryGetsTheFirstResultAndChangesNothing(t *testing.T) {
	s := meta.New()
	open(s, clientID(1))
	create := meta.Command{ID: meta.CommandID{Client: clientID(1), Seq: 1}, Op: volume(1, "v")}
	fence := meta.Command{ID: meta.CommandID{Client: clientID(1), Seq: 2}, Op: meta.OpenFence{ID: volumeID(1), Holder: "h"}}
	taken := meta.Command{ID: meta.CommandID{Client: clientID(1), Seq: 3}, Op: volume(2, "v")}
	remove := meta.Command{ID: meta.CommandID{Client: clientID(1), Seq: 4}, Op: meta.Remove{Name: "v"}}
	var results []meta.Result
	for _, c := range []meta.Command{create, fence, taken, remove} {
		results = append(results, s.Apply(c))
	}
	before, _ := s.Get(volumeID(1))
	s = reopen(t, s)
	for i, c := range []meta.Command{create, fence, taken, remove} {
		if got := s.Apply(c); !got.Equal(results[i]) {
			t.Errorf("retry of command %d: got %+v, want %+v", i+1, got, results[i])
		}
	}
	if after, _ := s.Get(volumeID(1)); after != before {
		t.Errorf("retries changed the record: %+v, was %+v", after, before)
	}
}

func TestSession_UnknownIsIndeterminateNotApplied(t *testing.T) {
	s := meta.New()
	r := s.Apply(meta.Command{ID: meta.CommandID{Client: clientID(1), Seq: 1}, Op: volume(1, "v")})
	if !errors.Is(r.Err(), scstore.ErrIndeterminate) || len(s.List("")) != 0 {
		t.Errorf("got %v and %d volumes, want ErrIndeterminate and none", r.Err(), len(s.List("")))
	}
}

func TestSession_NumbersMayArriveOutOfOrder(t *testing.T) {
	s := meta.New()
	open(s, clientID(1))
	for _, seq := range []uint64{3, 1, 2} {
		name := string(rune('a' + seq))
		if r := s.Apply(meta.Command{ID: meta.CommandID{Client: clientID(1), Seq: seq}, Op: volume(byte(seq), name)}); r.Code != meta.CodeOK {
			t.Errorf("command %d: %v", seq, r.Err())
		}
	}
	reopen(t, s)
}

func TestSession_TooOldANumberIsIndeterminate(t *testing.T) {
	s := meta.New()
	open(s, clientID(1))
	rename := func(seq uint64) meta.Result {
		return s.Apply(meta.Command{ID: meta.CommandID{Client: clientID(1), Seq: seq}, Op: meta.Rename{From: "x", To: "y"}})
	}
	for seq := range uint64(meta.MaxSessionResults + 1) {
		if r := rename(seq + 1); r.Code != meta.CodeNoName {
			t.Fatalf("command %d: %q", seq+1, r.Code)
		}
	}
	if r := rename(2); r.Code != meta.CodeNoName {
		t.Errorf("oldest that is kept: %q", r.Code)
	}
	if r := rename(1); r.Code != meta.CodeSessionExpired {
		t.Errorf("one too old: got %q, want %q", r.Code, meta.CodeSessionExpired)
	}
}

func TestSession_TheIdlestExpires(t *testing.T) {
	s := meta.New()
	client := func(n int) meta.ClientID { return meta.ClientID{0: 1, 14: byte(n >> 8), 15: byte(n)} }
	for n := range meta.MaxSessions {
		open(s, client(n))
	}
	if r := s.Apply(meta.Command{ID: meta.CommandID{Client: client(0), Seq: 1}, Op: volume(1, "v")}); r.Code != meta.CodeOK {
		t.Fatalf("command of the oldest session: %v", r.Err())
	}
	open(s, client(meta.MaxSessions))
	if r := s.Apply(meta.Command{ID: meta.CommandID{Client: client(0), Seq: 1}, Op: volume(1, "v")}); r.Code != meta.CodeOK {
		t.Errorf("session that was used: %v, want its first result", r.Err())
	}
	if r := s.Apply(meta.Command{ID: meta.CommandID{Client: client(1), Seq: 1}, Op: volume(2, "w")}); r.Code != meta.CodeSessionExpired {
		t.Errorf("idle session: got %q, want %q", r.Code, meta.CodeSessionExpired)
	}
	if !bytes.Equal(reopen(t, s).AppendTo(nil), s.AppendTo(nil)) {
		t.Error("round trip changed the state")
	}
}
