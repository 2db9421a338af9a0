package raftnet

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/lni/dragonboat/v4"
	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/statemachine"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

const testShard = 3

// bits is a state machine that sets the bits that it is told: a proposal that timed out
// and was made again may be applied twice.
type bits struct{ set uint64 }

func (b *bits) Update(e statemachine.Entry) (statemachine.Result, error) {
	b.set |= binary.BigEndian.Uint64(e.Cmd)
	return statemachine.Result{Value: b.set}, nil
}

func (b *bits) Lookup(any) (any, error) { return b.set, nil }

func (b *bits) SaveSnapshot(w io.Writer, _ statemachine.ISnapshotFileCollection, _ <-chan struct{}) error {
	// Large, so that it takes several chunks.
	return errors.Join(binary.Write(w, binary.BigEndian, b.set), binary.Write(w, binary.BigEndian, make([]byte, 5<<20)))
}

func (b *bits) RecoverFromSnapshot(r io.Reader, _ []statemachine.SnapshotFile, _ <-chan struct{}) error {
	if err := binary.Read(r, binary.BigEndian, &b.set); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, r)
	return err
}

func (b *bits) Close() error { return nil }

// raftHost starts the Raft library on host n.
func raftHost(t *testing.T, f *Factory, n byte) *dragonboat.NodeHost {
	t.Helper()
	host, err := dragonboat.NewNodeHost(config.NodeHostConfig{
		NodeHostDir: t.TempDir(), RTTMillisecond: 10, RaftAddress: Target(disk(n)),
		Expert: config.ExpertConfig{TransportFactory: f, LogDB: config.GetTinyMemLogDBConfig()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(host.Close)
	return host
}

func replica(n byte) config.Config {
	return config.Config{ReplicaID: uint64(n), ShardID: testShard, ElectionRTT: 20, HeartbeatRTT: 2, CheckQuorum: true, PreVote: true, OrderedConfigChange: true}
}

func newBits(uint64, uint64) statemachine.IStateMachine { return &bits{} }

// retry calls f until it succeeds: while a shard has no leader the library answers
// with errors.
func retry(t *testing.T, what string, f func(ctx context.Context) error) {
	t.Helper()
	for {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		err := f(ctx)
		cancel()
		if err == nil {
			return
		}
		if t.Context().Err() != nil || !dragonboat.IsTempError(err) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestCluster_AgreesAndCatchesUpBySnapshot runs the real library on three hosts,
// then adds a fourth, which gets the state as a snapshot.
func TestCluster_AgreesAndCatchesUpBySnapshot(t *testing.T) {
	w := newWorld(t)
	members := map[uint64]dragonboat.Target{1: Target(disk(1)), 2: Target(disk(2)), 3: Target(disk(3))}
	var hosts []*dragonboat.NodeHost
	for n := byte(1); n <= 3; n++ {
		host := raftHost(t, w.host(t, n), n)
		if err := host.StartReplica(members, false, newBits, replica(n)); err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, host)
	}
	var want uint64
	for i := range uint64(60) {
		host := hosts[i%3]
		retry(t, "propose", func(ctx context.Context) error {
			_, err := host.SyncPropose(ctx, host.GetNoOPSession(testShard), binary.BigEndian.AppendUint64(nil, 1<<i))
			return err
		})
		want |= 1 << i
	}
	for n, host := range hosts {
		retry(t, "read", func(ctx context.Context) error {
			got, err := host.SyncRead(ctx, testShard, nil)
			if err == nil && got != want {
				t.Errorf("host %d reads %x, want %x", n+1, got, want)
			}
			return err
		})
	}
	for _, host := range hosts {
		retry(t, "snapshot", func(ctx context.Context) error {
			_, err := host.SyncRequestSnapshot(ctx, testShard, dragonboat.SnapshotOption{OverrideCompactionOverhead: true, CompactionOverhead: 1})
			return err
		})
	}
	retry(t, "add a replica", func(ctx context.Context) error {
		m, err := hosts[0].SyncGetShardMembership(ctx, testShard)
		if err != nil {
			return err
		}
		if _, in := m.Nodes[4]; in {
			return nil
		}
		return hosts[0].SyncRequestAddReplica(ctx, testShard, 4, Target(disk(4)), m.ConfigChangeID)
	})
	f := w.host(t, 4)
	late := raftHost(t, f, 4)
	if err := late.StartReplica(nil, true, newBits, replica(4)); err != nil {
		t.Fatal(err)
	}
	retry(t, "read at the new host", func(ctx context.Context) error {
		got, err := late.SyncRead(ctx, testShard, nil)
		if err == nil && got != want {
			t.Errorf("the new host reads %x, want %x", got, want)
		}
		return err
	})
	if n := testutil.ToFloat64(f.chunks); n < 2 {
		t.Errorf("%v chunks received: the state did not come as a snapshot", n)
	}
	if n := testutil.ToFloat64(f.dropped); n != 0 {
		t.Errorf("%v messages dropped", n)
	}
}
