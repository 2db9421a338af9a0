package meta

import (
	"cmp"
	"slices"
)

// Bounds of the memory of past commands.
const (
	MaxSessions       = 1024 // beyond it the session that was idle longest expires
	MaxSessionResults = 32   // per session; so many commands may be in flight at once
)

// session remembers the outcomes of one client's latest commands.
type session struct {
	client   ClientID
	lastUsed uint64          // State.applied at its last command; distinct between sessions
	floor    uint64          // nothing is known of sequence numbers up to this one, but for results
	results  []sessionResult // by rising seq
}

type sessionResult struct {
	seq    uint64
	result Result
}

// openSession makes a client's session, or marks it as used.
func (s *State) openSession(client ClientID) {
	ses := s.sessions[client]
	if ses == nil {
		if len(s.sessions) >= MaxSessions {
			s.expireSession()
		}
		ses = &session{client: client}
		s.sessions[client] = ses
	}
	ses.lastUsed = s.applied
}

// expireSession drops the session that was idle longest. A retry of its commands
// is answered CodeSessionExpired from then on, never applied twice.
func (s *State) expireSession() {
	var oldest ClientID
	found := false
	for client, ses := range s.sessions {
		if !found || ses.lastUsed < s.sessions[oldest].lastUsed {
			oldest, found = client, true
		}
	}
	delete(s.sessions, oldest)
}

// result returns what is to be answered to seq without applying it: its first
// outcome, or CodeSessionExpired when that is no longer known.
func (ses *session) result(seq uint64) (Result, bool) {
	i, found := ses.search(seq)
	switch {
	case found:
		return ses.results[i].result, true
	case seq <= ses.floor:
		return Result{Code: CodeSessionExpired}, true
	}
	return Result{}, false
}

// record keeps an outcome and drops that of the lowest number beyond the bound.
func (ses *session) record(seq uint64, result Result) {
	i, _ := ses.search(seq)
	ses.results = slices.Insert(ses.results, i, sessionResult{seq, result})
	if len(ses.results) > MaxSessionResults {
		ses.floor = ses.results[0].seq
		ses.results = slices.Delete(ses.results, 0, 1)
	}
}

func (ses *session) search(seq uint64) (int, bool) {
	return slices.BinarySearchFunc(ses.results, seq, func(r sessionResult, seq uint64) int { return cmp.Compare(r.seq, seq) })
}

// wire walks the memory of one client.
func (ses *session) wire(c *codec) {
	c.fixed(ses.client[:])
	number(c, &ses.lastUsed)
	number(c, &ses.floor)
	list(c, &ses.results, MaxSessionResults, func(c *codec, r *sessionResult) {
		number(c, &r.seq)
		wireOutcome(c, &r.result)
	})
}

// checkSessions says what is wrong with the memory of past commands.
func (s *State) checkSessions() error {
	used := map[uint64]bool{}
	for client, ses := range s.sessions {
		if client == (ClientID{}) || ses.lastUsed == 0 || ses.lastUsed > s.applied || used[ses.lastUsed] {
			return corruptf("session %s, used at %d", client, ses.lastUsed)
		}
		used[ses.lastUsed] = true
		last := ses.floor
		for _, r := range ses.results {
			if r.seq <= last {
				return corruptf("session %s, result %d after %d", client, r.seq, last)
			}
			last = r.seq
		}
	}
	return nil
}
