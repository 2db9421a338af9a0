package raftnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/raftio"
	"github.com/lni/dragonboat/v4/raftpb"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"scstore"
	"scstore/propagate/quicnet"
	"scstore/propagate/quicnet/authority"
)

// world is hosts of one cluster; host n owns replica n of every shard.
type world struct {
	first *authority.Keys

	mu    sync.Mutex
	where map[scstore.StoreID]string
}

func disk(n byte) scstore.StoreID { return scstore.StoreID{0: 0xd1, 15: n} }

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{where: map[scstore.StoreID]string{}}
	keys, err := authority.Create(filepath.Join(t.TempDir(), "keys"), w.identity(1), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	w.first = keys
	return w
}

func (w *world) identity(n byte) authority.Identity {
	return authority.Identity{Cluster: authority.ClusterID{1}, Disk: disk(n), Host: fmt.Sprintf("host-%d", n)}
}

func (w *world) keys(t *testing.T, n byte) *authority.Keys {
	t.Helper()
	if n == 1 {
		return w.first
	}
	admission, err := authority.NewAdmission(t.TempDir(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	der, err := w.first.Authority().Issue(admission.Request(), w.identity(n), time.Now(), authority.DefaultLifetime)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := admission.Install(w.first.Authority(), w.identity(n), der, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func (w *world) resolve(_ context.Context, d scstore.StoreID) ([]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.where[d] == "" {
		return nil, fmt.Errorf("disk %s: %w", d, scstore.ErrNotFound)
	}
	return []string{w.where[d]}, nil
}

func owner(_, replica uint64, d scstore.StoreID) error {
	if replica <= 9 && d != disk(byte(replica)) {
		return fmt.Errorf("replica %d is not of disk %s: %w", replica, d, scstore.ErrInvalid)
	}
	return nil
}

// host starts host n and returns its factory.
func (w *world) host(t *testing.T, n byte) *Factory {
	t.Helper()
	net, err := quicnet.Open(t.Context(), quicnet.Options{Keys: w.keys(t, n), Listen: "127.0.0.1:0", Incarnation: 1, Boot: 1, Resolve: w.resolve})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := net.Close(); err != nil {
			t.Error(err)
		}
	})
	f, err := New(Options{Net: net, Owner: owner})
	if err != nil {
		t.Fatal(err)
	}
	if err := net.Start(); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.where[disk(n)] = net.Addr().String()
	return f
}

// started makes and starts a transport; it is closed at the end of the test.
func started(t *testing.T, f *Factory, messages raftio.MessageHandler, chunks raftio.ChunkHandler) raftio.ITransport {
	t.Helper()
	tr := f.Create(config.NodeHostConfig{}, messages, chunks)
	if err := tr.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
	})
	return tr
}

func silent(raftpb.MessageBatch) {}
func unwanted(raftpb.Chunk) bool { return false }
func batch(from byte, messages ...raftpb.Message) raftpb.MessageBatch {
	return raftpb.MessageBatch{SourceAddress: Target(disk(from)), DeploymentId: 7, BinVer: raftio.TransportBinVersion, Requests: messages}
}

func message(from byte, entry string) raftpb.Message {
	return raftpb.Message{Type: raftpb.Replicate, ShardID: 3, From: uint64(from), To: 2, Entries: []raftpb.Entry{{Index: 1, Term: 1, Cmd: []byte(entry)}}}
}

