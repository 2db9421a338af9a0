package sim_test

import (
	"flag"
	"reflect"
	"testing"

	"scstore/sim"
)

var (
	seeds = flag.Uint64("sim.seeds", defaultSeeds, "worlds to run")
	one   = flag.Uint64("sim.seed", 0, "replay this one alone (0: all)")
)

// replay runs a world again and shows it line by line.
func replay(t *testing.T, o sim.Options) {
	t.Helper()
	o.Trace = true
	r, err := sim.Run(o)
	for _, line := range r.Trace {
		t.Log(line)
	}
	t.Errorf("seed %d: %v", o.Seed, err)
}

// add sums what worlds exercised.
func add(sum *sim.Count, c sim.Count) {
	to, from := reflect.ValueOf(sum).Elem(), reflect.ValueOf(c)
	for i := range to.NumField() {
		to.Field(i).SetInt(to.Field(i).Int() + from.Field(i).Int())
	}
}

func TestWorld_KeepsItsPromises(t *testing.T) {
	if *one != 0 {
		r, err := sim.Run(sim.Options{Seed: *one, Trace: true})
		for _, line := range r.Trace {
			t.Log(line)
		}
		t.Logf("%+v", r.Count)
		if err != nil {
			t.Errorf("seed %d: %v", *one, err)
		}
		return
	}
	var sum sim.Count
	for seed := range *seeds {
		r, err := sim.Run(sim.Options{Seed: seed + 1})
		if err != nil {
			replay(t, sim.Options{Seed: seed + 1})
			return
		}
		add(&sum, r.Count)
	}
	t.Logf("%+v", sum)
}