func TestTransport_DeliversBatchesInOrder(t *testing.T) {
	w := newWorld(t)
	got := make(chan raftpb.MessageBatch, 100)
	a := started(t, w.host(t, 1), silent, unwanted)
	started(t, w.host(t, 2), func(b raftpb.MessageBatch) { got <- b }, unwanted)
	conn, err := a.GetConnection(t.Context(), Target(disk(2)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	long := string(bytes.Repeat([]byte("x"), 3<<20))
	for i := range 50 {
		entry := fmt.Sprint(i)
		if i == 25 {
			entry = long
		}
		if err := conn.SendMessageBatch(batch(1, message(1, entry), message(1, "second"))); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 50 {
		b := <-got
		want := fmt.Sprint(i)
		if i == 25 {
			want = long
		}
		if len(b.Requests) != 2 || string(b.Requests[0].Entries[0].Cmd) != want || b.DeploymentId != 7 || b.SourceAddress != Target(disk(1)) {
			t.Fatalf("batch %d: got %d messages", i, len(b.Requests))
		}
	}
}

func TestTransport_NobodySpeaksForAnother(t *testing.T) {
	w := newWorld(t)
	got := make(chan raftpb.MessageBatch, 10)
	a, b := w.host(t, 1), w.host(t, 2)
	from := started(t, a, silent, unwanted)
	started(t, b, func(b raftpb.MessageBatch) { got <- b }, unwanted)
	conn, err := from.GetConnection(t.Context(), Target(disk(2)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// Messages of another's replica are dropped, the rest is delivered: replica 3 is
	// known to be another's, replica 77 is new.
	if err := conn.SendMessageBatch(batch(1, message(3, "forged"), message(1, "own"), message(77, "new"))); err != nil {
		t.Fatal(err)
	}
	if r := (<-got).Requests; len(r) != 2 || string(r[0].Entries[0].Cmd) != "own" || string(r[1].Entries[0].Cmd) != "new" {
		t.Errorf("got %+v", r)
	}
	if n := testutil.ToFloat64(b.dropped); n != 1 {
		t.Errorf("%v messages dropped", n)
	}
	// A batch that says that it comes from another host ends the connection.
	err = conn.SendMessageBatch(batch(3, message(3, "forged")))
	for err == nil { // until the reset is here
		err = conn.SendMessageBatch(batch(1, message(1, "late")))
	}
	for len(got) > 0 {
		t.Errorf("got %+v", <-got)
	}
	if n := testutil.ToFloat64(b.dropped); n != 2 {
		t.Errorf("%v messages dropped", n)
	}
}

func TestTransport_SnapshotIsAllThereWhenCloseReturns(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	var got []raftpb.Chunk
	a := started(t, w.host(t, 1), silent, unwanted)
	b := w.host(t, 2)
	started(t, b, silent, func(c raftpb.Chunk) bool {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, c)
		return true
	})
	conn, err := a.GetSnapshotConnection(t.Context(), Target(disk(2)))
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("chunk"), 400_000)
	for i := range 5 {
		if err := conn.SendChunk(raftpb.Chunk{ShardID: 3, ReplicaID: 2, From: 1, ChunkId: uint64(i), ChunkCount: 5, Data: data, ChunkSize: uint64(len(data))}); err != nil {
			t.Fatal(err)
		}
	}
	conn.Close()
	mu.Lock()
	if len(got) != 5 || got[4].ChunkId != 4 || !bytes.Equal(got[2].Data, data) {
		t.Errorf("%d chunks arrived", len(got))
	}
	mu.Unlock()
	if conn, err = a.GetSnapshotConnection(t.Context(), Target(disk(2))); err != nil {
		t.Fatal(err)
	}
	if err := conn.SendChunk(raftpb.Chunk{ShardID: 3, ReplicaID: 2, From: 3, Data: data}); err != nil && !errors.Is(err, scstore.ErrInvalid) {
		t.Errorf("a forged snapshot: %v", err)
	}
	conn.Close()
	if len(got) != 5 || testutil.ToFloat64(b.dropped) != 1 {
		t.Errorf("%d chunks, %v dropped", len(got), testutil.ToFloat64(b.dropped))
	}
}

// TestTransport_NoHandlerRunsAfterClose closes while batches pour in; the race
// detector sees a call that comes late.
func TestTransport_NoHandlerRunsAfterClose(t *testing.T) {
	w := newWorld(t)
	a, b := w.host(t, 1), w.host(t, 2)
	from := started(t, a, silent, unwanted)
	for round := range 5 {
		calls := 0 // not guarded: Close orders the last call before the read below
		first := make(chan struct{}, 1)
		to := b.Create(config.NodeHostConfig{}, func(raftpb.MessageBatch) {
			calls++
			select {
			case first <- struct{}{}:
			default:
			}
		}, unwanted)
		if err := to.Start(); err != nil {
			t.Fatal(err)
		}
		conn, err := from.GetConnection(t.Context(), Target(disk(2)))
		if err != nil {
			t.Fatal(err)
		}
		sent := make(chan error, 1)
		go func() {
			for {
				if err := conn.SendMessageBatch(batch(1, message(1, "x"))); err != nil {
					sent <- err
					return
				}
			}
		}()
		<-first
		if err := errors.Join(to.Close(), to.Close()); err != nil {
			t.Fatal(err)
		}
		after := calls
		if err := <-sent; !errors.Is(err, scstore.ErrBusy) {
			t.Errorf("round %d: the sender got %v", round, err)
		}
		if calls != after || calls == 0 {
			t.Errorf("round %d: %d calls at Close, %d later", round, after, calls)
		}
		conn.Close()
	}
	conn, err := from.GetConnection(t.Context(), Target(disk(2)))
	for err == nil { // raft does not run there: the stream is refused
		err = conn.SendMessageBatch(batch(1, message(1, "x")))
	}
	if !errors.Is(err, scstore.ErrBusy) {
		t.Errorf("to a host without raft: %v", err)
	}
	if conn != nil {
		conn.Close()
	}
}

// TestTransport_CloseWaitsForAHandlerThatRuns closes while the library's handler is
// held.
func TestTransport_CloseWaitsForAHandlerThatRuns(t *testing.T) {
	w := newWorld(t)
	from, b := started(t, w.host(t, 1), silent, unwanted), w.host(t, 2)
	begun, leave := make(chan struct{}), make(chan struct{})
	var ended atomic.Bool
	to := b.Create(config.NodeHostConfig{}, func(raftpb.MessageBatch) {
		close(begun)
		<-leave
		ended.Store(true)
	}, unwanted)
	if err := to.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := from.GetConnection(t.Context(), Target(disk(2)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SendMessageBatch(batch(1, message(1, "x"))); err != nil {
		t.Fatal(err)
	}
	<-begun
	closed := make(chan error, 1)
	go func() {
		err := to.Close()
		if !ended.Load() {
			err = errors.Join(err, errors.New("closed while a handler ran"))
		}
		closed <- err
	}()
	time.Sleep(20 * time.Millisecond) // for a Close that does not wait to show it
	close(leave)
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

func TestFactory_ValidatesTargets(t *testing.T) {
	w := newWorld(t)
	f := w.host(t, 1)
	for target, want := range map[string]bool{Target(disk(1)): true, "": false, "host:63001": false, Target(scstore.StoreID{}): false, Target(disk(1)) + "0": false} {
		if got := f.Validate(target); got != want {
			t.Errorf("Validate(%q) = %v", target, got)
		}
	}
	tr := started(t, f, silent, unwanted)
	if _, err := tr.GetConnection(t.Context(), "host:63001"); !errors.Is(err, scstore.ErrInvalid) {
		t.Errorf("got %v", err)
	}
	if _, err := tr.GetConnection(t.Context(), Target(disk(8))); !errors.Is(err, scstore.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	if err := f.Create(config.NodeHostConfig{}, silent, unwanted).Start(); !errors.Is(err, scstore.ErrBusy) {
		t.Errorf("a second transport: %v", err)
	}
	for _, o := range []Options{{}, {Net: f.o.Net}, {Net: f.o.Net, Owner: owner, SnapshotBytes: 1}} {
		if _, err := New(o); !errors.Is(err, scstore.ErrInvalid) {
			t.Errorf("New(%+v): %v", o, err)
		}
	}
}

func encoded(t testing.TB, size int, marshalTo func([]byte) (int, error)) []byte {
	t.Helper()
	b := make([]byte, size)
	n, err := marshalTo(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

func FuzzParseBatch(f *testing.F) {
	whole := batch(1, message(1, "one"), message(1, "two"))
	f.Add(encoded(f, whole.SizeUpperLimit(), whole.MarshalTo))
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := parseBatch(b)
		if err != nil && !errors.Is(err, scstore.ErrInvalid) {
			t.Errorf("got %v", err)
		}
		if err == nil && len(got.Requests) > len(b) {
			t.Errorf("%d messages in %d bytes", len(got.Requests), len(b))
		}
	})
}

func FuzzParseChunk(f *testing.F) {
	whole := raftpb.Chunk{ShardID: 3, From: 1, Data: []byte("data"), ChunkCount: 1}
	f.Add(encoded(f, whole.Size(), whole.MarshalTo))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := parseChunk(b)
		if err != nil && !errors.Is(err, scstore.ErrInvalid) {
			t.Errorf("got %v", err)
		}
		if err == nil && len(got.Data) > len(b) {
			t.Errorf("%d bytes of data in %d", len(got.Data), len(b))
		}
	})
}

// TestTransport_HeartBeatsOfAllGroupsGoTogether sends those of several connections, which
// leave at once when their moment has come; what somebody waits for does not wait.
func TestTransport_HeartBeatsOfAllGroupsGoTogether(t *testing.T) {
	w := newWorld(t)
	got := make(chan raftpb.MessageBatch, 100)
	f := w.host(t, 1)
	f.beatDelay = time.Hour
	a := f.Create(config.NodeHostConfig{}, silent, unwanted).(*transport)
	defer func() { _ = a.Close() }()
	started(t, w.host(t, 2), func(b raftpb.MessageBatch) { got <- b }, unwanted)
	conns := make([]raftio.IConnection, 3)
	for i := range conns {
		var err error
		if conns[i], err = a.GetConnection(t.Context(), Target(disk(2))); err != nil {
			t.Fatal(err)
		}
	}
	send := func(conn raftio.IConnection, messages ...raftpb.Message) {
		t.Helper()
		if err := conn.SendMessageBatch(batch(1, messages...)); err != nil {
			t.Fatal(err)
		}
	}
	heartbeat := func(shard, hint uint64) raftpb.Message {
		return raftpb.Message{Type: raftpb.Heartbeat, ShardID: shard, From: 1, To: 2, Hint: hint}
	}
	answer := heartbeat(20, 0)
	answer.Type = raftpb.HeartbeatResp
	send(conns[0], heartbeat(10, 0))
	send(conns[1], heartbeat(11, 0), message(1, "an entry"), answer)
	send(conns[2], heartbeat(12, 0), heartbeat(13, 77))
	shards := func(b raftpb.MessageBatch) (list []uint64) {
		for _, m := range b.Requests {
			list = append(list, m.ShardID)
		}
		slices.Sort(list)
		return list
	}
	var first []uint64
	for range 2 {
		first = append(first, shards(<-got)...)
	}
	if slices.Sort(first); !slices.Equal(first, []uint64{3, 13}) {
		t.Errorf("at once came messages of the shards %v, want the entry's and the read's", first)
	}
	a.beats[Target(disk(2))].flush()
	b := <-got
	if !slices.Equal(shards(b), []uint64{10, 11, 12, 20}) || b.DeploymentId != 7 || b.SourceAddress != Target(disk(1)) {
		t.Errorf("together came %v of deployment %d from %s", shards(b), b.DeploymentId, b.SourceAddress)
	}
	conns[0].Close()
	send(conns[1], heartbeat(30, 0))
	a.beats[Target(disk(2))].flush()
	if b := <-got; !slices.Equal(shards(b), []uint64{30}) {
		t.Errorf("got %v", shards(b))
	}
	conns[1].Close()
	conns[2].Close()
	if len(a.beats) > 0 || len(got) > 0 {
		t.Errorf("%d streams, %d batches are left over", len(a.beats), len(got))
	}
}

// TestTransport_LostHeartBeatsEndTheConnection has the library open another one.
func TestTransport_LostHeartBeatsEndTheConnection(t *testing.T) {
	w := newWorld(t)
	f := w.host(t, 1)
	f.beatDelay = time.Hour
	a := f.Create(config.NodeHostConfig{}, silent, unwanted).(*transport)
	defer func() { _ = a.Close() }()
	got := make(chan raftpb.MessageBatch, 100)
	started(t, w.host(t, 2), func(b raftpb.MessageBatch) { got <- b }, unwanted)
	beat := batch(1, raftpb.Message{Type: raftpb.Heartbeat, ShardID: 3, From: 1, To: 2})
	connect := func() raftio.IConnection {
		conn, err := a.GetConnection(t.Context(), Target(disk(2)))
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	old := connect()
	defer old.Close()
	lost := a.beats[Target(disk(2))]
	lost.s.Cancel(scstore.ErrClosed)
	if err := old.SendMessageBatch(batch(1, slices.Clone(beat.Requests)...)); err != nil {
		t.Fatal(err)
	}
	lost.flush()
	if err := old.SendMessageBatch(batch(1, slices.Clone(beat.Requests)...)); !errors.Is(err, scstore.ErrClosed) {
		t.Errorf("after heart-beats were lost: %v, want ErrClosed", err)
	}
	again := connect()
	defer again.Close()
	if err := again.SendMessageBatch(batch(1, slices.Clone(beat.Requests)...)); err != nil {
		t.Fatal(err)
	}
	a.beats[Target(disk(2))].flush()
	if b := <-got; len(b.Requests) != 1 {
		t.Errorf("got %+v", b)
	}
}
